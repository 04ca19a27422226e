"""The SAIL backends on a fake ``sophon.sail`` over the simulator: with EngineLLM and without, on one chip and two."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sail_behaviour import CHECKS, Check
from sail_support import fake_sail
from tpudeploy.compile.toolchain import Toolchain
from tpudeploy.contracts.backend import Backend, BoundNet, DeviceInfo, MemoryHeap, Session, TensorView
from tpudeploy.contracts.bundle import BundleFormat, Manifest
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.loadable import loadable_of
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.errors import BackendError, BundleError
from tpudeploy.testing.backend_suite import BackendSuite
from tpudeploy.testing.bundles import bmodel_bundle
from tpudeploy.testing.launching import Example, bind_fresh, example_of
from tpudeploy.testing.tiny_decoder import TinyDecoder
from tpudeploy_backends.bmrt.backend import BmrtBackend
from tpudeploy_backends.bmrt.bmodel import BmodelTensor, read_bmodel
from tpudeploy_backends.device_lock import LOCK_DIR_VARIABLE, device_holder
from tpudeploy_backends.sail.backend import PLATFORM_VARIABLE, SailMultiBackend, SailPcieBackend, SailSocBackend
from tpudeploy_backends.sail.device import LARGEST_BYTES
from tpudeploy_backends.sail.engines import LlmEngine, PlainEngine, allow_files, make_engine
from tpudeploy_backends.sail.session import SailSession

pytestmark = pytest.mark.toolchain
Compiled = tuple[Path, Manifest]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, installed_toolchain: Toolchain) -> Compiled:
    folder = tmp_path_factory.mktemp("compiled")
    return folder, bmodel_bundle(folder, TinyDecoder(), QuantMode.F16, installed_toolchain)


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder of a machine without chips."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def sail(installed_toolchain: Toolchain) -> Iterator[Any]:
    with fake_sail(installed_toolchain) as module:
        yield module


class OnFake(BackendSuite):
    """The conformance suite, with the fake in place while a class's tests run."""

    kind: ClassVar[Callable[[Path], Backend]]
    root: ClassVar[Path]
    compiled: ClassVar[Compiled]
    engine: ClassVar[str] = "EngineLLM"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def fake(cls, installed_toolchain: Toolchain, nowhere: Path, compiled: Compiled) -> Iterator[None]:
        cls.root, cls.compiled = nowhere, compiled
        with fake_sail(installed_toolchain) as sail:
            if cls.engine != "EngineLLM":
                del sail.EngineLLM
            yield
            assert getattr(sail, cls.engine).opened > 0

    @classmethod
    def make_backend(cls) -> Backend:
        return cls.kind(cls.root)

    @classmethod
    def make_bundle(cls, folder: Path, backend: Backend) -> Manifest:
        shutil.copytree(cls.compiled[0], folder, dirs_exist_ok=True)
        return cls.compiled[1]


class TestSailPcie(OnFake):
    kind = SailPcieBackend


class TestSailMultiWithoutEngineLlm(OnFake):
    kind = SailMultiBackend
    engine = "Engine"


# The fake, held to what was recorded of the real module


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_fake_behaves_as_recorded(sail: Any, compiled: Compiled, check: Check) -> None:
    folder, manifest = compiled
    check(sail, folder / "model.bmodel", manifest)


@pytest.mark.parametrize("engine", ["EngineLLM", "Engine"])
def test_the_fake_crashes_where_the_real_one_does(sail: Any, compiled: Compiled, engine: str) -> None:
    folder, _ = compiled
    path = folder / "model.bmodel"
    net = read_bmodel(path).net("lm_head")
    assert net is not None
    handle = sail.Handle(0)
    given = sail.Tensor(handle, list(net.inputs[0].shape), sail.Dtype.BM_FLOAT16, False, True)
    short = sail.Tensor(handle, [1, 1, 8], sail.Dtype.BM_FLOAT16, False, True)
    found = sail.Tensor(handle, list(net.outputs[0].shape), sail.Dtype.BM_FLOAT16, False, True)
    view = sail.Tensor(short, [8], 0, True)
    del short
    if engine == "Engine":
        made = sail.Engine(0)
        assert made.load(str(path))
        first, last = net.inputs[0].name, net.outputs[0].name
    else:
        made = sail.EngineLLM(str(path), [0])
        first = last = 0
    narrow = sail.Tensor(found, [1, 1, 8], 0, True)
    calls = [
        lambda: made.process("lm_head", {}, {last: found}),
        lambda: made.process("lm_head", {first: given}, {last: narrow}),
        view.asnumpy,
        lambda: sail.Handle(99),
    ]
    calls += [lambda: made.process("nonsense", {}, {})] if engine == "Engine" else []
    for call in calls:
        with pytest.raises(sail.Crash):
            call()


