"""The real compiler: what the short ways give is what the long way gives; killed at any moment, nothing is lost."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from conftest import link_toolchain
from test_graph import source_of
from tiny import write_checkpoint
from tpudeploy.compile import chip_pieces
from tpudeploy.compile.bmodel import forms
from tpudeploy.compile.bmodel.coefficients import CoefficientMap, write_coefficients
from tpudeploy.compile.bmodel.description import read_description
from tpudeploy.compile.build import BuiltBundle, build_bundle
from tpudeploy.compile.plan import BuildOptions, BuildPlan, plan_build
from tpudeploy.compile.toolchain import Toolchain, run_tool
from tpudeploy.compile.workshop import export_slice
from tpudeploy.contracts.bundle import MANIFEST_NAME, BundleFormat, Manifest
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.progress import StageEvent
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.contracts.slices import Slice, slices_of
from tpudeploy.errors import CompileError, ToolchainError
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.settings import Settings

pytestmark = pytest.mark.toolchain
SMALL = NetPlan(seq_length=64, prefill=(Stage(new_tokens=16, cache_length=64),), verify=())


def chip_plan(folder: Path, quant: QuantMode = QuantMode.INT8, **options: object) -> BuildPlan:
    chosen = BuildOptions.model_validate(
        {"quant": quant, "format": BundleFormat.BMODEL, "nets": SMALL, "jobs": 2} | options
    )
    return plan_build(source_of(folder), chosen, registry())


def manifest_of(bundle: BuiltBundle) -> Manifest:
    return Manifest.model_validate_json((bundle.folder / MANIFEST_NAME).read_bytes())


def without_time(bmodel: Path) -> bytes:
    """A bmodel's bytes without the text of its creation time, which is all that two compiles differ in."""
    return re.sub(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}", b"", bmodel.read_bytes())


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory, installed_toolchain: Toolchain) -> Iterator[Settings]:
    yield link_toolchain(tmp_path_factory.mktemp("chip") / "home")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("quant", list(QuantMode))
def test_every_quantization_compiles(module_home: Settings, checkpoint: Path, quant: QuantMode) -> None:
    events: list[StageEvent] = []
    built = build_bundle(chip_plan(checkpoint, quant), module_home, events.append)
    manifest = manifest_of(built)
    assert manifest.quant.mode is quant
    assert set(manifest.net_files) == {net.name for net in manifest.nets.nets}
    profiles = manifest.compiler.profiles
    assert set(profiles) == {net.pattern for net in manifest.nets.nets}
    assert manifest.compiler.cycles["block_cache_1"] == profiles["block_cache_i"].total_cycles > 0
    assert profiles["block_cache_i"].total_cycles >= profiles["block_cache_i"].dma_cycles > 0
    assert {event.stage for event in events} >= {"transform", "deploy", "proof", "quantize", "slice", "bundle"}
    assert "notice" not in {event.stage for event in events}
    assert events[-1].done == events[-1].total == 4
    again = build_bundle(chip_plan(checkpoint, quant), module_home)
    assert again.reused
    assert again.folder == built.folder


def test_a_bundle_leaves_no_pieces_behind(module_home: Settings, checkpoint: Path) -> None:
    built = build_bundle(chip_plan(checkpoint), module_home)
    left = [path for path in module_home.stages_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]
    # Templates and proofs stay: they hold no weights, and serve the next model of this shape.
    kept = {"template.mlir", "hollow.bmodel", "learnt.json", "kernel.bin", "profile.json", "proof.json"}
    assert {path.name for path in left} == kept
    names = {path.name for path in built.folder.iterdir()}
    assert names == {"model.bmodel", MANIFEST_NAME}


def test_stages_of_a_layer_share_its_weights(module_home: Settings, checkpoint: Path) -> None:
    """Also one that attends in chunks, which may change the order in which the compiler lays out weights."""
    chunked = Stage(new_tokens=256, cache_length=0)
    nets = NetPlan(seq_length=256, prefill=(Stage(new_tokens=16, cache_length=256), chunked), verify=())
    built = build_bundle(chip_plan(checkpoint, nets=nets), module_home)
    description = read_description(built.folder / "model.bmodel")
    assert len(description.names) == 10
    blocks = {description.binary(item.binary) for item in description.weights}
    assert len(blocks) == 4  # embedding, two layers, output head


@pytest.mark.parametrize("vendor_name", ["W8F16", "W4F16", "F16"])
def test_short_and_long_way_give_the_same_bytes(
    tmp_path: Path, module_home: Settings, installed_toolchain: Toolchain, checkpoint: Path, vendor_name: str
) -> None:
    """What is joined from templates must be, byte for byte, what the compiler makes of every net of the model."""
    quant = {"W8F16": QuantMode.INT8, "W4F16": QuantMode.INT4, "F16": QuantMode.F16}[vendor_name]
    plan = chip_plan(checkpoint, quant)
    assert plan.scheme.vendor_name == vendor_name
    short = build_bundle(plan, module_home).folder / "model.bmodel"
    slices = [the_long_way(part, plan, installed_toolchain, tmp_path / part.name) for part in slices_of(plan.net_set)]
    arguments = ["--combine", *map(str, slices), "-o", "long.bmodel"]
    run_tool(installed_toolchain, "model_tool", arguments, cwd=tmp_path, log=tmp_path / "log")
    assert without_time(short) == without_time(tmp_path / "long.bmodel")


