"""Find a Python 3.10: the only version that TPU-MLIR's compiled modules load into.

A file that is called ``python3.10`` need not be one (pyenv puts stubs on PATH that only print an error), so a
candidate counts only after it has been run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tpudeploy.compile.toolchain.pins import PYTHON_NEEDED
from tpudeploy.errors import ToolchainError
from tpudeploy.settings import Settings

HINT = (
    "Install one, for example with `uv python install 3.10`, `conda create -n python310 python=3.10` or "
    "`pyenv install 3.10`, and try again; or name one with --python or TPUDEPLOY_PYTHON310."
)
PROBE = (
    "import json,platform,struct,sys,sysconfig,venv,ctypes;"
    "print(json.dumps([sys.version_info[:2],platform.python_implementation(),struct.calcsize('P')*8,"
    "platform.machine()]))"
)
PROBE_TIMEOUT_S = 20.0


class Rejected(NamedTuple):
    """A candidate that is no usable Python 3.10, and why."""

    path: Path
    reason: str


def find_python(settings: Settings, explicit: Path | None = None) -> Path:
    """The first usable Python 3.10.

    :param explicit: take this one or none (the ``--python`` option); else ``settings.python310`` likewise;
        else whatever PATH, pyenv, uv, conda, asdf, mise and the usual folders have.
    :raises ToolchainError: there is none; the message names what was tried.
    """
    named = explicit or settings.python310
    rejected: list[Rejected] = []
    for candidate in [named] if named else candidates(os.environ):
        reason = why_not(candidate)
        if reason is None:
            return _base(candidate)
        rejected.append(Rejected(candidate, reason))
    if named:
        raise ToolchainError(f"TPU-MLIR needs Python 3.10, and {named} {rejected[0].reason}.", hint=HINT)
    tried = "; ".join(f"{r.path} {r.reason}" for r in rejected)
    raise ToolchainError(f"TPU-MLIR needs Python 3.10, and there is none{f' ({tried})' if tried else ''}.", hint=HINT)


def _base(python: Path) -> Path:
    """The interpreter behind a virtual environment's: it is still there when that environment is deleted."""
    code = "import sys; print(sys._base_executable)"
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    base = Path(done.stdout.strip())
    return base if done.returncode == 0 and base.is_file() else python


def why_not(python: Path) -> str | None:
    """Why ``python`` cannot host TPU-MLIR, found by running it; ``None`` if it can."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"does not answer within {PROBE_TIMEOUT_S:.0f} s"
    except OSError as error:
        return f"does not run ({error.strerror or error})"
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return f"does not run ({lines[0].strip() if lines else f'exit code {done.returncode}'})"
    return _judge(done.stdout)


def _judge(answer: str) -> str | None:
    try:
        found, implementation, bits, machine = json.loads(answer.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return "is not a Python"
    if tuple(found) != PYTHON_NEEDED:
        return f"is Python {found[0]}.{found[1]}"
    if implementation != "CPython" or bits != 64 or machine != "x86_64":
        return f"is a {bits}-bit {implementation} for {machine}, not 64-bit CPython for x86_64"
    return None


def candidates(env: Mapping[str, str]) -> Iterator[Path]:
    """Files that may be a Python 3.10, the likeliest first, each once."""
    seen: set[Path] = set()
    for path in _everywhere(env):
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        yield path


def _everywhere(env: Mapping[str, str]) -> Iterator[Path]:
    for folder in env.get("PATH", "").split(os.pathsep):
        if folder:
            yield Path(folder) / "python3.10"
    if sys.version_info[:2] == PYTHON_NEEDED:
        yield Path(sys.executable)
    for place, pattern in _places(env):
        if place.is_dir():
            # Newest first: 3.10.13 before 3.10.4.
            yield from sorted(place.glob(pattern), key=_patch_version, reverse=True)


def _patch_version(path: Path) -> list[int]:
    return [int(part) for text in path.parts for part in text.split(".") if part.isdigit()]


def _places(env: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Folders and patterns below them where version managers and distributions keep interpreters."""
    home = Path(env.get("HOME") or Path.home())
    data = Path(env.get("XDG_DATA_HOME") or home / ".local/share")
    yield Path(env.get("PYENV_ROOT") or home / ".pyenv"), "versions/3.10*/bin/python3.10"
    yield Path(env.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python"), "*3.10*/bin/python3.10"
    for name in ("CONDA_PREFIX", "CONDA_ROOT", "MAMBA_ROOT_PREFIX"):
        if env.get(name):
            yield from _conda(Path(env[name]))
    if env.get("CONDA_EXE"):
        yield from _conda(Path(env["CONDA_EXE"]).parent.parent)
    for name in ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", ".conda"):
        yield from _conda(home / name)
    yield Path(env.get("ASDF_DATA_DIR") or home / ".asdf"), "installs/python/3.10*/bin/python3.10"
    yield data / "mise/installs/python", "3.10*/bin/python3.10"
    yield home / ".rye/py", "cpython@3.10*/bin/python3.10"
    for folder in ("/usr/bin", "/usr/local/bin"):
        yield Path(folder), "python3.10"
    yield Path("/opt"), "*/bin/python3.10"
    yield Path("/opt"), "*/*/bin/python3.10"


def _conda(root: Path) -> Iterator[tuple[Path, str]]:
    yield root, "bin/python3.10"
    yield root, "envs/*/bin/python3.10"
