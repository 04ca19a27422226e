"""Downloading: whole and checked, whatever server, network and user do in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import (
    NEEDED,
    Behaviour,
    FakeHub,
    content,
    fetch,
    hub_fixture,
    hub_settings,
    incomplete,
    make_plan,
    needed,
    serving,
)
from tpudeploy.errors import FetchError, StorageError
from tpudeploy.fetch import FetchProgress, Hub, fetch_checkpoint
from tpudeploy.fetch.parts import Parts

__all__ = ["hub_fixture"]

FIRST, SECOND = NEEDED[3], NEEDED[4]
INDEX = NEEDED[2]


@pytest.mark.parametrize("which", list(Hub))
def test_every_file_arrives(hub: FakeHub, tmp_path: Path, which: Hub) -> None:
    folder = fetch(hub, tmp_path, which)
    assert folder == tmp_path / "models" / "stub-tiny"
    assert content(folder) == needed(hub)
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.endswith(".lock")] == ["stub-tiny"]
    assert all(len(hub.file_requests(name)) == 1 for name in NEEDED)


def test_second_fetch_asks_for_nothing(hub: FakeHub, tmp_path: Path) -> None:
    made = make_plan(hub, tmp_path)
    fetch_checkpoint(made, hub_settings(tmp_path, hub))
    hub.requests.clear()
    fetch_checkpoint(made, hub_settings(tmp_path, hub, offline=True))
    assert hub.requests == []


def test_progress_adds_up(hub: FakeHub, tmp_path: Path) -> None:
    events: list[FetchProgress] = []
    fetch_checkpoint(make_plan(hub, tmp_path), hub_settings(tmp_path, hub), events.append)
    total = sum(map(len, needed(hub).values()))
    assert {event.total_bytes for event in events} == {total}
    done = [event.done_bytes for event in events]
    assert done == sorted(done)
    assert done[-1] == total
    assert {event.file for event in events} == set(NEEDED)
    assert {event.status for event in events} == {"downloading", "checking"}
    assert max(event.bytes_per_s for event in events) > 0


def test_connection_that_breaks_is_continued(hub: FakeHub, tmp_path: Path) -> None:
    hub.queue[SECOND] = [Behaviour(drop_after=300_000), Behaviour(drop_after=200_000)]
    assert content(fetch(hub, tmp_path)) == needed(hub)
    starts = [request.range_start for request in hub.file_requests(SECOND)]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] <= 300_000
    assert starts[1] < starts[2] <= 500_000
    assert hub.sent_bytes[SECOND] < len(hub.files[SECOND]) + 2 * 65_536


def test_more_breaks_than_tries_as_long_as_something_arrives(hub: FakeHub, tmp_path: Path) -> None:
    hub.queue[SECOND] = [Behaviour(drop_after=100_000)] * 8
    assert content(fetch(hub, tmp_path)) == needed(hub)


def test_stalled_connection_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.queue[SECOND] = [Behaviour(block_delay_s=3)]
    assert content(fetch(hub, tmp_path)) == needed(hub)


def test_server_without_ranges(hub: FakeHub, tmp_path: Path) -> None:
    hub.queue[SECOND] = [Behaviour(drop_after=300_000), Behaviour(ignore_range=True)]
    assert content(fetch(hub, tmp_path)) == needed(hub)


def test_server_without_ranges_that_never_gets_through(hub: FakeHub, tmp_path: Path) -> None:
    hub.always[SECOND] = Behaviour(drop_after=300_000, ignore_range=True)
    with pytest.raises(FetchError, match=rf"{SECOND}: .*\(4 tries\).*HF_ENDPOINT"):
        fetch(hub, tmp_path)


def test_server_without_lengths(hub: FakeHub, tmp_path: Path) -> None:
    hub.queue[SECOND] = [Behaviour(no_length=True, drop_after=300_000), Behaviour(no_length=True)]
    assert content(fetch(hub, tmp_path)) == needed(hub)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_pass(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.queue[FIRST] = [Behaviour(status=status, headers={"Retry-After": "0"}), Behaviour(status=status)]
    assert content(fetch(hub, tmp_path)) == needed(hub)


def test_failures_that_do_not_pass(hub: FakeHub, tmp_path: Path) -> None:
    hub.always[FIRST] = Behaviour(status=502)
    with pytest.raises(FetchError, match=rf"{FIRST}: 127.0.0.1 answered 502 Bad Gateway \(4 tries\)"):
        fetch(hub, tmp_path)
    assert not (tmp_path / "models" / "stub-tiny").exists()


@pytest.mark.parametrize("status", [404, 403, 410])
def test_final_failures_are_not_repeated(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.always[FIRST] = Behaviour(status=status)
    with pytest.raises(FetchError, match=f"answered {status}"):
        fetch(hub, tmp_path)
    assert len(hub.file_requests(FIRST)) == 1


def test_wrong_digest_once(hub: FakeHub, tmp_path: Path) -> None:
    wrong = bytes(len(hub.files[FIRST]))
    hub.queue[FIRST] = [Behaviour(body=wrong)]
    assert content(fetch(hub, tmp_path)) == needed(hub)


@pytest.mark.parametrize("name", [FIRST, "config.json"])
def test_wrong_digest_always(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.always[name] = Behaviour(body=bytes(len(hub.files[name])))
    with pytest.raises(FetchError, match=rf"{name}: .*digest.*second try"):
        fetch(hub, tmp_path)
    assert not (tmp_path / "models" / "stub-tiny").exists()
    assert not (incomplete(tmp_path) / name).exists()
    del hub.always[name]
    assert content(fetch(hub, tmp_path)) == needed(hub)


def test_wrong_length(hub: FakeHub, tmp_path: Path) -> None:
    hub.always[FIRST] = Behaviour(body=b"<html>Please log in</html>")
    with pytest.raises(FetchError, match="has 26 bytes, the hub's listing says 700000"):
        fetch(hub, tmp_path)


def test_endless_body_is_not_received(hub: FakeHub, tmp_path: Path) -> None:
    hub.always[FIRST] = Behaviour(body=bytes(3_000_000), no_length=True)
    with pytest.raises(FetchError, match="sends more than the 700000 bytes"):
        fetch(hub, tmp_path)
    assert not Parts(tmp_path / "models" / "stub-tiny").part_path(make_plan(hub, tmp_path).files[3]).exists()


def test_files_without_any_digest(hub: FakeHub, tmp_path: Path) -> None:
    hub.lies = {name: {"Sha256": None} for name in hub.files}
    hub.queue[SECOND] = [Behaviour(drop_after=300_000)]
    assert content(fetch(hub, tmp_path, Hub.MODELSCOPE)) == needed(hub)


def test_empty_file(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["tokenizer.model"] = b""
    assert content(fetch(hub, tmp_path)) == needed(hub)


def test_index_that_names_other_shards(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[INDEX] = json.dumps({"weight_map": {"a": "model-00009-of-00009.safetensors"}}).encode()
    with pytest.raises(FetchError, match=r"names model-00009-of-00009\.safetensors, which the hub's listing does not"):
        fetch(hub, tmp_path)
    assert hub.file_requests(FIRST) == []
    hub.files[INDEX] = b'["weight_map"]'
    with pytest.raises(FetchError, match="not an index"):
        fetch(hub, tmp_path)


class TestRedirected:
    @pytest.fixture
    def cdn(self, hub: FakeHub) -> Iterator[FakeHub]:
        with serving(FakeHub(hub.files)) as other:
            for name in (FIRST, SECOND):
                hub.always[name] = Behaviour(redirect=f"{other.address}/cdn/{name}")
            yield other

    def test_is_followed(self, hub: FakeHub, cdn: FakeHub, tmp_path: Path) -> None:
        cdn.queue[SECOND] = [Behaviour(drop_after=300_000)]
        assert content(fetch(hub, tmp_path)) == needed(hub)
        assert [request.range_start > 0 for request in cdn.file_requests(SECOND)] == [False, True]

    def test_token_stays_with_the_hub(
        self, hub: FakeHub, cdn: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "secret")
        fetch(hub, tmp_path)
        assert {request.headers.get("authorization") for request in hub.requests} == {"Bearer secret"}
        assert cdn.requests
        assert {request.headers.get("authorization") for request in cdn.requests} == {None}

    def test_round_and_round(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.always[FIRST] = Behaviour(
            redirect=f"{hub.address}/owner/name/resolve/{'0123456789abcdef' * 2}01234567/{FIRST}"
        )
        with pytest.raises(FetchError, match="redirects"):
            fetch(hub, tmp_path)

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://hub.invalid/x"])
    def test_to_another_protocol(self, hub: FakeHub, tmp_path: Path, target: str) -> None:
        hub.always[FIRST] = Behaviour(redirect=target)
        with pytest.raises(FetchError, match="protocol"):
            fetch(hub, tmp_path)


class TestDisk:
    def test_no_room(self, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = make_plan(hub, tmp_path)
        monkeypatch.setattr("tpudeploy.fetch.download.free_bytes", lambda folder: 1_000_000)
        with pytest.raises(StorageError, match=r"stub:tiny needs 0\.0 GB more, and 0\.0 GB are free.*TPUDEPLOY_HOME"):
            fetch_checkpoint(made, hub_settings(tmp_path, hub))
        assert hub.file_requests("config.json") == []

    def test_disk_that_fills_up(self, hub: FakeHub, tmp_path: Path) -> None:
        with limited_file_size(500_000), pytest.raises(StorageError):
            fetch(hub, tmp_path)
        assert (incomplete(tmp_path) / f"{FIRST}.part").stat().st_size <= 500_000
        assert content(fetch(hub, tmp_path)) == needed(hub)


class limited_file_size:  # noqa: N801 - a context manager
    """No file of this process may grow over a size, as on a full disk."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __enter__(self) -> None:
        import resource

        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size_bytes, self._before[1]))

    def __exit__(self, *error: object) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