# The session


@pytest.fixture(params=["EngineLLM", "Engine"])
def session(
    request: pytest.FixtureRequest, sail: Any, nowhere: Path, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Session]:
    if request.param == "Engine":
        monkeypatch.delattr(sail, "EngineLLM")
    with SailPcieBackend(nowhere).open(*compiled) as opened:
        yield opened


def run_head(session: Session) -> float:
    """Launch ``lm_head`` on its example. :returns: how far it is off."""
    net = session.manifest.nets.net("lm_head")
    example = example_of(net, session.manifest.quant)
    bound = bind_fresh(session, net, example)
    bound.net.launch()
    return float(np.abs(session.read(bound.outputs["logits"]) - example.outputs["logits"]).max())


def test_one_buffer_holds_any_types(session: Session) -> None:
    """What a net reads may lie beside elements of another size, at any offset that suits its own."""
    net = session.manifest.nets.net("lm_head")
    example = example_of(net, session.manifest.quant)
    bound = bind_fresh(session, net, example)
    bound.net.launch()
    wanted = session.read(bound.outputs["logits"])
    given, found = net.inputs[0], net.outputs[0]
    buffer = session.allocate(18 + given.size_bytes + found.size_bytes)
    session.write(TensorView(buffer, (4,), DType.I32), np.array([1, 2, 3, 4], dtype=np.int32))
    inside = TensorView(buffer, given.shape, given.dtype, 18)
    result = TensorView(buffer, found.shape, found.dtype, 18 + given.size_bytes)
    session.write(inside, example.inputs["hidden_states"])
    session.bind("lm_head", {"hidden_states": inside}, {"logits": result}).launch()
    assert (session.read(result) == wanted).all()
    assert session.read(TensorView(buffer, (4,), DType.I32)).tolist() == [1, 2, 3, 4]


