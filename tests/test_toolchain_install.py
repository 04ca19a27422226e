"""Installing the private environment: interrupted, repeated, refused, removed. The vendor and pip are stand-ins."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tpudeploy.compile import toolchain
from tpudeploy.compile.toolchain import InstallEvent, download, host, installer, kernels, layout, pins
from tpudeploy.compile.toolchain.unpack import tree_bytes
from tpudeploy.errors import FetchError, StorageError, ToolchainError
from tpudeploy.settings import Settings

# A Python 3.10, as far as an installation can tell: it answers the probe, makes environments, has a pip that takes
# wheels from $FAKE_INDEX, and runs any other script with success (or as FAKE_SCRIPT says).
PYTHON = r"""#!/bin/sh
case "$*" in
  *"-m venv"*)
    for last; do :; done
    mkdir -p "$last/bin" "$last/lib/python3.10/site-packages" && ln -s "$0" "$last/bin/python"
    : > "$last/bin/activate" ;;
  *"-m pip --version"*) echo "pip ${FAKE_PIP:-23.0} from /x (python 3.10)"; test -z "$FAKE_NO_PIP" ;;
  *"-m pip download"*)
    echo "$*" >> "$FAKE_INDEX/calls"
    if [ -n "$FAKE_PIP_SAYS" ]; then echo "$FAKE_PIP_SAYS"; exit 1; fi
    while [ "$1" != --dest ]; do shift; done
    mkdir -p "$2"; for last; do :; done
    cp "$FAKE_INDEX/$(echo "$last" | sed s/==/-/)"-*.whl "$2" ;;
  *-c*) echo '[[3, 10], "CPython", 64, "x86_64"]' ;;
  *) sh -c "${FAKE_SCRIPT:-true}" ;;
esac
"""
FILES = {
    "tpu_mlir/__init__.py": b"",
    "tpu_mlir/bin/tpuc-opt": b"#!/bin/sh\necho LLVM\n",
    "tpu_mlir/bin/model_tool": b"#!/bin/sh\n",
    "tpu_mlir/bin/tpuc-tool": b"not needed",
    "tpu_mlir/python/tools/model_transform.py": b"",
    "tpu_mlir/python/tools/model_deploy.py": b"",
    "tpu_mlir/python/tools/llm_convert.py": b"not needed",
    "tpu_mlir/lib/libcmodel_bm1684x.so": b"simulator",
    "tpu_mlir/lib/libbackend_bm1690.so": b"another chip",
    "tpu_mlir/lib/third_party/libc.so.6": b"the glibc trap",
    "tpu_mlir/lib/third_party/libstdc++.so.6": b"spare",
    "tpu_mlir-1.0.dist-info/METADATA": b"Name: tpu_mlir",
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with two small wheels, and pins that ask for them."""
    folder = tmp_path / "index"
    folder.mkdir()
    made = []
    for number, (old, files) in enumerate([(pins.PINS[0], FILES), (pins.PINS[1], {"numpy/__init__.py": b"x = 1\n"})]):
        wheel = folder / f"{old.project}-{number}.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        data = wheel.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        made.append(old._replace(version=f"{number}.0", size_bytes=len(data), sha256=digest, kept_bytes=100))
    monkeypatch.setattr(pins, "PINS", tuple(made))
    monkeypatch.setattr(kernels, "compiler_problem", lambda _: "")
    monkeypatch.setenv("FAKE_INDEX", str(folder))
    return folder


@pytest.fixture
def python(tmp_path: Path, index: Path) -> Path:
    path = tmp_path / "python3.10"
    path.write_text(PYTHON, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path, python: Path) -> Settings:
    return Settings(home=tmp_path / "home", python310=python)


