"""Ray: a cluster that is there already, or one of this machine for as long as this process. Nothing else imports it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from tpudeploy.errors import BackendError, TpuDeployError, UsageError
from tpudeploy.server.fleet.client import Batch, ReplicaState
from tpudeploy.server.fleet.offer import Offer
from tpudeploy.server.fleet.replica import Replica
from tpudeploy.server.service import Question

_log = logging.getLogger(__name__)
CHIP = "tpu_bm1684x"
"""The resource of which a machine has one for each chip."""
_LOCAL = "local"
_AUTO = "auto"
_REACH_S = 10.0
"""How long an address may take to answer."""
_STORE_BYTES = 100 << 20
"""Ray's shared memory: nothing of size goes through it."""
_AT_ONCE = 100
"""Calls of one replica: an answer, and whatever is said of it meanwhile."""
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 30.0}
_END = {"graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": 5.0}
_PLACE_S = 180.0
"""How long a replica may take to find a machine, and its process to start."""
_POLL_S = 0.2


class RayReplica:
    """A replica behind Ray Serve; see :class:`~tpudeploy.server.fleet.client.ReplicaClient`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._stream = handle.options(stream=True)

    async def load(self, offer: Offer) -> ReplicaState | TpuDeployError:
        """See :meth:`ReplicaClient.load`."""
        answer: ReplicaState | TpuDeployError = await self._handle.load.remote(offer)
        return answer

    async def state(self) -> ReplicaState:
        """See :meth:`ReplicaClient.state`."""
        state: ReplicaState = await self._handle.state.remote()
        return state

    async def answer(self, number: int, question: Question) -> AsyncIterator[Batch]:
        """See :meth:`ReplicaClient.answer`."""
        async for batch in self._stream.answer.remote(number, question):
            yield batch

    async def cancel(self, number: int) -> None:
        """See :meth:`ReplicaClient.cancel`."""
        await self._handle.cancel.remote(number)

    async def close(self, timeout_s: float) -> bool:
        """See :meth:`ReplicaClient.close`."""
        done: bool = await self._handle.close.remote(timeout_s)
        return done


class Cluster:
    """Where replicas run; made by :func:`connect`."""

    def __init__(self, *, local: bool) -> None:
        self._local = local
        self._names: list[str] = []

    def check_chips(self, needed: int, replicas: int) -> None:
        """:raises BackendError: the machines that are there have fewer chips than the replicas need."""
        import ray

        there = int(ray.cluster_resources().get(CHIP, 0))
        if there < needed:
            where = "this machine has" if self._local else "its machines say that they have"
            raise BackendError(
                f"{replicas} replicas need {needed} chips, and {where} {there}.",
                hint=f"Ask for fewer --replicas, or add machines: ray start --resources='{{\"{CHIP}\": CHIPS}}'.",
            )

    def deploy(self, name: str, replicas: int, chips: int) -> list[RayReplica]:
        """Start replicas, each a deployment of its own: the server chooses which one answers.

        :param name: of the server; what an earlier one of that name left is ended.
        :param chips: of each replica; 0 where it uses none.
        :raises BackendError: they cannot be started.
        """
        from ray import serve

        _quiet()
        with _explained("Ray Serve cannot be started"):
            serve.start(proxy_location="Disabled")
            _end([app for app in serve.status().applications if app.rpartition("-")[0] == name], wait=True)
            deployment = serve.deployment(Replica).options(
                name="replica",
                num_replicas=1,
                max_ongoing_requests=_AT_ONCE,
                ray_actor_options={"num_cpus": 0, "resources": {CHIP: chips} if chips else {}},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
                **_HEALTH,
                **_END,
            )
            self._names = [f"{name}-{index}" for index in range(replicas)]
            targets = [serve.RunTarget(deployment.bind(), name=name, route_prefix=None) for name in self._names]
            handles = serve.run_many(targets, wait_for_applications_running=False)
            self._wait()
        return [RayReplica(handle) for handle in handles]

    def end(self) -> None:
        """End the replicas."""
        if not self._local:  # with a cluster of our own, everything ends
            _end(self._names, wait=False)

    def _wait(self) -> None:
        """Until every replica has a process. :raises BackendError: one gets none."""
        import ray
        from ray import serve

        deadline = time.monotonic() + _PLACE_S
        while True:
            found = serve.status().applications
            states = [found[name] for name in self._names if name in found]
            if len(states) == len(self._names) and all(state.status == "RUNNING" for state in states):
                return
            failed = next((state for state in states if state.status in ("DEPLOY_FAILED", "UNHEALTHY")), None)
            if failed is not None:
                detail = "; ".join([failed.message, *(part.message for part in failed.deployments.values())])
                raise BackendError(f"a replica cannot be started: {_last_line(detail)}.", hint=_SAME)
            if time.monotonic() > deadline:
                free = ray.available_resources().get(CHIP, 0)
                raise BackendError(
                    f"a replica found no place within {_PLACE_S:g} s; free chips in the cluster: {free:g}.",
                    hint="`ray status` tells who has them.",
                )
            time.sleep(_POLL_S)


_SAME = "Every machine of the cluster needs the same Python, Ray and tpudeploy, the extra tpudeploy[ray] included."


@contextmanager
def connect(address: str, *, chips: int) -> Iterator[Cluster]:
    """A cluster.

    :param address: of one that is there, checked by :func:`check_address`; empty starts one on this machine.
    :param chips: of this machine, where it starts one.
    :raises BackendError: it cannot be reached or started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Not in TMPDIR: the paths of its sockets must be short.
    folder = "" if address else tempfile.mkdtemp(prefix="tpudeploy-ray-", dir="/tmp")
    try:
        with _connected(address, _own_cluster(folder, chips) if folder else {}) as cluster:
            yield cluster
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def check_address(address: str) -> None:
    """Ray itself would try for minutes. :raises TpuDeployError: no address of a cluster, or nobody is there."""
    if address == _AUTO:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UsageError(
            f"{address!r} is no address of a Ray cluster.",
            hint="It is HOST:PORT, as `ray start --head` told it, or auto on a machine of the cluster.",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no answer"
        raise BackendError(
            f"the Ray cluster at {address} cannot be reached: {reason}.",
            hint="Start it there with `ray start --head`, and look whether a firewall is between.",
        ) from error


def _own_cluster(folder: str, chips: int) -> dict[str, Any]:
    # Whoever reaches Ray's ports runs what he likes as this user, so they take a token that nobody knows.
    if not os.environ.get("RAY_AUTH_MODE"):
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {
        "num_cpus": 1,
        "num_gpus": 0,
        "resources": {CHIP: chips} if chips else {},
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_temp_dir": folder,
    }


@contextmanager
def _connected(address: str, more: Mapping[str, Any]) -> Iterator[Cluster]:
    with _explained(f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot be started"):
        import ray

        _quiet()
        ray.init(
            address=address or _LOCAL,
            namespace="tpudeploy",
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            **more,
        )
    cluster = Cluster(local=not address)
    try:
        yield cluster
    finally:
        with suppress(Exception):  # a cluster that is gone has ended them
            cluster.end()
        ray.shutdown()


def _end(names: list[str], *, wait: bool) -> None:
    from ray import serve

    for name in names:
        serve.delete(name, _blocking=wait)


def _quiet() -> None:
    """Ray tells of its own doings; what matters of them is told here."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Whatever befalls a process of the cluster, Ray prints on this program's output, with lines of that one's log.
    import ray._private.worker as inner

    if hasattr(inner, "print_to_stdstream"):
        inner.print_to_stdstream = _note


def _note(data: Mapping[str, Any], *given: Any, **more: Any) -> None:
    for line in data.get("lines", ()):
        _log.debug("Ray: %s", line)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except TpuDeployError:
        raise
    except Exception as error:
        raise BackendError(f"{what}: {type(error).__name__}: {_last_line(str(error))}.", hint=_SAME) from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:500] if lines else "it does not say why"
