"""Verification from a checkpoint to a report: exact where the model is exact, telling where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from shared_data import shared_path
from test_graph import source_of
from tiny import write_checkpoint
from tpudeploy.compile.source import ModelSource
from tpudeploy.contracts.backend import Availability, Backend, BoundNet, DeviceInfo, Session, TensorView
from tpudeploy.contracts.bundle import BundleFormat, Manifest
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.contracts.net import NetKind, NetSpec, Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.progress import StageEvent
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.errors import BackendError
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings
from tpudeploy.verify import (
    NetRow,
    Prompt,
    TargetReport,
    Verdict,
    VerifyOptions,
    VerifyReport,
    targets,
    usable_backends,
    verify_model,
)
from tpudeploy.verify.limits import LIMITS
from tpudeploy.verify.nets import net_row

PLAN = NetPlan(seq_length=48, prefill=(Stage(new_tokens=16, cache_length=48),), verify=())
PROMPTS = (Prompt(name="short", ids=(7, 8, 9)), Prompt(name="two-chunks", ids=tuple(range(20, 40))))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return source_of(write_checkpoint(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One home for all tests of the module: bundles are built once."""
    return Settings(home=tmp_path_factory.mktemp("home"))


def options(quant: QuantMode = QuantMode.INT8, **changes: object) -> VerifyOptions:
    return VerifyOptions.model_validate({"quant": quant, "nets": PLAN, "prompts": PROMPTS} | changes)


def run(
    source: ModelSource, home: Settings, *backends: Backend, events: list[StageEvent] | None = None, **changes: object
) -> VerifyReport:
    quant = QuantMode(changes.pop("quant", QuantMode.INT8))
    chosen = backends or (registry().backend("cpu"),)
    told: list[StageEvent] = [] if events is None else events
    return verify_model(source, options(quant, **changes), chosen, home, registry(), told.append)


class TestReport:
    def test_every_net_and_every_prompt_has_a_row(self, source: ModelSource, home: Settings) -> None:
        report = run(source, home)
        assert [target.name for target in report.targets] == ["onnx f32", "cpu int8"]
        blocks = {f"{kind}_{layer}" for kind in ("block_kv", "block_cache") for layer in (0, 1)}
        expected = {"embedding", "embedding_cache", "lm_head"} | blocks
        for target in report.targets:
            assert {row.net for row in target.nets} == expected
            assert [row.prompt for row in target.prompts] == ["short", "two-chunks"]
            assert {row.answer_tokens for row in target.prompts} == {8}
            assert Path(target.bundle, "manifest.json").is_file()
        assert report.verdict is Verdict.OK
        assert report.skipped == ()

    def test_unquantized_is_exact(self, source: ModelSource, home: Settings) -> None:
        exact = run(source, home, quant="none").targets[0]
        assert max(row.max_error or 1 for row in exact.nets if row.max_error != 0) < 1e-5
        assert all(row.agreement == 1 and row.worst_cosine > 1 - 1e-9 for row in exact.prompts)

    def test_unquantized_is_compared_once(self, source: ModelSource, home: Settings) -> None:
        assert [target.name for target in run(source, home, quant="none").targets] == ["onnx f32"]

    @pytest.mark.parametrize("quant", ["f16", "bf16", "int8", "int4"])
    def test_fewer_bits_are_further_away(self, source: ModelSource, home: Settings, quant: str) -> None:
        exact, reduced = run(source, home, quant=quant).targets
        assert reduced.quant == quant
        assert min(row.cosine for row in reduced.nets) < min(row.cosine for row in exact.nets)
        assert max(row.max_error or 0 for row in reduced.nets) > 1e-4

    def test_json_holds_all_of_it(self, source: ModelSource, home: Settings) -> None:
        report = run(source, home)
        found = json.loads(report.model_dump_json())
        assert found["verdict"] == "ok"
        assert found["targets"][1]["verdict"] == "ok"
        assert found["targets"][1]["nets"][0]["kind"] == "embedding_cache"
        assert found["targets"][1]["limits"]["net_cosine"] == LIMITS[QuantMode.INT8].net_cosine
        assert set(found["targets"][1]["prompts"][0]) >= {"agreement", "first_divergence", "cosine", "verdict"}

    def test_short_table_has_the_worst_of_each_kind(self, source: ModelSource, home: Settings) -> None:
        target = run(source, home).targets[1]
        rows = list(target.by_kind())
        assert len(rows) == 5
        for row in rows:
            assert row.cosine == min(other.cosine for other in target.nets if other.kind is row.kind)

    def test_progress_names_what_it_does(self, source: ModelSource, home: Settings) -> None:
        events: list[StageEvent] = []
        run(source, home, events=events)
        items = [event.item for event in events if event.stage == "verify"]
        assert "cpu int8: layer_001" in items
        assert "cpu int8: two-chunks" in items
        assert items[-1] == "reference: lm_head"
        assert all(event.done < event.total for event in events if event.stage == "verify")

    def test_answers_end_at_stop_ids(self, source: ModelSource, home: Settings) -> None:
        rows = run(source, home, max_new_tokens=1).targets[1].prompts
        assert [row.answer_tokens for row in rows] == [1, 1]

    def test_model_of_the_original_authors(self, home: Settings) -> None:
        golden = source_of(shared_path("golden", "tiny-chatglm3"))
        report = run(golden, home)
        assert report.verdict is Verdict.OK