def downloads(index: Path) -> int:
    calls = index / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def test_what_is_needed_is_unpacked_and_nothing_else(home: Settings) -> None:
    events: list[InstallEvent] = []
    made = toolchain.install(home, progress=events.append)
    assert made.kind == "private"
    assert made.version == "0.0"
    assert made == toolchain.find_toolchain(home)
    assert below(made.package_dir) == [
        "__init__.py",
        "bin/model_tool",
        "bin/ppl_jit.sh",
        "bin/tpuc-opt",
        "lib/libbmlib.so.0",
        "lib/libcmodel.so",
        "lib/libcmodel_bm1684x.so",
        "lib/spare/libstdc++.so.6",
        "python/tools/model_deploy.py",
        "python/tools/model_transform.py",
    ]
    assert (made.package_dir / "lib/libcmodel.so").read_bytes() == b"simulator"
    assert os.access(made.package_dir / "bin/tpuc-opt", os.X_OK)
    assert not (home.toolchain_dir / "bin/activate").exists()
    assert sorted(p.name for p in home.home.iterdir()) == ["logs", "toolchain", "toolchain.lock"]
    steps = list(dict.fromkeys(e.step for e in events))
    assert steps == ["python", "download", "unpack", "self-check", "done"]
    assert all(0 <= e.done_bytes <= e.total_bytes for e in events)


def test_a_second_installation_does_nothing(home: Settings, index: Path) -> None:
    first = toolchain.install(home)
    events: list[InstallEvent] = []
    assert toolchain.install(home, progress=events.append) == first
    assert [e.step for e in events] == ["done"]
    assert downloads(index) == 2


def test_force_makes_it_anew(home: Settings, index: Path) -> None:
    made = toolchain.install(home)
    (made.package_dir / "bin/tpuc-opt").unlink()
    assert "tpuc-opt" in toolchain.status(home).problems[0].text
    toolchain.install(home, force=True)
    assert toolchain.status(home).problems == []
    assert downloads(index) == 4
    assert layout.discarded_dirs(home) == []


