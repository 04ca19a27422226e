"""What a model needs on each chip, and what becomes of one that does not fit: nothing of it is built or loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pluggy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_support import environment, run_cli
from third_party.tpudeploy_acme.backend import AcmeChip
from tiny import write_checkpoint
from torch_session import make_manifest, open_session, random_decoder, tiny_config
from tpudeploy import hookspecs
from tpudeploy.contracts.backend import Availability, Backend, DeviceInfo, MemoryHeap, NetMemory
from tpudeploy.contracts.bundle import BundleFile, BundleFormat, Manifest
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.contracts.net import NetKind, NetSet, Split
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.quant import QuantMode, resolve_quant
from tpudeploy.errors import BackendError, UsageError
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.launch.fit import require_room, soc_finding
from tpudeploy.launch.fit_report import report_fit
from tpudeploy.launch.foreign import ForeignTarget
from tpudeploy.launch.memory import estimate_memory, scratch_elements
from tpudeploy.launch.requirement import Requirement, model_requirement
from tpudeploy.launch.soc_memory import MOST_MIB, USUAL_MIB, advice, edit_command, heaps_for
from tpudeploy.launch.targets import load_bundle
from tpudeploy.pack import pack_file
from tpudeploy.plugins import PluginRegistry, registry
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.footprint import footprints
from tpudeploy.settings import Settings

INT8 = resolve_quant(QuantMode.INT8, DType.F16)
EMPTY = Settings(home=Path("/nowhere"))


def nets_of(config: DecoderConfig, *, chips: int = 1, split: Split = Split.TENSOR, seq_length: int = 512) -> NetSet:
    return split_nets(plan_nets(config, NetPlan(seq_length=seq_length, verify=()), DType.F16), chips, split)


def config_of(model: str, variant: str) -> DecoderConfig:
    return next(v.config for v in registry().model(model).variants() if v.name == variant)


def chatglm3() -> DecoderConfig:
    return config_of("chatglm3", "6b")


class Chip(AcmeChip):
    """A chip with so much memory; nothing may be loaded on it."""

    def __init__(self, memory_bytes: int | None, *, heaps: Sequence[MemoryHeap] = (), needs: int | None = None) -> None:
        self._info = DeviceInfo(
            id=0, name="Acme", memory_bytes=memory_bytes, platform="SoC" if heaps else "PCIe", heaps=tuple(heaps)
        )
        self._needs = needs

    def availability(self) -> Availability:
        return Availability(available=True)

    def devices(self) -> Sequence[DeviceInfo]:
        return [self._info, self._info.model_copy(update={"id": 1})]

    def memory_needed(self, folder: Path, nets: Loadable) -> Sequence[NetMemory] | None:
        return None if self._needs is None else [NetMemory(weights_bytes=self._needs)] * nets.chips


def plugins(backend: Backend) -> PluginRegistry:
    manager = pluggy.PluginManager("tpudeploy")
    manager.add_hookspecs(hookspecs)
    found = PluginRegistry(manager)
    found.backends[backend.name] = backend
    found.models.update(registry().models)
    return found


class TestNeed:
    def test_buffers_are_what_an_engine_allocates(self) -> None:
        plan = NetPlan(seq_length=64, verify=())
        session = open_session(random_decoder(tiny_config()), plan)
        engine = Engine(session)
        (counted,) = footprints(session.manifest.nets)
        assert counted.kv_bytes + counted.other_bytes == session.memory().buffers_bytes
        config = tiny_config()
        assert counted.kv_bytes == 2 * config.num_layers * engine.cache.capacity * config.kv_size * 4

    def test_weights_are_what_the_compiler_made(self) -> None:
        """Figures of a full-width layer of ChatGLM3 in W8F16, compiled with TPU-MLIR 1.30.2."""
        config = chatglm3().model_copy(update={"num_layers": 1})
        (chip,) = model_requirement("x", nets_of(config), INT8).chips
        measured = 532_676_608 + 213_606_400 + 278_831_104
        assert chip.weights_bytes == pytest.approx(measured, rel=1e-3)
        assert chip.instructions_bytes + chip.runtime_bytes >= 5_963_464

    @pytest.mark.parametrize(
        ("new", "cache", "measured"),
        [
            (1, 8192, 12_673_024),
            (128, 512, 13_438_976),
            (512, 0, 51_515_392),
            (512, 2048, 55_709_696),
            (512, 8192, 68_292_608),
        ],
    )
    def test_scratch_is_a_little_more_than_compiled_nets_take(self, new: int, cache: int, measured: int) -> None:
        """Figures of full-width layers of ChatGLM3 in W8F16, compiled with TPU-MLIR 1.30.2."""
        assert measured < 2 * scratch_elements(chatglm3(), new, cache) < 1.4 * measured

    @pytest.mark.parametrize("mode", list(QuantMode))
    def test_agrees_with_what_list_models_says(self, mode: QuantMode) -> None:
        scheme = resolve_quant(mode, DType.F16)
        nets = plan_nets(chatglm3(), NetPlan(seq_length=512, verify=()), scheme.activation)
        (chip,) = model_requirement("x", nets, scheme).chips
        listed = estimate_memory(chatglm3(), scheme, 512)
        assert (chip.weights_bytes, chip.kv_bytes) == (
            pytest.approx(listed.weights_bytes, rel=1e-3),
            listed.kv_bytes,
        )
        assert chip.total_bytes == pytest.approx(listed.total_bytes, rel=5e-3)

    @pytest.mark.parametrize("split", list(Split))
    def test_several_chips_share_the_weights(self, split: Split) -> None:
        one = model_requirement("x", nets_of(chatglm3()), INT8).chips[0]
        parts = model_requirement("x", nets_of(chatglm3(), chips=2, split=split), INT8).chips
        assert [part.chip for part in parts] == [0, 1]
        assert sum(part.weights_bytes for part in parts) == pytest.approx(one.weights_bytes, rel=2e-3)
        assert sum(part.kv_bytes for part in parts) == one.kv_bytes
        assert max(part.weights_bytes for part in parts) < 0.56 * one.weights_bytes

    def test_a_longer_conversation_needs_more(self) -> None:
        short, long = (model_requirement("x", nets_of(chatglm3(), seq_length=n), INT8).chips[0] for n in (512, 8192))
        assert long.kv_bytes > 8 * short.kv_bytes
        assert long.weights_bytes == short.weights_bytes


class TestSoc:
    def test_glm4_in_int8(self) -> None:
        """Its weights alone are over 10 GB: an npu heap of 7168 MiB, as is claimed, holds it only with the others."""
        (chip,) = model_requirement("glm4", nets_of(config_of("glm4", "9b-chat")), INT8).chips
        assert 10.3e9 < chip.weights_bytes < 10.5e9
        assert 7168 < chip.total_bytes >> 20 < 7168 + 2048 + 2048
        finding = soc_finding(model_requirement("glm4", nets_of(config_of("glm4", "9b-chat")), INT8))
        assert finding.verdict == "warn"
        assert "./memory_edit.sh -c -npu 5573 -vpu 2048 -vpp 3072" in finding.remedy
        assert "emmcboot.itb" in finding.remedy

    @given(st.integers(0, 20_000))
    def test_heaps_suffice_and_stay_within_limits(self, needed_mib: int) -> None:
        heaps = heaps_for(needed_mib << 20)
        if heaps is None:
            assert needed_mib > sum(MOST_MIB.values()) - 2 * 256
            assert "No setting" in advice(needed_mib << 20)
            return
        assert sum(heaps.values()) >= needed_mib
        assert all(USUAL_MIB[name] <= size <= MOST_MIB[name] for name, size in heaps.items())
        assert edit_command(heaps) in advice(needed_mib << 20)

    def test_what_suffices_stays_as_it_is(self) -> None:
        assert heaps_for(6000 << 20) == USUAL_MIB
        large = {"npu": 7615, "vpu": 3072, "vpp": 4096}
        assert heaps_for(14_000 << 20, large) == large
        assert edit_command(large) == "./memory_edit.sh -c -npu 7615 -vpu 3072 -vpp 4096"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = make_manifest(plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F16))
    return Bundle(tmp_path, manifest.model_copy(update={"format": BundleFormat.BMODEL}))


class TestRefusal:
    def needed(self) -> Requirement:
        return model_requirement("chatglm3:6b", nets_of(chatglm3()), INT8)

    def test_with_figures(self) -> None:
        require_room(self.needed(), Chip(8 * 10**9), (0,))
        with pytest.raises(
            BackendError, match=r"chatglm3:6b does not fit: Acme needs 7\.00 GB and has 6\.00 GB in all"
        ):
            require_room(self.needed(), Chip(6 * 10**9), (0,))
        require_room(self.needed(), Chip(None), (0,))  # a device that does not tell is tried

    def test_on_a_soc_the_command_is_told(self) -> None:
        heaps = [MemoryHeap(name=name, total_bytes=2 << 30, free_bytes=1 << 30) for name in ("npu", "vpp", "vpu")]
        with pytest.raises(BackendError, match=r"npu 1024 MiB") as caught:
            require_room(self.needed(), Chip(6 << 30, heaps=heaps), (0,))
        assert "`./memory_edit.sh -c -npu 3095 -vpu 2048 -vpp 2048`" in caught.value.hint

    def test_a_bundle_is_not_loaded(self, bundle: Bundle) -> None:
        """Acme's load fails in other words: it must not be called."""
        found = plugins(Chip(10**9, needs=10**9))
        with pytest.raises(BackendError, match=r"does not fit: Acme needs 1\.0\d GB and has 1\.00 GB free"):
            load_bundle(bundle, found, "acme-chip", ())
        with pytest.raises(BackendError, match="there is no Acme chip"):
            load_bundle(bundle, plugins(Chip(2 * 10**9, needs=10**9)), "acme-chip", ())

    def test_what_others_use_counts_for_a_bundle(self, bundle: Bundle) -> None:
        chip = Chip(2 * 10**9, needs=10**9)
        chip._info = chip._info.model_copy(update={"used_bytes": 15 * 10**8, "holder": 4711})
        with pytest.raises(BackendError, match=r"has 0\.50 GB free") as caught:
            load_bundle(bundle, plugins(chip), "acme-chip", ())
        assert "End process 4711" in caught.value.hint

    def test_a_bmodel_of_others_is_not_loaded(self, tmp_path: Path) -> None:
        adapter = registry().model("chatglm3")
        nets = Loadable(format=BundleFormat.BMODEL, nets=(), net_files={}, size_bytes=10**9)

        def target(chip: Chip) -> ForeignTarget:
            path = tmp_path / "theirs.bmodel"
            layout: Any = None  # looked at once it is loaded
            variant = adapter.variants()[0]
            request = LaunchRequest(model="chatglm3")
            return ForeignTarget(request, adapter, variant, chip, path, nets, layout, None, None, None)

        with pytest.raises(
            BackendError, match=r"theirs\.bmodel does not fit: Acme needs 1\.06 GB and has 1\.00 GB free"
        ):
            target(Chip(10**9, needs=10**9)).load()
        with pytest.raises(BackendError, match="there is no Acme chip"):
            target(Chip(2 * 10**9, needs=10**9)).load()

    def test_nothing_is_built_for_a_chip_that_is_too_small(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def build(*_: object, **__: object) -> None:
            raise AssertionError("it was built")

        monkeypatch.setattr("tpudeploy.launch.targets.build", build)
        folder = write_checkpoint(tmp_path / "c")
        request = LaunchRequest(model="chatglm3", model_dir=folder, backend="acme-chip", seq_length=64)
        settings = Settings(home=tmp_path / "home")
        with pytest.raises(BackendError, match="chatglm3-custom does not fit"):
            open_target(request, settings, plugins(Chip(10**6))).load()
        with pytest.raises(AssertionError, match="it was built"):
            open_target(request, settings, plugins(Chip(10**9))).load()


class TestReport:
    def test_only_real_chips_are_looked_at_unless_one_is_named(self) -> None:
        request = LaunchRequest(model="chatglm3:6b", quant="int8")
        chip = Chip(16 * 10**9)
        report = report_fit(request, EMPTY, plugins(chip))
        assert (report.backend, report.fits, report.soc) == ("acme-chip", True, None)
        assert report.devices[0].available_bytes == 16 * 10**9
        chip._info = chip._info.model_copy(update={"platform": ""})
        report = report_fit(request, EMPTY, plugins(chip))
        assert (report.backend, report.fits, report.devices[0].device) == ("", True, None)
        assert report.soc is not None
        assert (
            report_fit(request.model_copy(update={"backend": "acme-chip"}), EMPTY, plugins(chip)).backend == "acme-chip"
        )

    def test_several_chips(self) -> None:
        request = LaunchRequest(model="chatglm3:6b", quant="f16", devices=(0, 1))
        report = report_fit(request, EMPTY, plugins(Chip(8 * 10**9)), chips=2)
        assert [fit.need.chip for fit in report.devices] == [0, 1]
        assert report.fits
        assert report_fit(request, EMPTY, plugins(Chip(8 * 10**9))) == report  # as `run` takes it
        assert not report_fit(request.model_copy(update={"devices": ()}), EMPTY, plugins(Chip(8 * 10**9))).fits
        with pytest.raises(UsageError, match="plan is for 1 chip, and --device names 2"):
            report_fit(request, EMPTY, plugins(Chip(8 * 10**9)), chips=1)

    def test_on_the_command_line(self, tmp_path: Path) -> None:
        env = environment(tmp_path)
        done = run_cli("doctor", "--model", "chatglm3:6b", "--quant", "f16", env=env)
        assert done.returncode == 0, done.stderr
        assert "chatglm3:6b in f16, conversations of 512 tokens" in done.stdout
        assert "memory_edit.sh -c -npu" in done.stdout
        said = run_cli("doctor", "--model", "chatglm3:6b", "--seq-length", "2048", "--devices", "2", "--json", env=env)
        document = json.loads(said.stdout)
        assert document["requirement"]["seq_length"] == 2048
        assert len(document["devices"]) == 2
        assert document["devices"][1]["need"]["total_bytes"] > document["devices"][1]["need"]["weights_bytes"]
        assert document["fits"] is True

    def test_a_bundle_on_the_command_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = make_manifest(plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F32))
        _write(tmp_path / "bundle", manifest)
        said = run_cli("doctor", "--bundle", tmp_path / "bundle", "--json", env=environment(tmp_path / "home"))
        assert said.returncode == 0, said.stderr
        document = json.loads(said.stdout)
        (expected,) = footprints(manifest.nets)
        assert document["devices"][0]["need"]["kv_bytes"] == expected.kv_bytes
        assert document["backend"] == "cpu"
        assert document["soc"] is None
        gone = run_cli("doctor", "--bundle", tmp_path / "absent", env=environment(tmp_path / "home"))
        assert gone.returncode == 6

    def test_a_packed_bundle(self, bundle: Bundle, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(bytes(10**6))
        digest = hashlib.sha256(bytes(10**6)).hexdigest()
        file = BundleFile(path="m", size_bytes=10**6, sha256=digest)
        nets = bundle.manifest.nets
        manifest = bundle.manifest.model_copy(
            update={"files": (file,), "net_files": {net.name: "m" for net in nets.nets}}
        )
        (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
        packed = pack_file(Bundle(tmp_path, manifest), manifest, tmp_path / "one.tpubundle").path
        report = report_fit(LaunchRequest(bundle=packed), EMPTY, plugins(Chip(16 * 10**9, needs=1)))
        assert not report.requirement.exact  # nothing is unpacked to look at its nets
        assert report.requirement.chips[0].weights_bytes == 10**6
        assert report.requirement.chips[0].kv_bytes == footprints(nets)[0].kv_bytes

    def test_what_does_not_fit_is_an_exit_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tpudeploy.plugins.registry", lambda: plugins(Chip(10**9)))
        done = run_cli("doctor", "--model", "chatglm3:6b", env=environment(tmp_path))
        assert done.returncode == 1
        assert "FAIL  device 0  Acme needs" in done.stdout


def _write(folder: Path, manifest: Manifest) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def test_every_kind_of_net_has_an_estimate() -> None:
    (chip,) = model_requirement("x", nets_of(tiny_config(), seq_length=64), INT8).chips
    assert {net.kind for net in nets_of(tiny_config(), seq_length=64).nets} >= {NetKind.DECODE, NetKind.LM_HEAD}
    assert all(value >= 0 for value in chip.model_dump().values())