class Spoiled(Backend):
    """The CPU, with something wrong in one net's outputs."""

    name = "spoiled"
    summary = "wrong on purpose"
    formats = frozenset({BundleFormat.ONNX})

    def __init__(self, net: str, output: str, *, factor: float = 1.0, add: float = 0.0) -> None:
        self.net, self.output, self.factor, self.add = net, output, factor, add
        self._cpu = registry().backend("cpu")

    def availability(self) -> Availability:
        return Availability(available=True)

    def devices(self) -> Sequence[DeviceInfo]:
        return self._cpu.devices()

    def load(self, folder: Path, nets: Loadable, *, devices: Sequence[int] = (0,)) -> Session:
        return self._cpu.load(folder, nets, devices=devices)

    def open(self, folder: Path, manifest: Manifest, *, devices: Sequence[int] = (0,)) -> Session:
        session = super().open(folder, manifest, devices=devices)
        bind = session._bind

        def spoiled(net: NetSpec, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
            bound = bind(net, inputs, outputs)
            if net.name != self.net or manifest.quant.mode is QuantMode.NONE:
                return bound
            launch, view = bound.launch, outputs[self.output]

            def launch_and_spoil() -> None:
                launch()
                values = session.read(view)
                # Not the last numbers only: noise that has no direction of its own.
                noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
                session.write(view, values * self.factor + noise * self.add)

            bound.launch = launch_and_spoil  # type: ignore[method-assign]
            return bound

        session._bind = spoiled  # type: ignore[method-assign]
        return session


class TestDefects:
    def spoiled_rows(self, target: TargetReport) -> Iterator[NetRow]:
        return (row for row in target.nets if row.verdict is Verdict.WORSE)

    @pytest.mark.parametrize("output", ["output_states", "present_k", "present_v"])
    def test_net_that_is_a_little_off(self, source: ModelSource, home: Settings, output: str) -> None:
        report = run(source, home, Spoiled("block_kv_1", output, add=0.1))
        (row,) = self.spoiled_rows(report.targets[1])
        assert (row.net, row.output) == ("block_kv_1", output)
        assert report.verdict is report.targets[1].verdict is Verdict.WORSE
        assert report.targets[0].verdict is Verdict.OK

    def test_net_that_is_no_number(self, source: ModelSource, home: Settings) -> None:
        report = run(source, home, Spoiled("block_kv_0", "output_states", factor=float("nan")))
        (row,) = self.spoiled_rows(report.targets[1])
        assert (row.cosine, row.max_error) == (0, None)
        assert {prompt.verdict for prompt in report.targets[1].prompts} == {Verdict.WORSE}
        assert {prompt.regret for prompt in report.targets[1].prompts} == {None}
        json.loads(report.model_dump_json(), parse_constant=pytest.fail)

    def test_decode_that_is_wrong_shows_after_the_first_token(self, source: ModelSource, home: Settings) -> None:
        report = run(source, home, Spoiled("block_cache_0", "output_states", add=2.0))
        for row in report.targets[1].prompts:
            assert row.cosine > 0.99 > row.worst_cosine
            assert row.verdict is Verdict.WORSE

    def test_backend_that_fails(self, source: ModelSource, home: Settings) -> None:
        class Failing(Spoiled):
            def load(self, folder: Path, nets: Loadable, *, devices: Sequence[int] = (0,)) -> Session:
                raise BackendError("no device.")

        with pytest.raises(BackendError, match="no device"):
            run(source, home, Failing("block_kv_0", "present_k"))


class TestWithoutRoom:
    @pytest.mark.parametrize(
        ("backends", "reason"), [(("cpu",), "no room"), ((), "no backend for ONNX bundles was chosen")]
    )
    def test_slices_are_compared_one_by_one(
        self,
        source: ModelSource,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        backends: tuple[str, ...],
        reason: str,
    ) -> None:
        monkeypatch.setattr(targets, "_no_room", lambda config, settings: "no room")
        home = Settings(home=tmp_path)
        chosen = [registry().backend(name) for name in backends]
        report = verify_model(source, options(), chosen, home, registry())
        exact = report.targets[0]
        assert (exact.name, exact.backend, exact.bundle, exact.prompts) == ("onnx f32", "", "", ())
        assert len(exact.nets) == 7
        assert max(row.max_error or 0 for row in exact.nets) < 1e-5
        assert [skipped.reason for skipped in report.skipped] == [reason]
        assert not list(home.stages_dir.glob("*verify-*"))

    def test_asks_the_machine(self, source: ModelSource, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        assert targets._no_room(source.config, home) == ""
        huge = source.config.model_copy(update={"num_layers": 10**9})
        assert "memory" in targets._no_room(huge, home)
        monkeypatch.setattr("tpudeploy.compile.store.free_bytes", lambda folder: 0)
        assert "disk space" in targets._no_room(source.config, home)


class TestBackends:
    def test_those_that_cannot_run_say_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = registry()
        absent = Availability(available=False, reason="No such chip.", remedy="Buy one.")
        monkeypatch.setattr(type(found.backend("cpu")), "availability", lambda self: absent)
        usable, skipped = usable_backends(found)
        assert "cpu" not in [backend.name for backend in usable]
        (told,) = [one for one in skipped if one.what == "cpu"]
        assert told.reason == "No such chip. Buy one."

    def test_a_check_that_breaks_is_an_answer_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = registry()

        def breaks(self: Backend) -> Availability:
            raise OSError("driver gone")

        monkeypatch.setattr(type(found.backend("cpu")), "availability", breaks)
        (told,) = [one for one in usable_backends(found)[1] if one.what == "cpu"]
        assert "OSError: driver gone" in told.reason


class TestRows:
    def test_worst_output_is_named(self, source: ModelSource) -> None:
        net = next(source.adapter.slices(source.config, PLAN, DType.F32).of_kind(NetKind.DECODE))
        expected = [np.ones(4), np.array([1.0, 2.0, 3.0]), np.ones(2)]
        actual = [np.ones(4), np.array([1.0, 2.0, 2.0]), np.ones(2) * 1.5]
        row = net_row(net, expected, actual, LIMITS[QuantMode.INT4])
        assert row.output == net.outputs[1].name
        assert row.cosine == pytest.approx(11 / np.sqrt(14 * 9))
        assert row.max_error == pytest.approx(0.5)


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, tpudeploy.verify; assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
