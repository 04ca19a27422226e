"""Replicas as the server sees them: lost, back, slow to hear; without Ray, which only carries the calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server_support import MODEL, Gate, ScriptedEngine, fake_model
from tpudeploy import __version__
from tpudeploy.cli.commands import serve as serve_command
from tpudeploy.cli.fleet import check_devices, require_ray
from tpudeploy.errors import BackendError, BundleError, MissingPackageError, TpuDeployError, UsageError
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.server.errors import ApiError
from tpudeploy.server.fleet import offer as offers
from tpudeploy.server.fleet import remote_worker as watching
from tpudeploy.server.fleet import replica as replicas
from tpudeploy.server.fleet.client import Batch, ReplicaState
from tpudeploy.server.fleet.offer import Offer, find_offered
from tpudeploy.server.fleet.opening import fleet_figures, load_all, remote_workers
from tpudeploy.server.fleet.replica import Replica
from tpudeploy.server.local_service import QueueService
from tpudeploy.server.service import End, Event, ModelCard, Piece, Question
from tpudeploy.server.settings import Limits
from tpudeploy.settings import Settings

OFFER = Offer("some-bundle", "/nowhere", "00", "auto")


class Link:
    """Stands where Ray would be: calls go to a replica of this process, until it is cut."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.replica = Replica()
        self.engine = engine
        self.cut = self.silent = False

    def kill(self) -> None:
        """The replica's process ends, and another one is started in its place."""
        self.cut = True

    def restart(self) -> None:
        self.replica, self.engine, self.cut = Replica(), ScriptedEngine(), False

    async def load(self, offer: Offer) -> ReplicaState | TpuDeployError:
        self._check()
        return await self.replica.load(offer)

    async def state(self) -> ReplicaState:
        self._check()
        await self._wait()
        return await self.replica.state()

    async def answer(self, number: int, question: Question) -> AsyncIterator[Batch]:
        self._check()
        await self._wait()
        async for batch in self.replica.answer(number, question):
            self._check()
            yield batch

    async def cancel(self, number: int) -> None:
        self._check()
        await self.replica.cancel(number)

    async def close(self, timeout_s: float) -> bool:
        self._check()
        return await self.replica.close(timeout_s)

    async def _wait(self) -> None:
        while self.silent:
            await asyncio.sleep(0.005)

    def _check(self) -> None:
        if self.cut:
            raise ConnectionError("the process is gone")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_WATCH_S", 0.02)
    monkeypatch.setattr(watching, "_LOST_S", 0.02)


@asynccontextmanager
async def fleet(monkeypatch: pytest.MonkeyPatch, *links: Link) -> AsyncIterator[QueueService]:
    """A service over replicas."""
    waiting = list(links)

    def load(offer: Offer, node: str) -> Any:
        link = waiting.pop(0) if waiting else next(link for link in links if link.replica._worker is None)
        return fake_model(link.engine)

    monkeypatch.setattr(replicas, "load_offered", load)
    states = await load_all(links, OFFER)
    workers = remote_workers(links, states, OFFER)
    text = fake_model(ScriptedEngine()).require_text()
    card = ModelCard(MODEL, 0, states[0].seq_length, "none", states[0].backend)
    service = QueueService(text, card, workers, Limits(), figures=lambda: fleet_figures(workers))
    service.start()
    try:
        yield service
    finally:
        assert await service.close()
        await asyncio.sleep(0.1)  # longer than the server takes to look
        assert not any(link.replica._worker for link in links)


def question(tokens: int) -> Question:
    return Question((65, 300 - 1), GenerationOptions(max_new_tokens=tokens, drafter=None))


async def text_of(service: QueueService, tokens: int = 5) -> tuple[str, Event]:
    said, last = "", None
    async for last in service.submit(question(tokens), "somebody").events():
        said += last.text if isinstance(last, Piece) else ""
    assert last is not None
    return said, last


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        await asyncio.sleep(0.005)


