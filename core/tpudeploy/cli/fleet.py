"""``tpudeploy serve --engine ray``: like any other server, but for where its replicas run."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpudeploy.cli.launching import find_target
from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.serving import SEQ_LENGTH, Serving
from tpudeploy.cli.terminal import print_note
from tpudeploy.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from tpudeploy.launch import LaunchRequest
    from tpudeploy.server.local_service import QueueService
    from tpudeploy.server.settings import ServerSettings


def require_ray() -> None:
    """:raises MissingPackageError: the extra is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError(
            "--engine ray needs Ray, which is not installed.",
            hint="Install it with `pip install 'tpudeploy[ray]'`, here and on every machine of the cluster.",
        )


def check_devices(given: Sequence[str]) -> None:
    """:raises UsageError: ids say nothing about chips of other machines."""
    if given:
        raise UsageError(
            "--device names chips of this machine, and with --engine ray each replica takes free ones of its own.",
            hint="Say how many replicas with --replicas; a bundle for several chips takes as many.",
        )


class FleetServing(Serving):
    """One run of the server.

    :param replicas: how many.
    :param address: of a Ray cluster; empty starts one on this machine.
    """

    def __init__(
        self,
        request: LaunchRequest,
        replicas: int,
        address: str,
        settings: ServerSettings,
        grace_s: float,
        session_bytes: int | None,
    ) -> None:
        super().__init__(request, [()] * replicas, settings, grace_s, session_bytes)
        self._address = address

    @contextmanager
    def _service(self, listener: socket.socket, *, yes: bool, hub: str) -> Iterator[tuple[QueueService, str]]:
        from tpudeploy.launch.loaded import identity_of
        from tpudeploy.server.fleet.cluster import check_address
        from tpudeploy.server.fleet.opening import FleetPlan, open_fleet

        if self._address:
            check_address(self._address)
        target = find_target(self._request, yes=yes, hub=hub)
        text = target.require_text()
        with BuildProgress() as line:
            line.prepare()
            bundle = target.bundle_of(max_new_tokens=SEQ_LENGTH, progress=line)
        count = len(self._devices)
        where = f"in the Ray cluster at {self._address}" if self._address else "in a Ray cluster of this machine"
        print_note(f"starting {count} replica{'s' if count > 1 else ''} {where}")
        name = f"tpudeploy-{socket.gethostname()}-{listener.getsockname()[1]}"
        plan = FleetPlan(name, count, self._request.backend, self._address, self._session_bytes)
        with open_fleet(bundle, text, plan, self._settings.limits) as service:
            yield service, identity_of(bundle).title
