"""The simulator's libraries in a folder of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tpudeploy.compile.toolchain import Toolchain, simulator, simulator_libs
from tpudeploy.errors import StorageError, ToolchainError
from tpudeploy.settings import Settings

PUBLISHED = {
    "libbmrt.so.1.0": b"bmrt",
    "libbmlib.so.0": b"of another chip, if the vendor's tools say so",
    "libbmlib_bm1684x.so.0": b"bmlib",
    "libcmodel_bm1684x.so": b"cmodel",
    "libcpuop.so": b"cpuop",
}


def made(tmp_path: Path, kind: str = "folder") -> Toolchain:
    lib = tmp_path / "tpu_mlir/lib"
    (lib / "third_party").mkdir(parents=True)
    (lib / "third_party/libc.so.6").write_bytes(b"the glibc trap")
    for name, content in PUBLISHED.items():
        (lib / name).write_bytes(content)
    return Toolchain.model_validate({"kind": kind, "python": "/x", "package_dir": lib.parent, "version": "1.30.2"})


@pytest.mark.parametrize("kind", ["private", "folder"])
def test_the_folder_has_the_names_that_libraries_ask_for_and_no_c_library(
    kind: str, tmp_path: Path, settings: Settings
) -> None:
    folder = simulator_libs(made(tmp_path, kind), settings)
    assert folder.is_relative_to(settings.home)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "libbmrt.so.1.0": b"bmrt",
        "libbmlib.so.0": b"bmlib",
        "libcmodel.so": b"cmodel",
        "libcmodel_bm1684x.so": b"cmodel",
        "libcpuop.so": b"cpuop",
    }
    assert not any(p.is_symlink() for p in folder.iterdir())


def test_it_is_made_once(tmp_path: Path, settings: Settings) -> None:
    toolchain = made(tmp_path)
    folder = simulator_libs(toolchain, settings)
    before = folder.stat().st_ino
    assert simulator_libs(toolchain, settings) == folder
    assert folder.stat().st_ino == before


def test_another_build_of_the_same_version_replaces_it(tmp_path: Path, settings: Settings) -> None:
    toolchain = made(tmp_path)
    simulator_libs(toolchain, settings)
    (toolchain.package_dir / "lib/libbmrt.so.1.0").write_bytes(b"newer")
    folder = simulator_libs(toolchain, settings)
    assert (folder / "libbmrt.so.1.0").read_bytes() == b"newer"


def test_many_may_ask_at_once(tmp_path: Path, settings: Settings) -> None:
    toolchain = made(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: simulator_libs(toolchain, settings), range(16)))
    (folder,) = folders
    assert len(list(folder.iterdir())) == 5


def test_copies_do_not_change_with_the_users_folder(tmp_path: Path, settings: Settings) -> None:
    toolchain = made(tmp_path, "folder")
    folder = simulator_libs(toolchain, settings)
    source = toolchain.package_dir / "lib/libbmrt.so.1.0"
    assert not source.samefile(folder / "libbmrt.so.1.0")


def test_an_unfinished_folder_of_an_interrupted_process_is_in_nobodys_way(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolchain = made(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(simulator, "ALIASES", {"x": "absent"})
        with pytest.raises(StorageError):
            simulator_libs(toolchain, settings)
    assert len(list(simulator_libs(toolchain, settings).iterdir())) == 5


def test_a_toolchain_without_a_simulator_says_so(tmp_path: Path, settings: Settings) -> None:
    toolchain = made(tmp_path)
    (toolchain.package_dir / "lib/libcmodel_bm1684x.so").unlink()
    with pytest.raises(ToolchainError, match=r"libcmodel_bm1684x\.so is missing"):
        simulator_libs(toolchain, settings)
