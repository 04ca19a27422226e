"""What ``tpudeploy serve`` does with its options: check them, take the port, load the model, serve, tell."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tpudeploy.cli.launching import find_target
from tpudeploy.cli.options import parse_ids
from tpudeploy.cli.outcome import INTERRUPTED
from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import print_line, print_note
from tpudeploy.errors import BackendError, MissingPackageError, UsageError

if TYPE_CHECKING:
    from tpudeploy.launch import LaunchRequest, LoadedModel
    from tpudeploy.server.local_service import QueueService
    from tpudeploy.server.settings import ServerSettings

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
SEQ_LENGTH = 2048
"""Conversations over an API are longer than questions on a command line."""
_LEAST_KEY_CHARS = 8


def require_packages() -> None:
    """:raises MissingPackageError: the extra is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(name.replace("_", "-") for name in missing)
        raise MissingPackageError(
            f"serving needs packages that are not installed: {names}.",
            hint="Install them with `pip install 'tpudeploy[serve]'`.",
        )


def read_keys(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The API keys of the command line, its variable, and a file.

    :raises UsageError: a file that cannot be read or has none, or a key that would be easily guessed.
    """
    keys = [key.strip() for key in given]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"the API keys in {file} cannot be read: {reason}.") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"{file} holds no API key.", hint="Write one on a line of its own.")
        keys += found
    for key in keys:
        if len(key) < _LEAST_KEY_CHARS or not key.isprintable() or " " in key:
            raise UsageError(
                f"an API key must have {_LEAST_KEY_CHARS} or more characters and no spaces.",
                hint='A good one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
            )
    return tuple(dict.fromkeys(keys))


def check_exposure(host: str, keys: Sequence[str], *, insecure: bool) -> None:
    """:raises UsageError: other machines could reach it, and it has no key."""
    from tpudeploy.server.listening import is_loopback

    if keys or insecure or is_loopback(host):
        return
    raise UsageError(
        f"other machines can reach {host}, and there is no API key.",
        hint="Give one with --api-key-file or TPUDEPLOY_API_KEY, or say --insecure-no-key.",
    )


def allowed_hosts(host: str, keys: Sequence[str], added: tuple[str, ...]) -> tuple[str, ...]:
    """Names under which it may be asked for; empty for any.

    A key does what the names are for: a page that a browser was led to does not have it.
    """
    from tpudeploy.server.listening import is_loopback
    from tpudeploy.server.settings import LOOPBACK_HOSTS

    if keys or not is_loopback(host):
        return ()
    own = f"[{host}]" if ":" in host else host
    return tuple(dict.fromkeys((*LOOPBACK_HOSTS, own, *added)))


def device_groups(given: Sequence[str], replicas: int) -> tuple[tuple[int, ...], ...]:
    """The devices of each replica; an empty group lets the backend choose.

    :raises UsageError: groups of different sizes, or both ways at once.
    """
    groups = tuple(parse_ids(text, "--device") for text in given)
    if len(groups) <= 1:
        return (groups or ((),)) * replicas
    if replicas > 1:
        raise UsageError("--replicas and several --device exclude each other: each --device is a replica.")
    if len({len(group) for group in groups}) > 1:
        raise UsageError("every --device must name as many devices as the others: each is a replica of one model.")
    return groups


class Serving:
    """One run of the server.

    :param devices: of each replica.
    :param grace_s: see :func:`tpudeploy.server.serving.serve`.
    :param session_bytes: host memory for what the models' caches lose; None: what suits this machine; 0: none.
    """

    def __init__(
        self,
        request: LaunchRequest,
        devices: Sequence[tuple[int, ...]],
        settings: ServerSettings,
        grace_s: float,
        session_bytes: int | None = None,
    ) -> None:
        self._request = request
        self._devices = devices
        self._settings = settings
        self._grace_s = grace_s
        self._session_bytes = session_bytes

    def run(self, host: str, port: int, *, yes: bool, hub: str) -> None:
        """Serve until a signal. :raises TpuDeployError: the port is taken, or the model cannot be loaded."""
        from tpudeploy.server.listening import listen, url_of
        from tpudeploy.server.serving import serve

        with listen(host, port) as listener, self._service(listener, yes=yes, hub=hub) as (service, title):
            url = url_of(listener)
            _log_to_stderr()
            freed = serve(
                listener,
                service,
                self._settings,
                grace_s=self._grace_s,
                ready=lambda: self._announce(service, title, url),
                stopping=self._tell_end,
                at_once=_end_at_once,
            )
        if not freed:
            raise BackendError("a device did not finish in time what it computes; it is free when the process is gone.")

    @contextmanager
    def _service(self, listener: socket.socket, *, yes: bool, hub: str) -> Iterator[tuple[QueueService, str]]:
        """What answers, and the model's name for people."""
        from tpudeploy.server.local_service import LocalService
        from tpudeploy.server.sessions import keep_sessions

        with ExitStack() as loaded:
            models = self._load(loaded, yes=yes, hub=hub)
            store = keep_sessions(models, self._session_bytes)
            yield LocalService(models, self._settings.limits, store=store), models[0].title
            loaded.pop_all()  # the server has closed them, or a device still computes and must not be touched

    def _load(self, loaded: ExitStack, *, yes: bool, hub: str) -> list[LoadedModel]:
        """Load every replica; what one builds, the next finds."""
        models: list[LoadedModel] = []
        for devices in self._devices:
            request = self._request.model_copy(update={"devices": devices, "force": self._request.force and not models})
            target = find_target(request, yes=yes, hub=hub)
            target.require_text()  # a missing tokenizer is told before anything is compiled
            with BuildProgress() as line:
                line.prepare()
                models.append(loaded.enter_context(target.load(max_new_tokens=SEQ_LENGTH, progress=line)))
        return models

    def _announce(self, service: QueueService, title: str, url: str) -> None:
        model, replicas = service.model, len(service.workers)
        count = f", {replicas} replicas" if replicas > 1 else ""
        key = " -H 'Authorization: Bearer KEY'" if self._settings.api_keys else ""
        body = f'{{"model": "{model.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
        print_line(f"{title} ({model.quant} on {model.backend}{count}) at {url}/v1")
        print_line(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'")
        print_line(f"  chat in a browser: {url}/")
        sys.stdout.flush()

    def _tell_end(self, count: int) -> None:
        if count:
            print_note(
                f"stopping: {count} request{'s' if count > 1 else ''} may take {self._grace_s:g} s more; "
                "a second Ctrl-C ends at once."
            )


def _end_at_once() -> None:
    """Wait for nothing: not for answers, and not for a device that may never come back."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _log_to_stderr() -> None:
    """What the server says while it runs: a line a request, and what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("tpudeploy", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
