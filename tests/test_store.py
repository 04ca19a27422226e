"""The stage store: what is there is whole, whoever is killed, whatever the disk does, however many want the same."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tpudeploy.compile import store as store_module
from tpudeploy.compile.store import (
    StageStore,
    code_digest,
    free_bytes,
    publish_folder,
    stage_key,
    storage_errors,
    sweep_abandoned,
    write_atomically,
)
from tpudeploy.errors import StorageError

KEY = stage_key("test", {"number": 1}, code=())
CHILD = """
import pathlib, sys, time
from tpudeploy.compile.store import StageStore

root, key, log, hold_s = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), float(sys.argv[4])

def say(text):
    with log.open("a") as stream:
        stream.write(text + "\\n")

def produce(folder):
    (folder / "half").write_text("half")
    say("producing")
    time.sleep(hold_s)
    (folder / "whole").write_text("whole")

folder, reused = StageStore(root, waiting=say).run(key, produce, what="a stage")
assert (folder / "half").read_text() + (folder / "whole").read_text() == "halfwhole"
say(f"reused {reused}")
"""


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "stages")


def write_result(folder: Path) -> None:
    (folder / "nets").mkdir()
    (folder / "nets" / "a.onnx").write_bytes(b"a" * 1000)
    (folder / "record.json").write_text("{}")


def never(folder: Path) -> None:
    raise AssertionError("must not be produced")


def leftovers(root: Path) -> list[Path]:
    return sorted(root.rglob("*.incomplete"))


def start(root: Path, log: Path, *, hold_s: float, key: str = KEY) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(root), key, str(log), str(hold_s)], env=env)


def wait_for(log: Path, text: str, *, count: int = 1) -> None:
    deadline = time.monotonic() + 30
    while not log.exists() or log.read_text().count(text) < count:
        assert time.monotonic() < deadline, f"no {text!r}"
        time.sleep(0.01)


class TestKeys:
    def test_everything_counts(self) -> None:
        keys = {
            stage_key("export", {"a": 1}, code=()),
            stage_key("deploy", {"a": 1}, code=()),
            stage_key("export", {"a": 2}, code=()),
            stage_key("export", {"a": 1}, code=("contracts",)),
            stage_key("export", {"a": 1}, code=("contracts", "checkpoint")),
        }
        assert len(keys) == 5

    def test_order_does_not(self) -> None:
        assert stage_key("s", {"a": 1, "b": 2}, code=()) == stage_key("s", {"b": 2, "a": 1}, code=())

    def test_code_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        room = tmp_path / "room"
        room.mkdir()
        (tmp_path / "compile").mkdir()
        monkeypatch.setattr(store_module, "__file__", str(tmp_path / "compile" / "store.py"))
        digests = []
        for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", ""), ("notes.txt", "no code")):
            (room / name).write_text(text)
            code_digest.cache_clear()
            digests.append(code_digest("room"))
        code_digest.cache_clear()
        assert len(set(digests)) == 3
        assert digests[2] == digests[3]


class TestRun:
    def test_produces_once(self, store: StageStore) -> None:
        folder, reused = store.run(KEY, write_result, what="it")
        assert not reused
        assert (folder / "nets" / "a.onnx").read_bytes() == b"a" * 1000
        assert store.run(KEY, never, what="it") == (folder, True)
        assert store.find(KEY) == folder
        assert leftovers(store.root) == []

    def test_result_can_be_read_by_others(self, store: StageStore) -> None:
        folder, _ = store.run(KEY, write_result, what="it")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
    def test_failure_leaves_nothing(self, store: StageStore, error: BaseException) -> None:
        def fail(folder: Path) -> None:
            write_result(folder)
            raise error

        with pytest.raises(type(error)):
            store.run(KEY, fail, what="it")
        assert store.find(KEY) is None
        assert leftovers(store.root) == []
        assert not store.run(KEY, write_result, what="it")[1]

    def test_no_two_threads_produce_the_same(self, store: StageStore) -> None:
        produced: list[int] = []
        reused: list[bool] = []

        def produce(folder: Path) -> None:
            produced.append(1)
            time.sleep(0.1)
            write_result(folder)

        threads = [
            threading.Thread(target=lambda: reused.append(store.run(KEY, produce, what="it")[1])) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(produced) == 1
        assert sorted(reused) == [False, True, True, True]


class TestDiscard:
    def test_forgets(self, store: StageStore) -> None:
        folder, _ = store.run(KEY, write_result, what="it")
        store.discard(KEY)
        store.discard(KEY)
        assert store.find(KEY) is None
        assert not folder.exists()
        assert leftovers(store.root) == []

    def test_killed_meanwhile_leaves_no_result_without_files(
        self, store: StageStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, _ = store.run(KEY, write_result, what="it")

        def killed(path: Path, **options: object) -> None:
            (path / "record.json").unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shutil, "rmtree", killed)
            store.discard(KEY)
        assert not folder.exists()
        assert len(leftovers(store.root)) == 1
        assert not store.run(KEY, write_result, what="it")[1]
        assert leftovers(store.root) == []


class TestProcesses:
    def test_killed_process_is_as_if_it_never_was(self, store: StageStore, tmp_path: Path) -> None:
        child = start(store.root, tmp_path / "log", hold_s=60)
        wait_for(tmp_path / "log", "producing")
        child.kill()
        child.wait()
        assert store.find(KEY) is None
        (left,) = leftovers(store.root)
        assert (left / "half").exists()
        folder, reused = store.run(KEY, write_result, what="it")
        assert not reused
        assert {path.name for path in folder.iterdir()} == {"nets", "record.json"}
        assert leftovers(store.root) == []

    def test_second_process_waits_and_reuses(self, store: StageStore, tmp_path: Path) -> None:
        first = start(store.root, tmp_path / "first", hold_s=1)
        wait_for(tmp_path / "first", "producing")
        second = start(store.root, tmp_path / "second", hold_s=0)
        assert (first.wait(30), second.wait(30)) == (0, 0)
        assert (tmp_path / "first").read_text() == "producing\nreused False\n"
        assert (tmp_path / "second").read_text() == (
            "another tpudeploy is working on a stage; waiting for it to finish\nreused True\n"
        )

    def test_waiting_process_takes_over_from_a_killed_one(self, store: StageStore, tmp_path: Path) -> None:
        first = start(store.root, tmp_path / "first", hold_s=60)
        wait_for(tmp_path / "first", "producing")
        second = start(store.root, tmp_path / "second", hold_s=0)
        wait_for(tmp_path / "second", "waiting")
        first.kill()
        first.wait()
        assert second.wait(30) == 0
        assert (tmp_path / "second").read_text().splitlines()[1:] == ["producing", "reused False"]
        assert leftovers(store.root) == []

    def test_many_at_once(self, store: StageStore, tmp_path: Path) -> None:
        children = [start(store.root, tmp_path / f"log{number}", hold_s=0.2) for number in range(4)]
        assert [child.wait(60) for child in children] == [0] * 4
        logs = "".join((tmp_path / f"log{number}").read_text() for number in range(4))
        assert logs.count("producing") == logs.count("reused False") == 1
        assert logs.count("reused True") == 3

    def test_other_keys_do_not_wait(self, store: StageStore, tmp_path: Path) -> None:
        child = start(store.root, tmp_path / "log", hold_s=60)
        wait_for(tmp_path / "log", "producing")
        other = stage_key("test", {"number": 2}, code=())
        assert not store.run(other, write_result, what="it")[1]
        assert len(leftovers(store.root)) == 1
        child.send_signal(signal.SIGINT)
        child.wait()
        assert leftovers(store.root) == []


class TestSweep:
    def test_only_what_was_abandoned_long_ago(self, store: StageStore) -> None:
        folder, _ = store.run(KEY, write_result, what="it")
        old, fresh = folder.with_name(".x.1.incomplete"), folder.with_name(".x.2.incomplete")
        for path in (old, fresh):
            path.mkdir()
            (path / "weights.npz").write_bytes(b"w")
        two_days_ago = time.time() - 2 * 24 * 3600
        os.utime(old, (two_days_ago, two_days_ago))
        os.utime(folder, (two_days_ago, two_days_ago))
        sweep_abandoned(store.root)
        assert leftovers(store.root) == [fresh]
        assert store.find(KEY) == folder

    def test_nothing_there_yet(self, tmp_path: Path) -> None:
        sweep_abandoned(tmp_path / "absent")


class TestPublishing:
    def test_everything_is_on_disk_before_the_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        work, final = tmp_path / "work", tmp_path / "final"
        work.mkdir()
        write_result(work)
        (work / "link").symlink_to(tmp_path / "elsewhere")
        done: list[str] = []
        replace = Path.replace

        def fsync(descriptor: int) -> None:
            done.append(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path).as_posix())

        def rename(self: Path, target: Path) -> Path:
            done.append("rename")
            return replace(self, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", rename)
        publish_folder(work, final)
        before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
        assert set(before) == {"work", "work/nets", "work/nets/a.onnx", "work/record.json"}
        assert after == ["."]
        assert (final / "record.json").exists()

    def test_does_not_replace_what_is_there(self, tmp_path: Path) -> None:
        for name in ("work", "final"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
        with pytest.raises(OSError, match="not empty"):
            publish_folder(tmp_path / "work", tmp_path / "final")
        assert (tmp_path / "final" / "file").read_text() == "final"

    def test_file_is_old_or_new(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "file"
        write_atomically(path, b"old")

        def fail(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
            patch.setattr(os, "fsync", fail)
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write anywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
    shutil.rmtree(folder)


class TestDisk:
    def test_full(self, store: StageStore) -> None:
        def fill(folder: Path) -> None:
            write_result(folder)
            with Path("/dev/full").open("wb", buffering=0) as stream:
                stream.write(b"x")

        with pytest.raises(StorageError, match=r"the disk is full: .* GB are free in .*stages.*TPUDEPLOY_HOME"):
            store.run(KEY, fill, what="it")
        assert store.find(KEY) is None
        assert leftovers(store.root) == []

    def test_files_that_may_not_grow(self, store: StageStore) -> None:
        def grow(folder: Path) -> None:
            (folder / "weights.npz").write_bytes(bytes(100_000))

        with file_size_limit(50_000), pytest.raises(StorageError, match=r"larger than .* allows.*TPUDEPLOY_HOME"):
            store.run(KEY, grow, what="it")
        assert leftovers(store.root) == []
        assert not store.run(KEY, grow, what="it")[1]

    @pytest.mark.parametrize("made", [False, True])
    def test_read_only(self, open_folder: Path, made: bool) -> None:
        root = open_folder / "stages"
        if made:
            with ordinary_user():
                StageStore(root).run(stage_key("test", {}, code=()), write_result, what="it")
            for path in (root, *root.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
        open_folder.chmod(0o555)
        with (
            ordinary_user(),
            pytest.raises(StorageError, match=r"cannot be written: Permission denied\..*TPUDEPLOY_HOME"),
        ):
            StageStore(root).run(KEY, write_result, what="it")

    def test_finished_results_need_no_writing(self, open_folder: Path) -> None:
        store = StageStore(open_folder / "stages")
        with ordinary_user():
            folder, _ = store.run(KEY, write_result, what="it")
            for path in (store.root, *store.root.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
            assert store.run(KEY, never, what="it") == (folder, True)

    def test_other_errors_stay_what_they_are(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
            (tmp_path / "absent").read_text()

    def test_room_on_the_disk_of_a_folder_to_come(self, tmp_path: Path) -> None:
        assert free_bytes(tmp_path / "a" / "b" / "c") == pytest.approx(free_bytes(tmp_path), rel=0.01)