def test_moving_makes_one_view(session: Session, sail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = session.manifest.nets.net("lm_head")
    bound = bind_fresh(session, net, example_of(net, session.manifest.quant), room=2)
    made = []
    own_view = sail.Tensor._view
    monkeypatch.setattr(sail.Tensor, "_view", lambda *arguments: (made.append(1), own_view(*arguments))[1])
    size = bound.outputs["logits"].size_bytes
    for offset in (size, size, 0, 0):
        bound.net.move_output("logits", offset)
    bound.net.launch()
    bound.net.launch()
    assert len(made) == 2


def test_a_launch_that_fails_is_told(session: Session, sail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = session.manifest.nets.net("lm_head")
    bound = bind_fresh(session, net, example_of(net, session.manifest.quant))
    monkeypatch.setattr(sail._Runtime, "_launch", lambda *arguments: False)
    with pytest.raises(BackendError, match=r"sail cannot run net lm_head: .+err"):
        bound.net.launch()


def test_copies_that_fail_are_told(session: Session, sail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view = TensorView(session.allocate(64), (4,), DType.I32)

    def fail(*arguments: object) -> None:
        raise sail.SailTensorError("gone")

    monkeypatch.setattr(sail.Tensor, "update_data", fail)
    monkeypatch.setattr(sail.Tensor, "asnumpy", fail)
    with pytest.raises(BackendError, match="writing to device 0 failed: gone"):
        session.write(view, np.zeros(4, dtype=np.int32))
    with pytest.raises(BackendError, match="reading from device 0 failed: gone"):
        session.read(view)


def test_refuses_what_sail_would_count_wrong(session: Session) -> None:
    with pytest.raises(BackendError, match="the most is"):
        session.allocate(LARGEST_BYTES + 1)


def test_refuses_what_ends_the_simulator(session: Session) -> None:
    assert isinstance(session, SailSession)
    session._devices[0]._budget.free_bytes = 8192
    session.allocate(4097)
    with pytest.raises(BackendError, match="a buffer needs 0 MiB, and 0 MiB are left"):
        session.allocate(1)


def test_the_vendor_is_not_heard(
    sail: Any, nowhere: Path, compiled: Compiled, capfd: pytest.CaptureFixture[str]
) -> None:
    with SailPcieBackend(nowhere).open(*compiled) as session:
        assert run_head(session) < 1e-2
    assert capfd.readouterr() == ("", "")


def test_nothing_is_heard_at_the_end_either(compiled: Compiled, tmp_path: Path) -> None:
    """The simulator takes leave when the process ends, on standard output."""
    folder, manifest = compiled
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    code = f"""
from pathlib import Path
from sail_support import fake_sail
from tpudeploy.compile.toolchain import find_toolchain
from tpudeploy.contracts.bundle import Manifest
from tpudeploy.settings import load_settings
from tpudeploy_backends.sail.backend import SailPcieBackend
manifest = Manifest.model_validate_json(Path({str(tmp_path / "manifest.json")!r}).read_text())
with fake_sail(find_toolchain(load_settings())):
    with SailPcieBackend(Path({str(tmp_path)!r})).open(Path({str(folder)!r}), manifest):
        print("opened")
print("closed")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "opened\nclosed\n", "")


def divided(manifest: Manifest) -> Manifest:
    """The second layer and the head on a second chip."""
    nets = tuple(
        net.model_copy(update={"chip": int(net.layer == 1 or net.name == "lm_head")}) for net in manifest.nets.nets
    )
    return manifest.model_copy(update={"nets": manifest.nets.model_copy(update={"nets": nets, "chips": 2})})


def test_which_devices_two_chips_may_be(
    sail: Any, nowhere: Path, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = compiled[0], divided(compiled[1])
    backend = SailMultiBackend(nowhere)
    with pytest.raises(BackendError, match="no device 1; sail sees 0"):
        backend.open(folder, manifest, devices=(0, 1))
    monkeypatch.setattr(sail, "DEVICES", 2)
    for wrong in ((0,), (1, 1), (0, 1, 2), (0, 2)):
        with pytest.raises(BackendError):
            backend.open(folder, manifest, devices=wrong)
    with pytest.raises(BackendError, match="sail-pcie drives one"):
        SailPcieBackend(nowhere).open(folder, manifest, devices=(0, 1))
    assert [info.id for info in backend.devices()] == [0, 1]


@pytest.fixture(params=["simulated", "card"])
def two_chips(
    request: pytest.FixtureRequest, sail: Any, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Session]:
    """With device nodes, as on a card: launches are made by a thread for each chip."""
    monkeypatch.setattr(sail, "DEVICES", 2)
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path))
    root = tmp_path / "root"
    if request.param == "card":
        (card(root) / "dev/bm-sophon1").touch()
    with SailMultiBackend(root).open(compiled[0], divided(compiled[1]), devices=(1, 0)) as session:
        yield session


def test_two_chips(two_chips: Session) -> None:
    """The fake knows a tensor of the wrong chip."""
    manifest = two_chips.manifest
    launched: list[tuple[NetSpec, dict[str, TensorView], Example]] = []
    for _ in range(2):
        for name in ("block_cache_0", "block_cache_1", "lm_head"):
            net = manifest.nets.net(name)
            example = example_of(net, manifest.quant)
            inputs, outputs = (
                {spec.name: two_chips.tensor(spec, chip=net.chip) for spec in specs}
                for specs in (net.inputs, net.outputs)
            )
            for spec in net.inputs:
                two_chips.write(inputs[spec.name], example.inputs[spec.name])
            bound = two_chips.bind(name, inputs, outputs)
            for _ in range(2):  # the first is made by this thread
                bound.launch()
            launched.append((net, outputs, example))
    two_chips.sync()
    for net, outputs, example in launched:
        for spec in net.outputs:
            assert np.abs(two_chips.read(outputs[spec.name]) - example.outputs[spec.name]).max() < 1e-2
    with pytest.raises(BackendError, match="no chip 2"):
        two_chips.allocate(64, chip=2)


@pytest.mark.parametrize("two_chips", ["card"], indirect=True)
def test_chips_compute_at_the_same_time(two_chips: Session, sail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launch waits for the other chip's: one after the other, they would wait for ever."""
    manifest = two_chips.manifest
    bound = []
    for name in ("embedding_cache", "lm_head"):
        net = manifest.nets.net(name)
        views = [{s.name: two_chips.tensor(s, chip=net.chip) for s in specs} for specs in (net.inputs, net.outputs)]
        bound.append(two_chips.bind(name, *views))
        bound[-1].launch()
    meeting = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(sail._Runtime, "_launch", lambda *arguments: meeting.wait() >= 0)
    for net_bound in bound:
        net_bound.launch()
    two_chips.sync()
    monkeypatch.setattr(sail._Runtime, "_launch", lambda *arguments: False)
    bound[1].launch()
    with pytest.raises(BackendError, match="sail cannot run net lm_head"):
        two_chips.sync()
    two_chips.sync()
    bound[0].launch()  # and the session is closed without waiting for what fails


@pytest.fixture
def embedding_and_head(two_chips: Session) -> list[BoundNet]:
    """A net on each chip, launched once already."""
    bound = []
    for name in ("embedding_cache", "lm_head"):
        net = two_chips.manifest.nets.net(name)
        views = [{s.name: two_chips.tensor(s, chip=net.chip) for s in specs} for specs in (net.inputs, net.outputs)]
        bound.append(two_chips.bind(name, *views))
        bound[-1].launch()
    return bound


@pytest.mark.parametrize("two_chips", ["card"], indirect=True)
def test_a_failure_is_told_once(
    two_chips: Session, embedding_and_head: list[BoundNet], sail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails behind the first failure, on any chip, is not the failure of a later call."""
    embedding, head = embedding_and_head
    launch = sail._Runtime._launch
    monkeypatch.setattr(sail._Runtime, "_launch", lambda *arguments: False)
    for bound in (head, embedding, head, embedding):
        bound.launch()
    with pytest.raises(BackendError, match="sail cannot run net embedding_cache"):
        two_chips.sync()
    monkeypatch.setattr(sail._Runtime, "_launch", launch)
    for chip in (0, 1):
        view = TensorView(two_chips.allocate(16, chip=chip), (4,), DType.I32)
        two_chips.write(view, np.arange(4, dtype=np.int32))
        assert two_chips.read(view).tolist() == [0, 1, 2, 3]
    head.launch()
    two_chips.sync()


@pytest.mark.parametrize("two_chips", ["card"], indirect=True)
def test_ctrl_c_loses_no_launch(
    two_chips: Session, embedding_and_head: list[BoundNet], sail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(two_chips, SailSession)
    device = two_chips._devices[1]
    assert device._thread is not None
    submit = device._thread.submit

    def interrupted(call: Callable[[], None]) -> Future[None]:
        started = submit(call)
        signal.raise_signal(signal.SIGINT)
        return started

    monkeypatch.setattr(device._thread, "submit", interrupted)
    monkeypatch.setattr(sail._Runtime, "_launch", lambda *arguments: False)
    with pytest.raises(KeyboardInterrupt):
        embedding_and_head[1].launch()
    with pytest.raises(BackendError, match="sail cannot run net lm_head"):
        two_chips.sync()


def test_copies_lie_on_the_device(session: Session, sail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = (session.allocate(64) for _ in range(2))
    session.write(TensorView(source, (8,), DType.I32), np.arange(8, dtype=np.int32))
    monkeypatch.delattr(sail.Tensor, "asnumpy")
    session.copy(TensorView(source, (2,), DType.I32, 8), TensorView(target, (4,), DType.F16, 16))
    monkeypatch.undo()
    assert session.read(TensorView(target, (8,), DType.I32)).tolist() == [0, 0, 0, 0, 2, 3, 0, 0]


# Engines


def test_engine_llm_only_where_files_allow_it(sail: Any, compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"model.bmodel": read_bmodel(compiled[0] / "model.bmodel")}
    assert isinstance(make_engine(sail, 0, models), LlmEngine)
    assert isinstance(make_engine(sail, 0, models | {"other.bmodel": models["model.bmodel"]}), PlainEngine)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 128))
    assert isinstance(make_engine(sail, 0, models), PlainEngine)


def test_the_limit_of_open_files_is_raised_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    assert allow_files(100)
    assert not asked
    assert allow_files(2000)
    assert 2000 < asked[0][0] < 4096
    assert asked[0][1] == 4096
    assert not allow_files(5000)


def test_names_that_sail_would_confuse(sail: Any, compiled: Compiled) -> None:
    model = read_bmodel(compiled[0] / "model.bmodel")
    net = model.nets[0]
    twice = (BmodelTensor("same", (1,), 1), BmodelTensor("same", (1,), 1))
    changed = type(net)(**(net.__dict__ | {"inputs": twice}))
    models = {"a": type(model)(**(model.__dict__ | {"nets": (changed,)})), "b": model}
    with pytest.raises(BundleError, match="several tensors same"):
        make_engine(sail, 0, models)


@pytest.mark.parametrize("engine", ["EngineLLM", "Engine"])
def test_a_file_that_sail_refuses(
    sail: Any, nowhere: Path, compiled: Compiled, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    if engine == "Engine":
        monkeypatch.delattr(sail, "EngineLLM")
    monkeypatch.setattr(sail._Runtime, "_load", lambda *arguments: False)
    with pytest.raises(BackendError, match=r"sail refuses model\.bmodel: .*FAKE sail. Load"):
        SailPcieBackend(nowhere).open(*compiled)


def test_a_sail_without_views_is_too_old(
    sail: Any, nowhere: Path, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise TypeError("incompatible constructor arguments")

    monkeypatch.setattr(sail.Tensor, "_view", refuse)
    with SailPcieBackend(nowhere).open(*compiled) as session, pytest.raises(BackendError, match="Install sophon-sail"):
        session.allocate(64)


def test_a_device_that_does_not_open(
    sail: Any, nowhere: Path, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        raise sail.SailDeviceError("init device failure")

    monkeypatch.setattr(sail, "Handle", refuse)
    with pytest.raises(BackendError, match="sail cannot open device 0: init device failure"):
        SailPcieBackend(nowhere).open(*compiled)


# Where it can run


def card(root: Path) -> Path:
    """A root folder of a machine with a card's chip, which is its own device node."""
    for name in ("dev/bm-sophon0", "dev/bmdev-ctl", "proc/bmsophon/card0/chipid"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def soc(root: Path) -> Path:
    for name in ("dev/bm-tpu0", "proc/vpuinfo", "proc/jpuinfo"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def available(root: Path) -> set[str]:
    backends = (SailPcieBackend(root), SailSocBackend(root), SailMultiBackend(root))
    return {backend.name for backend in backends if backend.availability().available}


def test_the_machine_decides(sail: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLATFORM_VARIABLE, raising=False)
    assert available(tmp_path / "empty") == {"sail-pcie", "sail-multi"}
    assert available(card(tmp_path / "card")) == {"sail-pcie", "sail-multi"}
    assert available(soc(tmp_path / "soc")) == {"sail-soc", "sail-multi"}
    monkeypatch.setenv(PLATFORM_VARIABLE, "SoC")
    assert available(tmp_path / "empty") == {"sail-soc", "sail-multi"}
    monkeypatch.setenv(PLATFORM_VARIABLE, "abacus")
    assert available(tmp_path / "empty") == set()
    assert "pcie, soc" in SailPcieBackend(tmp_path).availability().remedy


def test_simulated_chips_are_not_chosen_by_themselves(tmp_path: Path) -> None:
    from tpudeploy_backends.cpu.backend import CpuBackend

    assert SailPcieBackend(tmp_path).priority < CpuBackend.priority < SailPcieBackend(card(tmp_path)).priority


@pytest.mark.parametrize("count", [0, None])
def test_without_a_chip(sail: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    def count_them() -> int:
        if count is None:
            raise sail.SailDeviceError("bm_dev_getcount failed")
        return count

    monkeypatch.setattr(sail, "get_available_tpu_num", count_them)
    backend = SailPcieBackend(tmp_path)
    assert not backend.availability().available
    assert "tpudeploy doctor" in backend.availability().remedy
    assert backend.devices() == []


def test_real_chips_are_locked(sail: Any, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "locks"))
    (tmp_path / "locks").mkdir()
    backend = SailPcieBackend(card(tmp_path))
    with backend.open(*compiled) as session:
        assert run_head(session) < 1e-2
        code = "from tpudeploy_backends.device_lock import lock_devices; lock_devices([0])"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "device 0 is in use" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_chips_without_room(
    sail: Any, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libbmlib tells of a chip's heaps decides before sail loads anything; the lock is let go."""
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path))
    heaps = tuple(MemoryHeap(name=name, total_bytes=4 << 30, free_bytes=1 << 20) for name in ("npu", "vpp"))
    chip = DeviceInfo(id=0, name="BM1684X", heaps=heaps)
    monkeypatch.setattr(BmrtBackend, "devices", lambda backend: [chip])
    backend = SailPcieBackend(card(tmp_path / "root"))
    assert backend.devices() == [chip]
    with pytest.raises(BackendError, match=r"device 0 has 2 MiB free \(npu 1 MiB, vpp 1 MiB\)"):
        backend.open(*compiled)
    assert device_holder(0) is None
    assert not sail.EngineLLM.opened
    assert backend.memory_needed(compiled[0], loadable_of(compiled[1]))[0].total_bytes > 2 << 20


def test_refuses_bundles_for_the_cpu(sail: Any, nowhere: Path, compiled: Compiled) -> None:
    folder, manifest = compiled
    with pytest.raises(BackendError, match="format onnx"):
        SailPcieBackend(nowhere).open(folder, manifest.model_copy(update={"format": BundleFormat.ONNX}))
