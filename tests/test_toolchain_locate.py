"""Using a TPU-MLIR that is already there, and how its tools are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tpudeploy.compile import toolchain
from tpudeploy.compile.toolchain import Toolchain, locate, python310
from tpudeploy.compile.toolchain.locate import ESSENTIAL
from tpudeploy.errors import ToolchainError, UnknownNameError
from tpudeploy.settings import Settings

PYTHON = """#!/bin/sh
echo '[[3, 10], "CPython", 64, "x86_64"]'
"""


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def package(folder: Path) -> Path:
    """A folder with what makes a TPU-MLIR."""
    for name in ESSENTIAL:
        program(folder / name)
    return folder


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No TPU-MLIR on PATH and no Python 3.10 but the test's."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(locate, "candidates", lambda _: iter(()))
    locate._python_for.cache_clear()


def test_none_says_how_to_get_one(settings: Settings) -> None:
    with pytest.raises(ToolchainError) as raised:
        toolchain.find_toolchain(settings)
    assert "tpudeploy toolchain install" in raised.value.hint
    assert "TPUDEPLOY_TOOLCHAIN" in raised.value.hint


@pytest.mark.parametrize("named", [".", "lib/python3.10/site-packages", "lib/python3.10/site-packages/tpu_mlir"])
def test_an_environment_of_the_users(named: str, tmp_path: Path, settings: Settings) -> None:
    site = tmp_path / "lib/python3.10/site-packages"
    package(site / "tpu_mlir")
    (site / "tpu_mlir-1.28.1.dist-info").mkdir()
    python = program(tmp_path / "bin/python3.10", PYTHON)
    found = toolchain.find_toolchain(settings.model_copy(update={"toolchain": tmp_path / named}))
    assert found == Toolchain(kind="folder", python=python, package_dir=site / "tpu_mlir", version="1.28.1")


def test_an_unpacked_release_takes_any_python_310(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = program(tmp_path / "python3.10", PYTHON)
    monkeypatch.setattr(locate, "candidates", lambda _: iter([tmp_path / "absent", python]))
    folder = package(tmp_path / "tpu-mlir_v1.21.1-g1c2b3d4-20250801")
    found = toolchain.find_toolchain(settings.model_copy(update={"toolchain": folder}))
    assert (found.version, found.python) == ("1.21.1", python)


def test_a_build_without_a_version_is_told_from_another_build(tmp_path: Path) -> None:
    folder = package(tmp_path / "install")
    before = locate.version_of(folder)
    assert before.startswith("unknown-")
    (folder / "bin/tpuc-opt").write_text("another build", encoding="utf-8")
    assert locate.version_of(folder) != before


def test_a_named_folder_without_one_is_an_error_even_if_others_exist(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(package(tmp_path / "other") / "bin"))
    with pytest.raises(ToolchainError, match="holds no TPU-MLIR"):
        toolchain.find_toolchain(settings.model_copy(update={"toolchain": tmp_path / "absent"}))


def test_a_release_without_a_python_310_says_so(tmp_path: Path, settings: Settings) -> None:
    package(tmp_path / "tpu_mlir")
    with pytest.raises(ToolchainError, match=r"needs Python 3\.10, and none was found"):
        toolchain.find_toolchain(settings.model_copy(update={"toolchain": tmp_path}))


@pytest.mark.parametrize("on_path", ["bin", "python/tools"])
def test_tools_on_path_as_in_the_vendors_container(
    on_path: str, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package(tmp_path / "tpu-mlir_v1.21.1")
    python = program(tmp_path / "python3.10", PYTHON)
    monkeypatch.setattr(locate, "candidates", lambda _: iter([python]))
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder / on_path), "/usr/bin", "/bin"]))
    found = toolchain.find_toolchain(settings)
    assert (found.kind, found.package_dir) == ("path", folder)


def test_scripts_of_an_environment_on_path(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "lib/python3.10/site-packages/tpu_mlir")
    program(tmp_path / "bin/python3.10", PYTHON)
    program(tmp_path / "bin/tpuc-opt")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = toolchain.find_toolchain(settings)
    assert (found.kind, found.python) == ("path", tmp_path / "bin/python3.10")


def test_status_of_a_users_environment_names_the_packages_it_lacks(tmp_path: Path, settings: Settings) -> None:
    site = tmp_path / "lib/python3.10/site-packages"
    package(site / "tpu_mlir")
    program(tmp_path / "bin/python3.10", PYTHON)
    for name in ("numpy", "google/protobuf", "onnx"):
        (site / name).mkdir(parents=True)
    state = toolchain.status(settings.model_copy(update={"toolchain": tmp_path}))
    assert state.found
    assert state.size_bytes == 0
    assert "lacks onnxruntime, onnxsim" in state.problems[0].text


def of(tmp_path: Path, kind: str = "private") -> Toolchain:
    return Toolchain.model_validate(
        {"kind": kind, "python": "/env/bin/python", "package_dir": tmp_path, "version": "1.30.2"}
    )


def test_python_tools_go_through_the_launcher(tmp_path: Path) -> None:
    command = of(tmp_path).command("model_deploy", "--mlir", Path("n.mlir"))
    assert command[:2] == ["/env/bin/python", "-I"]
    assert Path(command[2]).is_file()
    assert command[3:] == [str(tmp_path), "model_deploy", "--mlir", "n.mlir"]
    assert "-I" not in of(tmp_path, "folder").command("model_deploy")


def test_programs_are_run_directly(tmp_path: Path) -> None:
    assert of(tmp_path).command("model_tool", "--info", "x") == [str(tmp_path / "bin/model_tool"), "--info", "x"]


def test_an_unknown_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="model_transform"):
        of(tmp_path).command("llm_convert")


def test_the_environment_leads_to_the_vendors_programs_first(tmp_path: Path) -> None:
    env = of(tmp_path).environment({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/mine", "PYTHONHOME": "/x", "A": "b"})
    assert env["PATH"].split(":")[0] == str(tmp_path / "bin")
    assert env["PATH"].endswith(":/usr/bin")
    assert env["LD_LIBRARY_PATH"] == f"{tmp_path / 'lib'}:/mine"
    assert "PYTHONHOME" not in env
    assert env["A"] == "b"
    assert env["PPL_PROJECT_ROOT"] == str(tmp_path / "cross_toolchains/ppl_compile")
    assert env["PPL_CACHE_PATH"] == "/env/kernels"


def test_what_the_vendors_container_has_set_stays(tmp_path: Path) -> None:
    env = of(tmp_path, "path").environment({"PPL_PROJECT_ROOT": "/workspace/ppl", "PPL_RUNTIME_PATH": "/workspace/x"})
    assert (env["PPL_PROJECT_ROOT"], env["PPL_RUNTIME_PATH"]) == ("/workspace/ppl", "/workspace/x")
    assert "PPL_CACHE_PATH" not in env


def test_a_bundled_c_library_is_kept_from_being_loaded(tmp_path: Path) -> None:
    """The glibc trap: the system's C library must be found before lib/third_party's."""
    trap = tmp_path / "lib/third_party/libc.so.6"
    trap.parent.mkdir(parents=True)
    trap.touch()
    folders = of(tmp_path, "folder").environment({})["LD_LIBRARY_PATH"].split(os.pathsep)
    assert folders[0] == str(tmp_path / "lib")
    assert len(folders) >= 2
    assert any((Path(folder) / "libc.so.6").exists() for folder in folders[1:])


def test_candidates_are_files_each_once(tmp_path: Path) -> None:
    python = program(tmp_path / "bin/python3.10", PYTHON)
    path = os.pathsep.join([str(python.parent)] * 2 + [str(tmp_path / "absent")])
    found = list(python310.candidates({"PATH": path, "HOME": str(tmp_path)}))
    assert found.count(python) == 1
    assert all(f.is_file() for f in found)
