"""The server's parts that need no server: turns, stop strings, addresses, options of the command."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_chat import ByteTokenizer
from tpudeploy.cli import serving
from tpudeploy.errors import UsageError
from tpudeploy.runtime.generator import TokenEvent
from tpudeploy.runtime.logprobs import TokenLogprobs
from tpudeploy.server.fair_queue import FairQueue, QueueFullError
from tpudeploy.server.listening import AddressError, is_loopback, listen, url_of
from tpudeploy.server.stop_text import StopText
from tpudeploy.server.token_texts import TokenTexts


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    expected = ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert list(queue) == expected
    assert [queue.take() for _ in range(7)] == [*expected, None]


def test_a_client_that_comes_back_waits_for_the_others() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "b1"):
        queue.put(item[0], item)
    assert queue.take() == "a1"
    queue.put("a", "a3")
    assert [queue.take() for _ in range(3)] == ["b1", "a2", "a3"]


def test_room_is_made_by_who_has_most() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for item in ("a1", "a2", "a3", "b1"):
        queue.put(item[0], item)
    assert queue.put("c", "c1") == "a3"
    with pytest.raises(QueueFullError):
        queue.put("a", "a4")
    with pytest.raises(QueueFullError):
        queue.put("b", "b2")  # it would have as many as the largest
    assert list(queue) == ["a1", "b1", "c1", "a2"]


def test_what_is_removed_is_not_taken() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for item in ("a1", "b1", "a2"):
        queue.put(item[0], item)
    assert queue.remove("b1")
    assert not queue.remove("b1")
    assert queue.counts() == {"a": 2}
    assert [queue.take(), queue.take(), len(queue)] == ["a1", "a2", 0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_however_it_is_used_the_queue_counts_right(steps: list[tuple[str, bool]]) -> None:
    queue: FairQueue[int] = FairQueue(7)
    held: set[int] = set()
    for number, (client, puts) in enumerate(steps):
        if puts:
            try:
                dropped = queue.put(client, number)
            except QueueFullError:
                assert len(queue) == 7
                continue
            held.add(number)
            held -= {dropped}  # type: ignore[arg-type]
        else:
            held -= {queue.take()}  # type: ignore[arg-type]
        assert set(queue) == held
        assert len(queue) == len(held) == sum(queue.counts().values()) <= 7


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.randoms(use_true_random=False),
)
def test_stop_strings_cut_the_same_text_however_it_comes(text: str, stops: list[str], chance: random.Random) -> None:
    # A stop string is met as soon as it is complete: the one that ends first wins, not the one that begins first.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    found = text[: min(ends)] if ends else text
    whole = min((found.find(stop) for stop in stops if stop in found), default=len(found))
    stream, shown, place = StopText(stops), "", 0
    while place < len(text):
        width = chance.randint(1, 3)
        shown += stream.push(text[place : place + width])
        place += width
    if not stream.hit:
        shown += stream.flush()
    assert stream.hit == bool(ends)
    assert shown == text[:whole]


def test_a_taken_port_is_told() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(AddressError, match="taken by another program") as error:
            listen("127.0.0.1", port)
        assert "--port" in error.value.hint
    with pytest.raises(AddressError, match="no address of this machine"):
        listen("192.0.2.1", 0)
    with pytest.raises(AddressError, match="no address of this machine"):
        listen("no.such.host.invalid", 0)


def test_addresses() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):  # noqa: S104
        assert not is_loopback(host)
    if socket.has_ipv6:
        try:
            with listen("::1", 0) as listener:
                assert url_of(listener).startswith("http://[::1]:")
        except AddressError:
            pytest.skip("no IPv6 here")


def test_without_a_key_only_this_machine_is_answered() -> None:
    serving.check_exposure("127.0.0.1", (), insecure=False)
    serving.check_exposure("0.0.0.0", ("a-long-key",), insecure=False)  # noqa: S104
    serving.check_exposure("0.0.0.0", (), insecure=True)  # noqa: S104
    with pytest.raises(UsageError, match="no API key") as error:
        serving.check_exposure("0.0.0.0", (), insecure=False)  # noqa: S104
    assert "--insecure-no-key" in error.value.hint


def test_hosts_matter_where_no_key_does() -> None:
    assert "localhost" in serving.allowed_hosts("127.0.0.1", (), ("box.local",))
    assert "box.local" in serving.allowed_hosts("127.0.0.1", (), ("box.local",))
    assert serving.allowed_hosts("127.0.0.1", ("a-long-key",), ()) == ()
    assert serving.allowed_hosts("0.0.0.0", (), ()) == ()  # noqa: S104


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nkey-number-one\n\nkey-number-two\n")
    assert serving.read_keys(["key-number-two", "key-three"], file) == ("key-number-two", "key-three", "key-number-one")
    file.write_text("# none\n")
    with pytest.raises(UsageError, match="holds no API key"):
        serving.read_keys([], file)
    with pytest.raises(UsageError, match="cannot be read"):
        serving.read_keys([], tmp_path / "missing")
    for key in ("", "short", "has a space in it"):
        with pytest.raises(UsageError, match="8 or more characters"):
            serving.read_keys([key], None)


def test_devices_of_replicas() -> None:
    assert serving.device_groups([], 1) == ((),)
    assert serving.device_groups([], 3) == ((), (), ())
    assert serving.device_groups(["0,1"], 1) == ((0, 1),)
    assert serving.device_groups(["0", "1"], 1) == ((0,), (1,))
    assert serving.device_groups(["0,1", "2,3"], 1) == ((0, 1), (2, 3))
    with pytest.raises(UsageError, match="exclude each other"):
        serving.device_groups(["0", "1"], 2)
    with pytest.raises(UsageError, match="as many devices"):
        serving.device_groups(["0", "1,2"], 1)


def test_tokens_of_an_answer_make_up_its_text() -> None:
    texts = TokenTexts(ByteTokenizer())
    answer, shown = "\n你 ok", 0
    stream = ByteTokenizer().stream()
    tokens = []
    for index, byte in enumerate(answer.encode()):
        text = stream.push(byte)
        text = "" if text == "\n" else text  # as a chat format does with the line that comes before an answer
        shown += len(text)
        texts.push(TokenEvent(byte, index, 0.0, TokenLogprobs(-0.5, ((byte, -0.5),))), text)
        tokens += texts.take(shown)
    assert [token.text for token in tokens] == ["\ufffd", "\ufffd", "你", " ", "o", "k"]
    assert tokens[-1].top == (("k", -0.5),)


def test_text_that_is_held_back_brings_its_token_when_it_is_shown() -> None:
    texts = TokenTexts(ByteTokenizer())
    for index, text in enumerate(("a", "", " b")):  # the space comes with the letter after it
        texts.push(TokenEvent(b"a b"[index], index, 0.0, TokenLogprobs(-float("inf"))), text)
    assert [token.text for token in texts.take(1)] == ["a"]
    assert [(token.text, token.logprob) for token in texts.take(3)] == [(" ", -9999.0), ("b", -9999.0)]
