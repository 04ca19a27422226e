"""From a bundle to a service whose workers are replicas in a Ray cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.core import Metric

from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.errors import BackendError, TpuDeployError
from tpudeploy.launch.backends import choose_backend
from tpudeploy.launch.loaded import identity_of
from tpudeploy.launch.text import TextTools
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.server.device_watch import device_gauges
from tpudeploy.server.fleet.client import ReplicaClient, ReplicaState
from tpudeploy.server.fleet.cluster import connect
from tpudeploy.server.fleet.offer import Offer, offer_of
from tpudeploy.server.fleet.remote_worker import RemoteWorker
from tpudeploy.server.local_service import QueueService
from tpudeploy.server.service import ModelCard
from tpudeploy.server.sessions import store_figures, sum_counts
from tpudeploy.server.settings import Limits


@dataclass(frozen=True)
class FleetPlan:
    """What to start where.

    :param name: of this server in the cluster.
    :param replicas: how many, all the same.
    :param backend: a backend's name, or ``auto``: each machine chooses.
    :param address: of a cluster that is there; empty starts one on this machine.
    :param session_bytes: host memory of each replica for conversations.
    """

    name: str
    replicas: int = 1
    backend: str = "auto"
    address: str = ""
    session_bytes: int | None = None


@contextmanager
def open_fleet(bundle: Bundle, text: TextTools, plan: FleetPlan, limits: Limits) -> Iterator[QueueService]:
    """Load a bundle in every replica; they end with the context.

    :param bundle: of this machine, whose tokenizer this is.
    :raises TpuDeployError: no cluster, no place in it, or a machine that cannot load the bundle.
    """
    manifest = bundle.manifest
    chips = manifest.nets.chips if manifest.format is BundleFormat.BMODEL else 0
    own = _own_chips(plan.backend, manifest.format) if chips and not plan.address else 0
    with connect(plan.address, chips=own) as cluster:
        if chips:
            cluster.check_chips(plan.replicas * chips, plan.replicas)
        clients = cluster.deploy(plan.name, plan.replicas, chips)
        offer = offer_of(bundle, plan.backend, plan.session_bytes)
        states = asyncio.run(load_all(clients, offer))
        workers = remote_workers(clients, states, offer)
        card = card_of(bundle, states[0])
        yield QueueService(text, card, workers, limits, figures=lambda: fleet_figures(workers))


async def load_all(clients: Sequence[ReplicaClient], offer: Offer) -> list[ReplicaState]:
    """Load the bundle in all replicas at once. :raises TpuDeployError: one cannot."""
    found: list[ReplicaState] = []
    for answer in await asyncio.gather(*(client.load(offer) for client in clients), return_exceptions=True):
        if isinstance(answer, TpuDeployError):
            raise answer
        if isinstance(answer, BaseException):
            raise BackendError(f"a replica ended while it loaded the model: {type(answer).__name__}.") from answer
        found.append(answer)
    return found


def remote_workers(
    clients: Sequence[ReplicaClient], states: Sequence[ReplicaState], offer: Offer
) -> list[RemoteWorker]:
    """A worker for each replica."""
    pairs = enumerate(zip(clients, states, strict=True))
    return [RemoteWorker(str(index), client, state, offer) for index, (client, state) in pairs]


def card_of(bundle: Bundle, state: ReplicaState) -> ModelCard:
    """The card of a bundle that a replica has loaded."""
    identity = identity_of(bundle)
    return ModelCard(identity.title, int(time.time()), state.seq_length, identity.quant, state.backend)


def fleet_figures(workers: Sequence[RemoteWorker]) -> Iterator[Metric]:
    """Of the devices of all machines and of their host memory, as they were last told."""
    states = [worker.state for worker in workers]
    devices = {f"{state.node}/{device.id}": device for state in states for device in state.devices}
    stores = [state.store for state in states if state.store is not None]
    if stores:
        yield from store_figures(sum_counts(stores))
    yield from device_gauges(devices.items(), sum(state.held_bytes for state in states))


def _own_chips(backend: str, form: BundleFormat) -> int:
    """Chips of this machine that can be used."""
    found = choose_backend(registry(), backend, form).devices()
    return sum(not device.fault for device in found)
