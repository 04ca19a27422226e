"""Conversations on disk: whole or not at all, their owner's only, bounded in number, several terminals at once."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tpudeploy.cli.chat_keeper import ChatKeeper, resume_last
from tpudeploy.cli.chat_store import ChatStore, StoredChat, snapshot
from tpudeploy.contracts.chat import Message
from tpudeploy.errors import StorageError, UnknownNameError, UsageError


def chat(*questions: str, model: str = "m:1") -> StoredChat:
    messages = [Message(role="system", content="规则")]
    for question in questions:
        messages += [Message(role="user", content=question), Message(role="assistant", content=f"re: {question}")]
    return snapshot(model, messages, {"temperature": 0.5, "top_k": 4, "greedy": False, "seed": None, "draft": "none"})


def keep(store: ChatStore, *questions: str) -> str:
    return store.keep("", chat(*questions), seen="")


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "home")


def test_what_is_kept_comes_back(store: ChatStore) -> None:
    kept = chat("你好", "second")
    chat_id = store.keep("", kept, seen="")
    assert store.last() == (chat_id, kept)
    assert store.load(chat_id) == kept
    assert (kept.title, kept.turns) == ("你好", 2)
    assert type(store.load(chat_id).settings["top_k"]) is int


def test_tool_calls_are_kept(store: ChatStore) -> None:
    messages = (
        Message(role="system", content="", tools=({"name": "now", "parameters": {}},)),
        Message(role="user", content="time?"),
        Message(role="assistant", content="now()", metadata="now"),
        Message(role="observation", content="12:00"),
        Message(role="assistant", content="noon"),
    )
    chat_id = store.keep("", snapshot("m", messages, {}), seen="")
    assert store.load(chat_id).messages == messages


def test_only_the_owner_reads_it(store: ChatStore, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        chat_id = keep(store, "secret")
        store.save("mine", chat("secret"))
    finally:
        os.umask(old)
    root = tmp_path / "home" / "conversations"
    for folder in (root, root / "saved"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in (root / f"{chat_id}.json", root / "saved" / "mine.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_file_a_conversation_with_a_version(store: ChatStore, tmp_path: Path) -> None:
    chat_id = keep(store, "hi")
    (file,) = (tmp_path / "home" / "conversations").glob("*.json")
    data = json.loads(file.read_text())
    assert (file.stem, data["version"], data["model"]) == (chat_id, 1, "m:1")
    assert [message["role"] for message in data["messages"]] == ["system", "user", "assistant"]


def test_the_oldest_go_and_saved_ones_stay(tmp_path: Path) -> None:
    store = ChatStore(tmp_path, most_kept=3)
    store.save("good", chat("x"))
    ids = []
    for number in range(5):
        ids.append(keep(store, f"q{number}"))
        os.utime(tmp_path / "conversations" / f"{ids[-1]}.json", (number, number))
    ids.append(keep(store, "q5"))
    assert [entry.name for entry in store.entries()] == ["good", ids[5], ids[4], ids[3]]
    assert store.last()[0] == ids[5]


def test_two_terminals_do_not_overwrite_each_other(store: ChatStore) -> None:
    chat_id = keep(store, "begin")
    seen = store.last()[1].revision
    one, other = chat("begin", "one"), chat("begin", "other")
    assert store.keep(chat_id, one, seen=seen) == chat_id
    beside = store.keep(chat_id, other, seen=seen)
    assert beside != chat_id
    assert store.load(chat_id) == one and store.load(beside) == other
    assert store.keep(chat_id, chat("begin", "one", "two"), seen=one.revision) == chat_id
    assert store.keep(beside, chat("begin", "other", "two"), seen=other.revision) == beside


def test_many_writers_at_once(tmp_path: Path) -> None:
    store = ChatStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: keep(store, f"q{number}"), range(40)))
    assert len(set(ids)) == 40
    assert {store.load(chat_id).title for chat_id in ids} == {f"q{number}" for number in range(40)}
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_file_that_is_gone_is_written_again(store: ChatStore) -> None:
    chat_id = keep(store, "hi")
    seen = store.last()[1].revision
    store.delete(chat_id)
    assert store.keep(chat_id, chat("hi", "again"), seen=seen) == chat_id
    assert store.load(chat_id).turns == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b'{"version": 2, "revision": "", "model": "m", "messages": []}', "another version"),
        (b'{"version": 1, "revision": "", "model": "m", "messages": [{"role": "root", "content": ""}]}', "damaged"),
        (b'{"version": 1, "revision": "", "model": "m", "messages": [], "more": 1}', "damaged"),
    ],
)
def test_a_damaged_file_is_one_clear_error(store: ChatStore, tmp_path: Path, content: bytes, says: str) -> None:
    good = keep(store, "good")
    os.utime(tmp_path / "home" / "conversations" / f"{good}.json", (1, 1))
    bad = tmp_path / "home" / "conversations" / "20990101-000000-0000.json"
    bad.write_bytes(content)
    for read in (store.last, lambda: store.load(bad.stem)):
        with pytest.raises(StorageError, match=says) as caught:
            read()
        assert str(bad) in caught.value.message and "remove" in caught.value.hint
    assert [(entry.name, entry.chat is None) for entry in store.entries()] == [(bad.stem, True), (good, False)]
    assert store.load(good).title == "good"
    store.delete(bad.stem)
    assert store.last()[0] == good


def test_a_damaged_file_is_not_overwritten(store: ChatStore, tmp_path: Path) -> None:
    chat_id = keep(store, "hi")
    file = tmp_path / "home" / "conversations" / f"{chat_id}.json"
    file.write_bytes(b"{")
    assert store.keep(chat_id, chat("hi", "more"), seen="whatever") != chat_id
    assert file.read_bytes() == b"{"


def test_nothing_there(store: ChatStore, tmp_path: Path) -> None:
    assert store.entries() == []
    with pytest.raises(UsageError, match="no conversation to continue"):
        store.last()
    with pytest.raises(UnknownNameError):
        store.load("nothing")
    assert not (tmp_path / "home").exists()  # looking leaves nothing behind


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x\n", "-x", "a" * 300, "\x1b[31m"])
def test_names_that_are_none(store: ChatStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name"):
        store.save(name, chat("x"))
    with pytest.raises(UnknownNameError):
        store.load(name)
    assert not (tmp_path / "home").exists()


def test_saving_by_name(store: ChatStore) -> None:
    store.save("天气-1.2", chat("one"))
    with pytest.raises(UsageError, match="already"):
        store.save("天气-1.2", chat("two"))
    assert store.load("天气-1.2").title == "one"
    store.save("天气-1.2", chat("two"), replace=True)
    assert store.load("天气-1.2").title == "two"
    store.delete("天气-1.2")
    assert store.entries() == []


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_does_not_take_it_keeps_what_was_there(store: ChatStore, tmp_path: Path) -> None:
    chat_id = keep(store, "short")
    before = store.load(chat_id)
    with files_of_at_most(2000), pytest.raises(StorageError):
        store.keep(chat_id, chat("long" * 1000), seen=before.revision)
    assert store.load(chat_id) == before
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_home_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "conversations").write_text("a file")
    store = ChatStore(tmp_path)
    for use in (lambda: keep(store, "x"), lambda: store.save("x", chat("x"))):
        with pytest.raises(StorageError, match="conversations"):
            use()
    assert (tmp_path / "conversations").read_text() == "a file"


def test_the_leftovers_of_a_killed_process_go(store: ChatStore, tmp_path: Path) -> None:
    keep(store, "x")
    stale = tmp_path / "home" / "conversations" / ".abc.incomplete"
    stale.write_text("half")
    keep(store, "y")
    assert not stale.exists()


def test_the_keeper_says_once_that_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conversations").write_text("a file")
    keeper = ChatKeeper(ChatStore(tmp_path))
    for _ in range(2):
        assert not keeper.keep("m", chat("x").messages, {})
    assert capsys.readouterr().err.count("not kept") == 1
    quiet = ChatKeeper(ChatStore(tmp_path), quiet=True)
    assert not quiet.keep("m", chat("x").messages, {})
    assert capsys.readouterr().err == ""


def test_the_keeper_goes_on_in_the_same_file(store: ChatStore, capsys: pytest.CaptureFixture[str]) -> None:
    keeper = ChatKeeper(store)
    assert not keeper.keep("m", [Message(role="system", content="alone")], {})  # nothing was said yet
    for count in (1, 2):
        assert keeper.keep("m", chat(*["q"] * count).messages, {"top_k": 3, "seed": 1})
    assert [entry.chat.turns for entry in store.entries() if entry.chat] == [2]
    resumed = resume_last(store, given={"seed"})
    assert resumed.chat.settings == {"top_k": 3}
    other = ChatKeeper(store)
    other.resume(resumed)
    assert other.keep("m", chat("q", "q", "other").messages, {})
    assert keeper.keep("m", chat("q", "q", "own").messages, {})
    assert "another terminal" in capsys.readouterr().err
    assert len(store.entries()) == 2
    keeper.begin()
    assert keeper.keep("m", chat("new").messages, {})
    assert len(store.entries()) == 3


def test_what_is_taken_back_does_not_stay_on_disk(store: ChatStore, tmp_path: Path) -> None:
    keeper = ChatKeeper(store)
    assert keeper.keep("m", chat("secret").messages, {})
    assert keeper.keep("m", chat().messages, {})
    (path,) = (tmp_path / "home" / "conversations").glob("*.json")
    assert "secret" not in path.read_text()
    assert resume_last(store, given=()).chat.turns == 0


def test_turned_off_nothing_is_written(tmp_path: Path) -> None:
    keeper = ChatKeeper(ChatStore(tmp_path), enabled=False)
    assert not keeper.keep("m", chat("x").messages, {})
    assert list(tmp_path.iterdir()) == []