def test_another_table_of_pins_makes_it_anew(home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain.install(home)
    monkeypatch.setattr(pins, "SPARE", ())
    assert "another version of tpudeploy" in toolchain.status(home).problems[0].text
    made = toolchain.install(home)
    assert (made.package_dir / "lib/third_party/libstdc++.so.6").exists()


def test_an_interrupted_installation_leaves_nothing_that_looks_whole_and_is_resumed(
    home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(installer, "self_check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            toolchain.install(home)
    with pytest.raises(ToolchainError):
        toolchain.find_toolchain(home)
    state = toolchain.status(home)
    assert not state.found
    assert state.size_bytes > 0
    assert "interrupted" in state.problems[1].text
    assert "tpudeploy toolchain install" in state.problems[1].remedy
    toolchain.install(home)
    assert downloads(index) == 2
    assert not layout.partial_dir(home).exists()


def test_a_kill_between_rename_and_marker_leaves_nothing_that_looks_whole(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layout, "write_marker", interrupt)
        with pytest.raises(KeyboardInterrupt):
            toolchain.install(home)
    assert home.toolchain_dir.exists()
    assert not toolchain.status(home).found
    toolchain.install(home)
    assert toolchain.status(home).found
    assert layout.discarded_dirs(home) == []


def test_the_previous_environment_works_until_the_new_one_does(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = toolchain.install(home)
    monkeypatch.setenv("FAKE_SCRIPT", "echo numbers are wrong; exit 1")
    with pytest.raises(ToolchainError, match="numbers are wrong") as raised:
        toolchain.install(home, force=True)
    assert str(home.logs_dir / "toolchain-install.log") in raised.value.hint
    assert toolchain.find_toolchain(home) == made
    assert toolchain.status(home).problems == []


def test_a_damaged_download_is_fetched_again(home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(installer, "_build", interrupt)
        with pytest.raises(KeyboardInterrupt):
            toolchain.install(home)
    wheels = sorted((layout.partial_dir(home) / "wheels").iterdir())
    wheels[0].write_bytes(wheels[0].read_bytes()[:-1])
    toolchain.install(home)
    assert downloads(index) == 3


def test_a_second_process_waits_for_the_first(home: Settings, index: Path) -> None:
    waiting, events = threading.Event(), []

    def progress(event: InstallEvent) -> None:
        events.append(event)
        if event.step == "wait":
            waiting.set()

    with layout.locked(home.home / "toolchain.lock", lambda: None):
        thread = threading.Thread(target=lambda: toolchain.install(home, progress=progress))
        thread.start()
        assert waiting.wait(20)
        assert downloads(index) == 0
    thread.join(60)
    assert events[0].step == "wait"
    assert events[-1].step == "done"


def test_no_network_says_so_and_keeps_what_is_there(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: Retrying (Retry(total=0)): Temporary failure in name resolution\nERROR: No matching distribution"
    monkeypatch.setenv("FAKE_PIP_SAYS", said)
    with pytest.raises(FetchError, match="Temporary failure in name resolution") as raised:
        toolchain.install(home)
    assert "HTTPS_PROXY" in raised.value.hint
    assert raised.value.exit_code == 9


def test_an_index_without_this_version_says_so(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP_SAYS", "ERROR: Could not find a version (from versions: 1.2, 1.3)")
    with pytest.raises(FetchError) as raised:
        toolchain.install(home)
    assert "does not have this version" in raised.value.hint


def test_offline_asks_no_index(home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP_SAYS", "ERROR: No matching distribution")
    with pytest.raises(FetchError) as raised:
        toolchain.install(home.model_copy(update={"offline": True}))
    assert "offline" in raised.value.hint
    assert "--no-index" in (index / "calls").read_text()


def test_the_wrong_file_is_refused(home: Settings, index: Path) -> None:
    wheel = next(index.glob("numpy-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(FetchError, match="not the file that was published"):
        toolchain.install(home)


def test_pip_runs_out_of_disk(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP_SAYS", "OSError: [Errno 28] No space left on device")
    with pytest.raises(StorageError, match="no space left while downloading"):
        toolchain.install(home)


def test_a_disk_that_is_too_small_is_refused_before_anything_happens(
    home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000_000))
    with pytest.raises(StorageError, match=r"needs 67 MB in .*home, where 50 MB are free"):
        toolchain.install(home)
    assert downloads(index) == 0
    assert any("67 MB" in problem.text for problem in toolchain.status(home).problems)


def test_a_disk_that_fills_up_on_the_way_is_explained(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installer, "unpack", full)
    with pytest.raises(StorageError, match="No space left on device"):
        toolchain.install(home)
    assert not toolchain.status(home).found


def test_a_home_that_cannot_be_made_is_explained(tmp_path: Path, python: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write in"):
        toolchain.install(Settings(home=tmp_path / "file" / "home", python310=python))


def test_what_the_real_pins_need_of_a_disk() -> None:
    """Within a gigabyte, and less once wheels are there."""
    everything = host.bytes_needed(set())
    assert 500e6 < everything < 1e9
    assert host.bytes_needed({"tpu_mlir"}) < everything


def test_no_c_compiler_is_refused_before_anything_is_downloaded(
    home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "compiler_problem", lambda _: "there is no C compiler (cc)")
    with pytest.raises(ToolchainError, match="there is no C compiler") as raised:
        toolchain.install(home)
    assert "apt install gcc" in raised.value.hint
    assert downloads(index) == 0
    assert any("C compiler" in problem.text for problem in toolchain.status(home).problems)


def test_no_pip_anywhere(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NO_PIP", "1")
    monkeypatch.setattr(download.sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(ToolchainError, match="there is no pip"):
        toolchain.install(home)


def test_another_interpreters_pip_serves(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho pip 24.1 from /x\n", encoding="utf-8")
    other.chmod(0o755)
    monkeypatch.setenv("FAKE_NO_PIP", "1")
    monkeypatch.setattr(download.sys, "executable", str(other))
    assert download.pip_for(tmp_path / "python3.10", tmp_path / "spare") == [
        *(str(other), "-m", "pip", "--python"),
        str(tmp_path / "python3.10"),
    ]
    other.write_text("#!/bin/sh\necho pip 20.0 from /x\n", encoding="utf-8")
    with pytest.raises(ToolchainError):
        download.pip_for(tmp_path / "python3.10", tmp_path / "spare")


@pytest.mark.parametrize(
    ("machine", "glibc", "words"),
    [
        ("aarch64", (2, 36), "published for Linux on x86-64 only"),
        ("x86_64", (2, 31), r"needs glibc 2\.34 or later .* this system has 2\.31"),
        ("x86_64", (), "another C library"),
    ],
)
def test_a_system_that_cannot_run_it_is_refused(
    machine: str, glibc: tuple[int, ...], words: str, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "glibc_version", lambda: glibc)
    with pytest.raises(ToolchainError, match=words):
        toolchain.install(home)
    assert not home.home.exists()


def test_a_c_library_that_is_too_old_for_the_cxx_library_gets_the_spare_one(
    home: Settings, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaint = b'#!/bin/sh\necho "libstdc++.so.6: version \\`GLIBCXX_3.4.30\' not found" >&2; exit 1\n'
    wheel = next(index.glob("tpu_mlir-*.whl"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**FILES, "tpu_mlir/bin/tpuc-opt": complaint}.items():
            archive.writestr(name, content)
    data = wheel.read_bytes()
    first = pins.PINS[0]._replace(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(pins, "PINS", (first, pins.PINS[1]))
    made = toolchain.install(home)
    folders = made.environment({})["LD_LIBRARY_PATH"].split(os.pathsep)
    assert folders == [str(made.package_dir / "lib"), str(made.package_dir / "lib/spare")]


def test_remove_gives_everything_back(home: Settings) -> None:
    assert toolchain.remove(home) == 0
    made = toolchain.install(home)
    size = toolchain.status(home).size_bytes
    assert toolchain.remove(home) == size > 0
    assert not made.package_dir.exists()
    assert not toolchain.status(home).found
    assert toolchain.remove(home) == 0


def test_remove_after_an_interruption(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "self_check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        toolchain.install(home)
    assert toolchain.remove(home) > 0
    assert sorted(p.name for p in home.home.iterdir()) == ["logs", "toolchain.lock"]


def test_a_python_that_went_away_is_noticed(home: Settings, python: Path) -> None:
    toolchain.install(home)
    python.unlink()
    problem = toolchain.status(home).problems[0]
    assert str(python) in problem.text
    assert "install --force" in problem.remedy


def test_check_runs_and_remembers_the_self_check(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain.install(home)
    monkeypatch.setenv("FAKE_SCRIPT", "echo off by 3; exit 1")
    result = toolchain.check(home)
    assert not result.passed
    assert "off by 3" in result.detail
    state = toolchain.status(home)
    assert state.self_check == result
    assert "self-check failed" in state.problems[0].text
    monkeypatch.delenv("FAKE_SCRIPT")
    toolchain.install(home)
    assert toolchain.status(home).problems == []


def test_status_is_json(home: Settings) -> None:
    assert '"found":false' in toolchain.status(home).model_dump_json()
    toolchain.install(home)
    assert '"kind":"private"' in toolchain.status(home).model_dump_json()


def interrupt(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


def test_sizes_are_told_while_files_come_and_go(tmp_path: Path) -> None:
    """pip removes its temporary files while their growth is being shown."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            folder = tmp_path / "pip-unpack"
            folder.mkdir()
            for name in range(20):
                (folder / str(name)).write_bytes(b"x")
            shutil.rmtree(folder)

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        assert all(tree_bytes(tmp_path) >= 0 for _ in range(300))
    finally:
        stop.set()
        worker.join()
