"""What a device has: Python 3.10, the wheel with its device dependencies, one bundle file. No torch, no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_support import environment, run_cli
from conftest import link_toolchain
from tpudeploy.compile.toolchain.python310 import find_python
from tpudeploy.errors import ToolchainError
from tpudeploy.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = ("No matching distribution", "Could not find a version", "Connection", "Temporary failure")
ASK = ("--json", "你好")


def pip(*arguments: str | Path) -> None:
    """Run this environment's pip; without a package index there is nothing to test with."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def python310() -> Path:
    try:
        return find_python(load_settings())
    except ToolchainError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def device(python310: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare Python 3.10 with the wheel and the extra cpu; returns its folder of programs."""
    folder = tmp_path_factory.mktemp("device")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("tpudeploy-*.whl")
    # Without a pip of its own: that alone takes longer than all the rest.
    subprocess.run([str(python310), "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    programs = folder / "venv" / "bin"
    pip("--python", programs / "python", "install", "--quiet", "--no-compile", f"{wheel}[cpu]")
    return programs


@pytest.mark.slow
def test_one_file_runs_on_a_bare_python_3_10(device: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "demo.tpubundle"
    made = run_cli(
        *("bundle", "chatglm3:demo", "--quant", "int8", "--format", "onnx", "-o", bundle),
        env=environment(tmp_path / "maker"),
    )
    assert made.returncode == 0, made.stderr
    here = run_cli("run", "--bundle", bundle, *ASK, env=environment(tmp_path / "maker"))
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "TPUDEPLOY_HOME": str(tmp_path / "home"), "PYTHONUTF8": "1"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    absent = (
        "import importlib.util, sys\n"
        "print(sys.version_info[:2], [name for name in ('torch', 'safetensors', 'transformers', 'tpu_mlir', 'psutil')"
        " if importlib.util.find_spec(name)])"
    )
    assert run(device / "python", "-c", absent).strip() == "(3, 10) []"
    there = json.loads(run(device / "tpudeploy", "run", "--bundle", bundle, *ASK))
    assert there["text"] == json.loads(here.stdout)["text"]
    assert there["token_ids"] == json.loads(here.stdout)["token_ids"]
    assert Path(there["bundle"]).is_relative_to(tmp_path / "home")
    assert '"chatglm3:demo"' in run(device / "tpudeploy", "show", "--bundle", bundle, "--json")
    assert '"chatglm3:6b"' in run(device / "tpudeploy", "estimate", "chatglm3", "--json")
    lacking = subprocess.run(
        [str(device / "tpudeploy"), "compile", "chatglm3:demo"], env=env, capture_output=True, text=True, check=False
    )
    assert lacking.returncode in (3, 5)
    assert "Traceback" not in lacking.stderr
    assert "tpudeploy[export]" in lacking.stderr


@pytest.mark.slow
@pytest.mark.toolchain
def test_one_file_for_a_chip_runs_there_too(device: Path, chip_settings: Settings, tmp_path: Path) -> None:
    """On the simulated chip, whose libraries lie in the device's home; the compiler itself is not started there."""
    bundle = tmp_path / "demo.tpubundle"
    made = run_cli(
        *("bundle", "chatglm3:demo", "--quant", "int8", "--seq-length", "32", "--prefill", "8x32", "-o", bundle),
        env=environment(chip_settings.home),
    )
    assert made.returncode == 0, made.stderr
    home = link_toolchain(tmp_path / "device").home
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "TPUDEPLOY_HOME": str(home), "PYTHONUTF8": "1"}
    ask = ("--prompt-ids", "30,31,32", "--ignore-eos", "--max-new-tokens", "2", "--json")
    done = subprocess.run(
        [str(device / "tpudeploy"), "run", "--bundle", str(bundle), "--backend", "simulator", *ask],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    assert (answered["backend"], len(answered["token_ids"])) == ("simulator", 2)
    reference = run_cli("run", "chatglm3:demo", "--quant", "int8", "--backend", "cpu", *ask, env=environment(home))
    assert answered["token_ids"] == json.loads(reference.stdout)["token_ids"], reference.stderr
