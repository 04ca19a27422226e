"""The table of pins: what is unpacked, and that it says why."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tpudeploy.compile.toolchain import pins, unpack
from tpudeploy.errors import FetchError

TPU_MLIR, NUMPY, _, ONNX, *_ = pins.PINS


@pytest.mark.parametrize(
    "name",
    [
        "tpu_mlir/lib/libbackend_bm1684x.so",
        "tpu_mlir/python/mlir/_mlir_libs/libTPUMLIRPythonCAPI.so.18git",
        "tpu_mlir/python/mlir/dialects/_top_ops_gen.py",
        "tpu_mlir-1.30.2.dist-info/licenses/LICENSE",
        "tpu_mlir/cross_toolchains/ppl_compile/bin/ppl-compile",
        "tpu_mlir/cross_toolchains/ppl_compile/inc/ppl.h",
    ],
)
def test_kept(name: str) -> None:
    assert TPU_MLIR.keeps(name)


@pytest.mark.parametrize(
    "name",
    [
        "tpu_mlir/lib/libbackend_bm1690.so",
        "tpu_mlir/lib/libortools.so.9.8.3296",
        "tpu_mlir/lib/third_party/libc.so.6",
        "tpu_mlir/lib/third_party/libpthread.so.0",
        "tpu_mlir/cross_toolchains/ppl_compile/deps/chip/tpub_9_0/TPU1686/kernel/include/x.h",
        "tpu_mlir/bin/tpuc-tool",
        "tpu_mlir/python/PerfAI/PerfAI_web/templates/x.html",
        "tpu_mlir/python/mlir/_mlir_libs/_mlir/ir.pyi",
        "tpu_mlir/python/test/test_onnx.py",
    ],
)
def test_left_out(name: str) -> None:
    assert not TPU_MLIR.keeps(name)


def test_tests_and_data_of_the_packages_are_left_out() -> None:
    assert not NUMPY.keeps("numpy/core/tests/test_umath.py")
    assert not ONNX.keeps("onnx/backend/test/data/node/x.pb")
    assert NUMPY.keeps("numpy.libs/libopenblas64_p-r0-15028c96.3.21.so")


def test_every_pin_says_why_and_is_exact() -> None:
    for pin in pins.PINS:
        assert pin.why
        assert len(pin.sha256) == 64
        assert pin.size_bytes > 0 < pin.kept_bytes
        assert pin.requirement == f"{pin.project}=={pin.version}"
    assert max(pins.PINS, key=lambda pin: pin.size_bytes) is TPU_MLIR, "the disk estimate counts on it being first"


def test_the_footprint_is_the_documented_one() -> None:
    assert sum(pin.kept_bytes for pin in pins.PINS) < 420e6  # of which 30 MB of symbols are cut off


def test_a_wheel_is_verified(tmp_path: Path) -> None:
    wheel = tmp_path / "numpy-1.24.3-py3.whl"
    assert not unpack.verify(wheel, NUMPY)
    wheel.write_bytes(b"x" * 10)
    assert not unpack.verify(wheel, NUMPY)
    assert not unpack.verify(wheel, NUMPY._replace(size_bytes=10))


def test_a_file_that_is_no_zip_is_explained(tmp_path: Path) -> None:
    wheel = tmp_path / "numpy-1.24.3-py3.whl"
    wheel.write_bytes(b"<html>sign in to the network</html>")
    with pytest.raises(FetchError, match="damaged"):
        unpack.unpack(wheel, NUMPY, tmp_path / "site")


def test_unpacking_reports_bytes(tmp_path: Path) -> None:
    wheel = tmp_path / "numpy-1.24.3-py3.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("numpy/__init__.py", b"12345")
        archive.writestr("numpy/tests/test_x.py", b"12345")
    counts: list[int] = []
    assert unpack.unpack(wheel, NUMPY, tmp_path / "site", counts.append) == 5
    assert counts == [5]


def elf(tail: int) -> bytes:
    """The smallest file that looks like a program: one segment of 200 bytes, and then what is never loaded."""
    header = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 3, 62, 1, 0, 64, 300, 0, 64, 56, 1, 64, 5, 4)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 200, 200, 4096)
    return (header + segment).ljust(200, b"x") + b"s" * tail


def test_symbols_for_debuggers_are_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(elf(3 << 20))
    assert unpack.trim(file) == 3 << 20
    cut = file.read_bytes()
    assert len(cut) == 200
    assert cut[40:48] == bytes(8)
    assert cut[60:64] == bytes(4)
    assert cut[64:] == elf(0)[64:]


@pytest.mark.parametrize("content", [b"", b"text", b"x" * (3 << 20), elf(1000), b"\x7fELF\x01\x01" + b"x" * (3 << 20)])
def test_other_files_are_left_alone(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert unpack.trim(file) == 0
    assert file.read_bytes() == content


def test_a_real_program_runs_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "true"
    shutil.copy(shutil.which("true") or "/bin/true", program)
    monkeypatch.setattr(unpack, "TRIM_BYTES", 1)
    assert unpack.trim(program) > 0
    assert subprocess.run([str(program)], check=False).returncode == 0


def test_tree_bytes_counts_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    once = unpack.tree_bytes(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("a")
    assert unpack.tree_bytes(tmp_path) == pytest.approx(once, abs=8192)
    assert unpack.tree_bytes(tmp_path / "absent") == 0


def test_the_main_package_never_imports_the_vendors() -> None:
    code = "import sys, tpudeploy.compile.toolchain; print(sorted({'tpu_mlir', 'onnx', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