def test_an_answer_comes_through_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with fleet(monkeypatch, Link(ScriptedEngine())) as service:
            said, end = await text_of(service)
            assert said == "abcde"
            assert isinstance(end, End)
            assert (end.finish_reason, end.usage.completion_tokens) == ("length", 5)
            assert service.health().workers[0].devices == (0,)
            await until(lambda: service.unfinished == 0)
            figures = service.metrics.render().decode()
            assert 'tpudeploy_answers_total{finish="length"} 1.0' in figures
            node = service.workers[0].state.node  # type: ignore[attr-defined]
            assert f'tpudeploy_device_memory_used_bytes{{device="{node}/0"}} 400.0' in figures

    asyncio.run(check())


def test_two_replicas_answer_at_once_and_keep_their_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        links = [Link(ScriptedEngine()), Link(ScriptedEngine())]
        gate = Gate()
        for link in links:
            link.engine.before_pass = gate
        async with fleet(monkeypatch, *links) as service:
            answers = [asyncio.ensure_future(text_of(service)) for _ in links]
            await until(lambda: all(worker.busy for worker in service.health().workers))
            gate.open()
            assert [said for said, _ in await asyncio.gather(*answers)] == ["abcde", "abcde"]
            await until(lambda: service.unfinished == 0)
            assert service.workers[0].shared_prefix((65, 299, ord("a"))) == (3, 3)

    asyncio.run(check())


