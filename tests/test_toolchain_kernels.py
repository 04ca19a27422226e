"""What it takes to build attention kernels on this machine, and the script that builds them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tpudeploy.compile.toolchain import Toolchain, kernels, prepare_kernels
from tpudeploy.compile.toolchain.pins import KERNEL_SCRIPT
from tpudeploy.errors import ToolchainError


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def of(tmp_path: Path, kind: str = "private") -> Toolchain:
    package_dir = tmp_path / "tpu_mlir"
    return Toolchain.model_validate(
        {"kind": kind, "python": tmp_path / "env/bin/python", "package_dir": package_dir, "version": "1"}
    )


def test_a_compiler_that_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "absent"))
    with pytest.raises(ToolchainError, match="there is no C compiler") as raised:
        kernels.check_compiler()
    assert "apt install gcc libc6-dev" in raised.value.hint


def test_a_compiler_without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = program(tmp_path / "cc", "echo 'probe.c:1: fatal error: stdio.h: No such file or directory' >&2; exit 1")
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(ToolchainError, match=r"does not work here .*stdio\.h"):
        kernels.check_compiler()


def test_failures_that_may_be_over_are_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "compiler_problem", lambda _: "")
    toolchain = of(tmp_path)
    cache = toolchain.kernel_cache
    assert cache is not None
    prepare_kernels(toolchain)
    assert list(cache.iterdir()) == []
    for name in ("1", "2", "3", "4"):
        (cache / name).mkdir()
    # built; no compiler; does not fit; not even that could be run
    (cache / "flag.txt").write_text("1 0\n2 256\n3 4352\n4 32512\n\n1 0\n")
    prepare_kernels(toolchain)
    assert (cache / "flag.txt").read_text() == "1 0\n3 4352\n1 0\n"
    assert sorted(p.name for p in cache.iterdir()) == ["1", "3", "flag.txt"]


def test_a_users_toolchain_needs_cmake_for_its_own_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "compiler_problem", lambda _: "")
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin/make", "").parent))
    kernels.check_kernels(of(tmp_path, "folder"))  # an older release, without kernels
    program(tmp_path / "tpu_mlir/cross_toolchains/ppl_compile/bin/ppl_jit.sh", "")
    with pytest.raises(ToolchainError, match=r"there is no cmake\.") as raised:
        kernels.check_kernels(of(tmp_path, "folder"))
    assert "tpudeploy toolchain install" in raised.value.hint
    kernels.check_kernels(of(tmp_path, "private"))
    assert of(tmp_path, "folder").kernel_cache is None


@pytest.fixture
def script(tmp_path: Path) -> dict[str, str]:
    """An environment in which the script finds a ppl-compile and a C compiler that copy, slowly."""
    program(
        tmp_path / "ppl/bin/ppl-compile",
        'for last; do :; done; mkdir -p "$last/device"; echo kernel > "$last/device/k.c"; exit ${PPL_EXIT:-0}',
    )
    compiler = program(
        tmp_path / "cc",
        'for last; do :; done; printf half > "$last"; sleep 0.3; printf whole > "$last"; exit ${CC_EXIT:-0}',
    )
    return {**os.environ, "PPL_PROJECT_ROOT": str(tmp_path / "ppl"), "TPUC_ROOT": str(tmp_path), "CC": str(compiler)}


def start(env: dict[str, str], tmp_path: Path) -> subprocess.Popen[bytes]:
    output = tmp_path / "cache/1"
    output.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        ["sh", str(KERNEL_SCRIPT), "source", "attention", "include", str(output), "tpu_6_0", "1,2", "1"], env=env
    )


def test_the_script_builds_a_library_and_leaves_nothing_else(script: dict[str, str], tmp_path: Path) -> None:
    assert start(script, tmp_path).wait(30) == 0
    assert sorted(p.name for p in (tmp_path / "cache/1").iterdir()) == ["jit.log", "lib"]
    assert (tmp_path / "cache/1/lib/libattention.so").read_text() == "whole"


def test_side_by_side_none_sees_anothers_half(script: dict[str, str], tmp_path: Path) -> None:
    running = [start(script, tmp_path) for _ in range(3)]
    library = tmp_path / "cache/1/lib/libattention.so"
    while any(process.poll() is None for process in running):
        if library.exists():
            assert library.read_text() == "whole"
    assert [process.wait() for process in running] == [0, 0, 0]


@pytest.mark.parametrize("code", [17, 26, 1])
def test_the_kernel_compilers_exit_code_is_handed_on(code: int, script: dict[str, str], tmp_path: Path) -> None:
    assert start({**script, "PPL_EXIT": str(code)}, tmp_path).wait(30) == code
    assert not (tmp_path / "cache/1/lib/libattention.so").exists()


def test_a_failing_c_compiler_leaves_no_library(script: dict[str, str], tmp_path: Path) -> None:
    assert start({**script, "CC_EXIT": "4"}, tmp_path).wait(30) == 4
    assert list((tmp_path / "cache/1/lib").iterdir()) == []