def the_long_way(part: Slice, plan: BuildPlan, toolchain: Toolchain, folder: Path) -> Path:
    """A slice's nets through model_transform and model_deploy, each with its own weights, and combined."""
    folder.mkdir()
    exported = export_slice(part, plan.source.weights(), plan.export, folder)
    pieces = []
    for net in part.nets:
        work = folder / net.name
        work.mkdir()
        for path in (exported.weight_path, folder / f"{net.name}.onnx"):
            (work / path.name).symlink_to(path)
        names = ["--model_name", net.name, "--model_def", f"{net.name}.onnx", "--mlir", f"{net.name}.mlir"]
        run_tool(toolchain, "model_transform", names, cwd=work, log=work / "log")
        scheme = plan.scheme.of_kind(net.kind)
        group = ["--q_group_size", "64"] if scheme.weight_bits == 4 else []
        arguments = ["--mlir", f"{net.name}.mlir", "--quantize", scheme.vendor_name, *group]
        arguments += ["--quant_input", "--quant_output", "--chip", "bm1684x", "--model", "net.bmodel"]
        run_tool(toolchain, "model_deploy", arguments, cwd=work, log=work / "log")
        pieces.append(work / "net.bmodel")
    arguments = ["--combine", *map(str, pieces), "-o", "slice.bmodel"]
    run_tool(toolchain, "model_tool", arguments, cwd=folder, log=folder / "log")
    return folder / "slice.bmodel"


def test_what_is_not_understood_goes_the_long_way(
    tmp_path: Path, chip_settings: Settings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout that is not known, or a proof that fails: a notice, and the same bundle through the compiler."""
    plan = chip_plan(checkpoint)
    usual = build_bundle(plan, chip_settings).folder / "model.bmodel"
    expected = without_time(usual)
    shutil.rmtree(chip_settings.stages_dir)  # what was learnt and proved
    real_forms = forms.WeightForms.possible
    without_scales = lambda self: (form for form in real_forms(self) if form is not forms.Form.SCALES)  # noqa: E731
    events: list[StageEvent] = []
    with monkeypatch.context() as patch:
        patch.setattr(forms.WeightForms, "possible", without_scales)
        build_bundle(plan, chip_settings, events.append, force=True)
    assert any("no known form" in event.item for event in events if event.stage == "notice")
    assert without_time(usual) == expected
    shutil.rmtree(chip_settings.stages_dir)
    events = []

    def one_byte_wrong(layout: CoefficientMap, weights: Mapping[str, forms.WeightForms], path: Path) -> str:
        """What the templates cannot show, because it happens to a model's own weights: only the proof can find it."""
        write_coefficients(layout, weights, path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    with monkeypatch.context() as patch:
        patch.setattr(chip_pieces, "write_coefficients", one_byte_wrong)
        build_bundle(plan, chip_settings, events.append, force=True)
    assert any("differs" in event.item for event in events if event.stage == "notice")
    assert {event.item for event in events if event.stage == "deploy"} >= {"block_kv_1", "block_cache_1"}


def test_no_toolchain_is_one_clear_error(settings: Settings, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolchainError, match="toolchain install"):
        build_bundle(chip_plan(checkpoint), settings)
    assert not settings.bundles_dir.exists()


def test_a_failing_tool_shows_its_last_words_and_its_log(
    tmp_path: Path, chip_settings: Settings, installed_toolchain: Toolchain
) -> None:
    log = tmp_path / "logs" / "x.log"
    with pytest.raises(CompileError) as caught:
        run_tool(installed_toolchain, "model_transform", ["--model_def", "missing.onnx"], cwd=tmp_path, log=log)
    assert str(log) in str(caught.value)
    assert log.is_file()


BUILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_compile_chip import chip_plan, build_bundle, Settings
events = []
def note(event):
    print(event.stage, event.item, event.status, flush=True)
built = build_bundle(chip_plan(Path({folder!r})), Settings(home=Path({home!r})), note)
print("built", built.folder, flush=True)
"""


def _start(folder: Path, home: Path) -> subprocess.Popen[str]:
    code = BUILD.format(path=sys.path, folder=str(folder), home=str(home))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("delay_s", [2.0, 5.0, 9.0])
def test_killed_at_any_moment_it_goes_on(chip_settings: Settings, checkpoint: Path, delay_s: float) -> None:
    home = chip_settings.home
    first = _start(checkpoint, home)
    time.sleep(delay_s)
    os.kill(first.pid, signal.SIGKILL)
    said = first.communicate()[0]
    for bundle in chip_settings.bundles_dir.glob("[!.]*"):
        open_bundle(bundle)  # what looks whole is whole, to the last digest
    second = _start(checkpoint, home)
    again = second.communicate()[0]
    assert second.returncode == 0, again
    folder = Path(again.split("built ")[1].strip())
    open_bundle(folder)
    assert list(home.rglob("*.npz")) == []  # random weights of the killed one, at full width gigabytes
    # Everything that the first run reported as finished was not done again.
    finished = set(re.findall(r"^(transform|deploy) (\S+) finished", said, re.M))
    repeated = set(re.findall(r"^(transform|deploy) (\S+) finished", again, re.M))
    assert not finished & repeated


def test_two_at_once_build_it_once(chip_settings: Settings, checkpoint: Path) -> None:
    both = [_start(checkpoint, chip_settings.home) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    deployed = [len(re.findall(r"^deploy \S+ finished", text, re.M)) for text in said]
    assert sorted(deployed) == [0, 5]  # one for each shape of net, however many layers
    assert sum("wait another tpudeploy" in text for text in said) == 1


def test_interrupt_stops_the_vendor_tools(chip_settings: Settings, checkpoint: Path) -> None:
    process = _start(checkpoint, chip_settings.home)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("deploy"):
            break
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    said, _ = process.communicate(timeout=30)
    assert "built" not in said
    assert time.monotonic() - start < 15
    home = str(chip_settings.home)
    left = [p for p in psutil.process_iter(["cmdline"]) if any(home in part for part in p.info["cmdline"] or [])]
    assert left == []
    assert list(chip_settings.home.rglob("*.incomplete")) == []
