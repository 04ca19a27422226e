"""Finding a Python 3.10, among files that only look like one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tpudeploy.compile.toolchain import python310
from tpudeploy.errors import ToolchainError
from tpudeploy.settings import Settings

STUB = "echo 'pyenv: python3.10: command not found' >&2; exit 127"


def answer(version: str = "3, 10", implementation: str = "CPython", bits: int = 64, machine: str = "x86_64") -> str:
    return f"""echo '[[{version}], "{implementation}", {bits}, "{machine}"]'"""


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def isolated(monkeypatch: pytest.MonkeyPatch, home: Path, *path: Path) -> None:
    """No Python 3.10 but those that the test makes."""
    for name in [n for n in os.environ if n.startswith(("CONDA", "MAMBA", "PYENV", "UV_", "ASDF", "XDG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, path)))
    places = python310._places
    monkeypatch.setattr(python310, "_places", lambda env: [(p, g) for p, g in places(env) if p.is_relative_to(home)])
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))


def test_a_stub_on_path_is_passed_over_for_a_version_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = program(tmp_path / "shims/python3.10", STUB)
    old = program(tmp_path / ".pyenv/versions/3.10.4/bin/python3.10", answer())
    new = program(tmp_path / ".pyenv/versions/3.10.13/bin/python3.10", answer())
    isolated(monkeypatch, tmp_path, stub.parent)
    settings = Settings(home=tmp_path)
    assert python310.find_python(settings) == new
    new.unlink()
    assert python310.find_python(settings) == old


@pytest.mark.parametrize(
    "place",
    [
        ".local/share/uv/python/cpython-3.10.16-linux-x86_64-gnu/bin/python3.10",
        "miniconda3/envs/py310/bin/python3.10",
        "miniforge3/bin/python3.10",
        ".asdf/installs/python/3.10.14/bin/python3.10",
        ".local/share/mise/installs/python/3.10/bin/python3.10",
        ".rye/py/cpython@3.10.15/bin/python3.10",
    ],
)
def test_version_managers_are_searched(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = program(tmp_path / place, answer())
    isolated(monkeypatch, tmp_path)
    assert python310.find_python(Settings(home=tmp_path)) == python


def test_two_stubs_on_path_before_the_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [program(tmp_path / name / "python3.10", STUB).parent for name in ("one", "two")]
    real = program(tmp_path / "three/python3.10", answer())
    isolated(monkeypatch, tmp_path, *folders, real.parent)
    assert python310.find_python(Settings(home=tmp_path)) == real


def test_none_names_what_was_tried_and_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = program(tmp_path / "shims/python3.10", STUB)
    isolated(monkeypatch, tmp_path, stub.parent)
    with pytest.raises(ToolchainError) as raised:
        python310.find_python(Settings(home=tmp_path))
    assert f"{stub} does not run (pyenv: python3.10: command not found)" in raised.value.message
    assert "uv python install 3.10" in raised.value.hint
    assert "--python" in raised.value.hint


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (STUB, "does not run (pyenv: python3.10: command not found)"),
        ("exit 3", "does not run (exit code 3)"),
        ("echo hello", "is not a Python"),
        (answer("3, 11"), "is Python 3.11"),
        (answer(bits=32, machine="i686"), "is a 32-bit CPython for i686, not 64-bit CPython for x86_64"),
        (answer(machine="aarch64"), "is a 64-bit CPython for aarch64, not 64-bit CPython for x86_64"),
        (answer(implementation="PyPy"), "is a 64-bit PyPy for x86_64, not 64-bit CPython for x86_64"),
    ],
)
def test_why_not(body: str, reason: str, tmp_path: Path) -> None:
    assert python310.why_not(program(tmp_path / "python", body)) == reason


def test_a_python_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python310, "PROBE_TIMEOUT_S", 0.2)
    assert "does not answer" in str(python310.why_not(program(tmp_path / "python", "exec sleep 60")))


def test_a_named_python_is_taken_or_refused_but_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = program(tmp_path / ".pyenv/versions/3.10.13/bin/python3.10", answer())
    bad = program(tmp_path / "python", answer("3, 12"))
    isolated(monkeypatch, tmp_path, good.parent)
    with pytest.raises(ToolchainError, match=r"python is Python 3\.12"):
        python310.find_python(Settings(home=tmp_path), bad)
    with pytest.raises(ToolchainError, match=r"python is Python 3\.12"):
        python310.find_python(Settings(home=tmp_path, python310=bad))
    assert python310.find_python(Settings(home=tmp_path, python310=bad), good) == good
    with pytest.raises(ToolchainError, match="does not run"):
        python310.find_python(Settings(home=tmp_path), tmp_path / "absent")


def test_the_probe_is_understood_by_a_real_python() -> None:
    reason = python310.why_not(Path(sys.executable))
    expected = None if sys.version_info[:2] == (3, 10) else f"is Python {sys.version_info[0]}.{sys.version_info[1]}"
    assert reason == expected
