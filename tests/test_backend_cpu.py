"""The backend ``cpu``: the conformance suite in every quantization mode, and what only a processor can do wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.errors import BackendError, BundleError, UsageError
from tpudeploy.testing.backend_suite import BackendSuite
from tpudeploy.testing.bundles import onnx_bundle
from tpudeploy.testing.launching import bind_fresh, example_of
from tpudeploy.testing.tiny_decoder import TinyDecoder
from tpudeploy_backends.cpu import machine, ort
from tpudeploy_backends.cpu.backend import CpuBackend
from tpudeploy_backends.cpu.session import CpuSession


class CpuSuite(BackendSuite):
    @classmethod
    def make_backend(cls) -> Backend:
        return CpuBackend()


class TestCpuNone(CpuSuite):
    quant = QuantMode.NONE


class TestCpuF16(CpuSuite):
    quant = QuantMode.F16


class TestCpuBf16(CpuSuite):
    quant = QuantMode.BF16


class TestCpuInt8(CpuSuite):
    quant = QuantMode.INT8


class TestCpuInt4(CpuSuite):
    quant = QuantMode.INT4


def open_tiny(folder: Path, quant: QuantMode = QuantMode.INT8) -> CpuSession:
    session = CpuBackend().open(folder, onnx_bundle(folder, TinyDecoder(), quant))
    assert isinstance(session, CpuSession)
    return session


def open_damaged(folder: Path, damage: Callable[[], object]) -> None:
    manifest = onnx_bundle(folder, TinyDecoder(), QuantMode.NONE)
    damage()
    CpuBackend().open(folder, manifest)


def test_nets_over_the_same_weights_share_a_session(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as session:
        layers = session.manifest.nets.config.num_layers
        assert len(session._models) == layers + 2
        assert session.memory().weights_bytes == sum(file.size_bytes for file in session.manifest.files)


def test_a_failing_net_is_a_backend_error(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as session:
        net = session.manifest.nets.net("embedding_cache")
        bound = bind_fresh(session, net, example_of(net, session.manifest.quant))
        session.write(bound.inputs["input_ids"], np.array([[100000]]))
        with pytest.raises(BackendError, match="net embedding_cache failed on the CPU") as caught:
            bound.net.launch()
        assert "ONNXRuntimeError" not in str(caught.value)


def test_weights_that_are_cut_short_are_a_bundle_error(tmp_path: Path) -> None:
    manifest = onnx_bundle(tmp_path, TinyDecoder(), QuantMode.F16)
    weights = tmp_path / "layer_001.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"block_kv_1\.onnx of the bundle cannot be loaded"):
        CpuBackend().open(tmp_path, manifest)


def test_refuses_bundles_for_chips(tmp_path: Path) -> None:
    manifest = onnx_bundle(tmp_path, TinyDecoder(), QuantMode.NONE)
    with pytest.raises(BackendError, match="format bmodel"):
        CpuBackend().open(tmp_path, manifest.model_copy(update={"format": BundleFormat.BMODEL}))


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install tpudeploy\[cpu\]"):
        ort.import_onnxruntime()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    availability = CpuBackend().availability()
    assert not availability.available
    assert "pip install" in availability.remedy


@pytest.mark.parametrize("signal", [SystemExit(143), KeyboardInterrupt()])
def test_a_signal_while_onnxruntime_is_imported_is_no_fault_of_it(
    monkeypatch: pytest.MonkeyPatch, signal: BaseException
) -> None:
    class Pybind11:
        """Makes an ImportError of whatever is raised while a module of it begins."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "onnxruntime":
                raise ImportError("initialization failed") from signal

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [Pybind11(), *sys.meta_path])
    with pytest.raises(type(signal)):
        ort.import_onnxruntime()


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    large = 1 << 30
    monkeypatch.setenv(machine.THREADS_VARIABLE, "3")
    assert machine.thread_count(large) == machine.thread_count(1) == 3
    monkeypatch.setenv(machine.THREADS_VARIABLE, "")
    assert machine.thread_count(1) == 1
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    assert machine.thread_count(large) == 8
    monkeypatch.setattr(machine, "usable_cores", lambda: 64)
    assert machine.thread_count(large) == 16
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv(machine.THREADS_VARIABLE, wrong)
        with pytest.raises(UsageError, match="TPUDEPLOY_CPU_THREADS"):
            machine.thread_count(large)


def test_cores_that_may_be_used() -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)


def test_physical_cores_are_counted_once(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    blocks = [f"processor\t: {n}\nphysical id\t: 0\ncore id\t\t: {n // 2}\n" for n in range(8)]
    info.write_text("\n".join(blocks))
    assert machine._physical_cores(set(range(8)), info) == 4
    assert machine._physical_cores({0, 1, 2}, info) == 2
    assert machine._physical_cores({0}, tmp_path / "missing") == 0


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 2), ("max 100000", 0), ("", 0)])
def test_container_quota(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert machine._container_quota(tmp_path / "cpu.max") == cores
    assert machine._container_quota(tmp_path / "missing") == 0


def test_memory_of_the_machine(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  400 kB\n")
    assert machine.memory_bytes(info) == (1000 * 1024, 600 * 1024)
    assert machine.memory_bytes(tmp_path / "missing") == (None, None)
    info.write_text("model name\t: A Processor\n")
    assert machine.processor_name(info) == "A Processor"
    assert machine.processor_name(tmp_path / "missing")


def test_other_sessions_of_the_process_are_left_alone(tmp_path: Path) -> None:
    with open_tiny(tmp_path):
        onnxruntime.InferenceSession(str(tmp_path / "lm_head.onnx"))


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_tiny(tmp_path):
        pass
    with pytest.raises(BundleError):
        open_damaged(tmp_path, lambda: (tmp_path / "lm_head.onnx").write_bytes(b"nonsense"))
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_without_a_shared_arena(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "_has_shared_arena", lambda: False)
    with open_tiny(tmp_path) as session:
        net = session.manifest.nets.net("lm_head")
        example = example_of(net, session.manifest.quant)
        bound = bind_fresh(session, net, example)
        bound.net.launch()
        assert np.abs(session.read(bound.outputs["logits"]) - example.outputs["logits"]).max() < 1e-4


def test_messages_of_onnxruntime_are_shortened() -> None:
    assert ort.first_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : something.\nmore")) == "something"
    assert ort.first_line(ValueError("")) == "ValueError"