@pytest.mark.parametrize("early", [False, True], ids=["running", "not begun"])
def test_a_cancelled_answer_frees_its_replica_within_a_pass(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    async def check() -> None:
        link, gate = Link(ScriptedEngine()), Gate()
        link.engine.before_pass = gate
        async with fleet(monkeypatch, link) as service:
            answering = service.submit(question(1000), "somebody")
            if early:
                answering.cancel()  # before the replica heard of the question
            else:
                gate.open(3)
                await until(lambda: link.engine.passes == 3)
                answering.cancel()
            await until(lambda: link.replica._cancelled_up_to == 1)
            gate.open(1)
            await until(lambda: service.unfinished == 0)
            assert link.engine.passes <= 4
            gate.open()
            assert (await text_of(service))[0] == "abcde"

    asyncio.run(check())


def test_a_lost_replica_fails_its_answer_and_is_given_the_model_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check() -> None:
        lost, other = Link(ScriptedEngine()), Link(ScriptedEngine())
        gate = Gate()
        lost.engine.before_pass = gate
        async with fleet(monkeypatch, lost, other) as service:
            first = asyncio.ensure_future(text_of(service))
            await until(lambda: service.workers[0].job is not None)
            lost.kill()
            gate.open()
            with pytest.raises(ApiError) as failed:
                await first
            assert (failed.value.status, failed.value.code) == (500, "device_error")
            assert [bool(worker.problem) for worker in service.health().workers] == [True, False]
            assert (await text_of(service))[0] == "abcde"
            lost.restart()
            await until(lambda: not any(worker.problem for worker in service.health().workers))
            assert (await text_of(service))[0] == "abcde"

    asyncio.run(check())


def test_without_any_replica_requests_are_turned_away_until_one_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        link = Link(ScriptedEngine())
        async with fleet(monkeypatch, link) as service:
            link.kill()
            await until(lambda: not service.health().ready)
            with pytest.raises(ApiError) as refused:
                service.submit(question(1), "somebody")
            assert (refused.value.status, refused.value.code) == (503, "no_worker")
            link.restart()
            await until(lambda: service.health().ready)
            assert (await text_of(service))[0] == "abcde"

    asyncio.run(check())


def test_a_request_does_not_wait_for_a_replica_of_which_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        monkeypatch.setattr(watching, "_PATIENCE_S", 0.1)
        link = Link(ScriptedEngine())
        async with fleet(monkeypatch, link, Link(ScriptedEngine())) as service:
            link.silent = True
            with pytest.raises(ApiError, match="device failed"):
                await text_of(service)
            assert (await text_of(service))[0] == "abcde"
            link.silent = False
            await until(lambda: not any(worker.problem for worker in service.health().workers))

    asyncio.run(check())


def test_a_lost_device_makes_its_replica_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise BackendError("the chip is gone")

    async def check() -> None:
        link = Link(ScriptedEngine())
        async with fleet(monkeypatch, link) as service:
            await link.replica.check_health()
            link.engine.before_pass = fail
            with pytest.raises(ApiError, match="device failed"):
                await text_of(service)
            with pytest.raises(RuntimeError, match="the chip is gone"):
                await link.replica.check_health()
            assert service.health().workers[0].problem == "the chip is gone"

    asyncio.run(check())


def test_an_error_of_a_machine_is_told_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(offer: Offer, node: str) -> Any:
        raise BackendError("device 0 is in use", hint="Wait.")

    monkeypatch.setattr(replicas, "load_offered", load)
    with pytest.raises(BackendError, match="device 0 is in use"):
        asyncio.run(load_all([Link(ScriptedEngine())], OFFER))


def test_replicas_of_one_machine_that_choose_the_same_device_try_another(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {0}

    class Chips:
        def default_devices(self, chips: int) -> tuple[int, ...]:
            return (min({0, 1} - taken, default=0),)

    def load(bundle: Any, registry: Any, name: str, devices: tuple[int, ...]) -> Any:
        if devices == (1,) and 1 not in taken:
            taken.add(1)  # somebody else was quicker
        if set(devices) & taken:
            if devices == (1,):
                taken.discard(0)
            raise BackendError(f"device {devices[0]} is in use")
        return devices

    monkeypatch.setattr(replicas, "choose_backend", lambda *given: Chips())
    monkeypatch.setattr(replicas, "load_bundle", load)
    monkeypatch.setattr(replicas, "_PAUSE_S", 0.0)
    manifest: Any = type("Manifest", (), {"format": None, "nets": type("Nets", (), {"chips": 1})})
    bundle: Any = type("Bundle", (), {"manifest": manifest})
    assert replicas._load_on_free_devices(bundle, "auto") == (0,)  # type: ignore[comparison-overlap]
    taken.update({0, 1})
    with pytest.raises(BackendError, match="device 0 is in use"):
        replicas._load_on_free_devices(bundle, "auto")


def test_a_machine_with_another_version_or_without_the_bundle_says_so(settings: Settings, tmp_path: Path) -> None:
    other = Offer("some-bundle", str(tmp_path / "bundle"), "00", "auto", version="0.0.1")
    with pytest.raises(UsageError, match=rf"box7 has tpudeploy {__version__}, the server has 0\.0\.1") as skewed:
        find_offered(other, settings, "box7")
    assert "same version" in skewed.value.hint
    with pytest.raises(BundleError, match="box7 does not have the bundle some-bundle"):
        find_offered(Offer("some-bundle", str(tmp_path / "bundle"), "00", "auto"), settings, "box7")


def test_a_bundle_is_found_by_what_it_is_wherever_it_lies(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "find_bundle", lambda path, settings: path)
    stored = settings.bundles_dir / "other-name"
    for folder, content in ((stored, "one"), (tmp_path / "bundle", "two")):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(content)
    digest = offers._digest(stored)
    assert find_offered(Offer("name", str(tmp_path / "bundle"), digest, "auto"), settings, "box7") == stored
    with pytest.raises(BundleError, match=r"what lies in .*bundle is another one"):
        find_offered(Offer("name", str(tmp_path / "bundle"), "00", "auto"), settings, "box7")


def test_without_ray_one_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as missing:
        require_ray()
    assert "pip install 'tpudeploy[ray]'" in missing.value.hint


def test_options_of_another_engine_are_refused() -> None:
    with pytest.raises(UsageError, match="--device names chips of this machine"):
        check_devices(["0"])
    with pytest.raises(UsageError, match="--ray-address is for --engine ray"):
        serve_command.check_engine(serve_command.Engine.PROCESS, (), "10.0.0.1:6379")
