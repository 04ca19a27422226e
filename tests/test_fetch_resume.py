"""Going on where an earlier fetch stopped: interrupted, killed, overtaken, or damaged meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hub_server import (
    NEEDED,
    QUICK,
    Behaviour,
    FakeHub,
    content,
    fetch,
    hub_fixture,
    hub_settings,
    incomplete,
    make_plan,
    needed,
)
from tpudeploy.errors import StorageError
from tpudeploy.fetch import FetchPlan, FetchProgress, Hub, fetch_checkpoint

__all__ = ["hub_fixture"]

FIRST, SECOND = NEEDED[3], NEEDED[4]
INDEX = NEEDED[2]


def interrupted_at(hub: FakeHub, home: Path, name: str, received: int) -> FetchPlan:
    """Fetch until ``received`` bytes of ``name`` are here, then Ctrl-C."""
    made = make_plan(hub, home)
    hub.always[name] = Behaviour(block_delay_s=0.002)

    def stop(event: FetchProgress) -> None:
        if event.file == name and hub.sent_bytes[name] >= received and event.status == "downloading":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tpudeploy.fetch.meter._REPORT_EVERY_S", 0.0)
        fetch_checkpoint(made, hub_settings(home, hub), stop, retries=QUICK)
    del hub.always[name]
    return made


class TestInterrupted:
    def test_goes_on_where_it_stopped(self, hub: FakeHub, tmp_path: Path) -> None:
        made = interrupted_at(hub, tmp_path, SECOND, 400_000)
        part = (incomplete(tmp_path) / f"{SECOND}.part").stat().st_size
        assert part >= 200_000
        assert not made.folder.exists()
        assert make_plan(hub, tmp_path).remaining_bytes == len(hub.files[SECOND]) - part
        hub.requests.clear()
        assert content(fetch(hub, tmp_path)) == needed(hub)
        asked = [request for request in hub.requests if "/api/" not in request.path]
        assert [request.path.rpartition("/")[2] for request in asked] == [SECOND]
        assert asked[0].range_start == part
        assert asked[0].headers["if-range"] == hub.etag(SECOND)

    def test_content_that_changed_meanwhile(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.lies = {name: {"Sha256": None} for name in hub.files}
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        hub.files[SECOND] = bytes(reversed(hub.files[SECOND]))
        hub.etags[SECOND] = '"another"'
        assert content(fetch(hub, tmp_path, Hub.MODELSCOPE)) == needed(hub)

    def test_weak_etag_cannot_be_asked_for(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.etags[SECOND] = 'W/"weak"'
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        assert content(fetch(hub, tmp_path)) == needed(hub)
        assert "if-range" not in hub.file_requests(SECOND)[-1].headers

    def test_other_hub_goes_on_with_equal_files(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        sent = hub.sent_bytes[FIRST]
        assert content(fetch(hub, tmp_path, Hub.MODELSCOPE)) == needed(hub)
        assert hub.sent_bytes[FIRST] == sent
        assert hub.file_requests(SECOND)[-1].range_start > 0

    def test_new_revision_drops_what_changed(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        hub.files[FIRST] = bytes(len(hub.files[FIRST]))
        hub.files[SECOND] = bytes(len(hub.files[SECOND]))
        assert content(fetch(hub, tmp_path)) == needed(hub)

    def test_files_that_are_no_longer_wanted_go(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        for name in (INDEX, FIRST, SECOND):
            del hub.files[name]
        folder = fetch(hub, tmp_path, Hub.MODELSCOPE)
        assert set(content(folder)) == {
            "config.json",
            "tokenizer.model",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00001.bin",
        }

    @pytest.mark.parametrize("journal", [b"", b"not json", b'{"config.json": 5}'])
    def test_journal_that_is_lost(self, hub: FakeHub, tmp_path: Path, journal: bytes) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        (incomplete(tmp_path) / ".fetch.json").write_bytes(journal)
        hub.requests.clear()
        assert content(fetch(hub, tmp_path)) == needed(hub)
        assert hub.file_requests(FIRST) == []
        assert hub.file_requests(SECOND)[0].range_start == 0

    def test_damaged_file_without_journal(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        (incomplete(tmp_path) / ".fetch.json").unlink()
        (incomplete(tmp_path) / FIRST).write_bytes(bytes(len(hub.files[FIRST])))
        assert content(fetch(hub, tmp_path)) == needed(hub)

    def test_damaged_part(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        part = incomplete(tmp_path) / f"{SECOND}.part"
        part.write_bytes(bytes(part.stat().st_size))
        assert content(fetch(hub, tmp_path)) == needed(hub)

    def test_part_that_is_too_long(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        (incomplete(tmp_path) / f"{SECOND}.part").write_bytes(bytes(1_000_000))
        assert content(fetch(hub, tmp_path)) == needed(hub)

    def test_server_whose_file_is_shorter(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        hub.queue[SECOND] = [Behaviour(status=416)]
        assert content(fetch(hub, tmp_path)) == needed(hub)

    @pytest.mark.parametrize("range_", ["bytes 5-899999/900000", "bytes 5-9/10", "nonsense"])
    def test_server_that_sends_another_range(self, hub: FakeHub, tmp_path: Path, range_: str) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        hub.queue[SECOND] = [Behaviour(content_range=range_)]
        assert content(fetch(hub, tmp_path)) == needed(hub)

    def test_checkpoint_that_lost_a_file(self, hub: FakeHub, tmp_path: Path) -> None:
        folder = fetch(hub, tmp_path)
        (folder / SECOND).unlink()
        (folder / "notes.txt").write_text("the user's own")
        hub.requests.clear()
        assert content(fetch(hub, tmp_path)) == needed(hub) | {"notes.txt": b"the user's own"}
        assert [request.path.rpartition("/")[2] for request in hub.requests if "/api/" not in request.path] == [SECOND]

    def test_checkpoint_in_the_way(self, hub: FakeHub, tmp_path: Path) -> None:
        interrupted_at(hub, tmp_path, SECOND, 400_000)
        (tmp_path / "models" / "stub-tiny").mkdir()
        with pytest.raises(StorageError, match=r"stub-tiny is not a whole checkpoint.*Move it away"):
            fetch(hub, tmp_path)

    def test_link_is_never_written_through(self, hub: FakeHub, tmp_path: Path) -> None:
        own = tmp_path / "own"
        own.mkdir()
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "stub-tiny").symlink_to(own)
        with pytest.raises(StorageError, match="not a whole checkpoint"):
            fetch(hub, tmp_path)
        assert list(own.iterdir()) == []


CHILD = """
import pathlib, sys
from tpudeploy.fetch import FetchPlan, fetch_checkpoint
from tpudeploy.settings import load_settings
plan = FetchPlan.model_validate_json(pathlib.Path(sys.argv[1]).read_text())
print(fetch_checkpoint(plan, load_settings(), waiting=lambda text: print(text, flush=True)), flush=True)
"""


def start_child(made: FetchPlan, home: Path) -> subprocess.Popen[str]:
    """Fetch in a process of its own."""
    path = home / "plan.json"
    path.write_text(made.model_dump_json())
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TPUDEPLOY_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path)], env=env, stdout=subprocess.PIPE, text=True)


def wait_until(hub: FakeHub, name: str, sent_bytes: int) -> None:
    deadline = time.monotonic() + 30
    while hub.sent_bytes[name] < sent_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestProcesses:
    def test_killed_process_leaves_what_it_had(self, hub: FakeHub, tmp_path: Path) -> None:
        made = make_plan(hub, tmp_path)
        hub.always[SECOND] = Behaviour(block_delay_s=0.01)
        for reached in (200_000, 500_000):
            child = start_child(made, tmp_path)
            wait_until(hub, SECOND, reached)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            assert not made.folder.exists()
        part = (incomplete(tmp_path) / f"{SECOND}.part").stat().st_size
        assert part > 100_000
        hub.always.clear()
        assert content(fetch_checkpoint(made, hub_settings(tmp_path, hub), retries=QUICK)) == needed(hub)
        assert hub.sent_bytes[FIRST] == len(hub.files[FIRST])
        starts = [request.range_start for request in hub.file_requests(SECOND)]
        assert starts[0] == 0 < starts[1] < starts[2] == part
        # What was sent twice is only what lay in sockets and buffers when the processes died.
        assert hub.sent_bytes[SECOND] - len(hub.files[SECOND]) < 300_000

    def test_interrupted_process_ends_at_once(self, hub: FakeHub, tmp_path: Path) -> None:
        made = make_plan(hub, tmp_path)
        hub.always[SECOND] = Behaviour(block_delay_s=0.05)
        child = start_child(made, tmp_path)
        wait_until(hub, SECOND, 100_000)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=10)
        assert child.returncode != 0
        assert (incomplete(tmp_path) / f"{SECOND}.part").stat().st_size > 0

    def test_second_process_waits_for_the_first(self, hub: FakeHub, tmp_path: Path) -> None:
        made = make_plan(hub, tmp_path)
        hub.always[SECOND] = Behaviour(block_delay_s=0.02)
        first = start_child(made, tmp_path)
        wait_until(hub, SECOND, 50_000)
        told: list[str] = []
        folder = fetch_checkpoint(made, hub_settings(tmp_path, hub), waiting=told.append, retries=QUICK)
        assert told == ["another tpudeploy is fetching stub:tiny; waiting for it to finish"]
        assert content(folder) == needed(hub)
        assert first.communicate()[0] == f"{folder}\n"
        assert all(len(hub.file_requests(name)) == 1 for name in NEEDED)

    def test_threads_wait_too(self, hub: FakeHub, tmp_path: Path) -> None:
        made = make_plan(hub, tmp_path)
        threads = [
            threading.Thread(target=fetch_checkpoint, args=(made, hub_settings(tmp_path, hub))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert content(made.folder) == needed(hub)
        assert all(len(hub.file_requests(name)) == 1 for name in NEEDED)
