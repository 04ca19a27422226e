"""The conversation in a terminal that understands escape sequences: editing, history, pasting, rendered answers."""

from __future__ import annotations

import json
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_support import Terminal, environment, run_program
from tpudeploy.cli.line_history import MOST_KEPT, LineHistory
from tpudeploy.cli.line_reader import is_open, unquote

PROMPT = ">>>"
READY = "\x1b[?2004h"
"""What the editor says when it is there: pasted text is to be marked."""
CODE = "How do I run ChatGLM3?"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled."""
    folder = tmp_path_factory.mktemp("home")
    assert run_program("run", "chatglm3:demo", "Hello", env=environment(folder)).returncode == 0
    return folder


def terminal(home: Path, *options: str, columns: int = 80, **variables: str) -> Terminal:
    variables = {"NO_COLOR": "", "TERM": "xterm-256color"} | variables
    return Terminal("run", "chatglm3:demo", *options, env=environment(home, **variables), columns=columns)


@pytest.fixture
def chat(home: Path) -> Iterator[Terminal]:
    with terminal(home) as opened:
        opened.expect(READY)
        yield opened


def leave(chat: Terminal) -> None:
    chat.expect(READY)
    chat.type("\x04")
    assert chat.wait() == 0
    assert "Traceback" not in chat.seen and "error" not in chat.seen


def last_conversation(home: Path) -> list[dict[str, str]]:
    files = sorted((home / "conversations").glob("*.json"), key=lambda path: path.stat().st_mtime)
    messages: list[dict[str, str]] = json.loads(files[-1].read_text())["messages"]
    return messages


def shown(text: str) -> str:
    return ESCAPES.sub("", text).replace("\r", "")


def test_messages_of_several_lines(chat: Terminal, home: Path) -> None:
    chat.type('"""Hex\r')  # Enter begins a line while the quotes are open
    chat.expect("...")
    chat.type('llo"""')
    chat.type("\x1b[A\x05\x7f")  # up, to the end, rub out the x
    chat.type("\x1b[B\x05\r")  # down, to the end, Enter
    chat.expect(READY)
    chat.type("\x1b[200~first line\n第二行\n/help\x1b[201~")
    chat.expect("/help")
    chat.type("\r")
    chat.expect(READY)
    chat.type("one\x1b\rtwo\r")  # Alt-Enter
    leave(chat)
    said = [message["content"] for message in last_conversation(home) if message["role"] == "user"]
    assert said == ["He\nllo", "first line\n第二行\n/help", "one\ntwo"]


def test_keys(chat: Terminal) -> None:
    chat.type("half a line")
    chat.expect("half a line")
    chat.type("\x03/sta\t\r")  # Ctrl-C clears, Tab completes
    chat.expect("0 answers")
    chat.expect(READY)
    chat.type("\x03")
    chat.expect("Ctrl-D or /exit leaves")
    chat.expect(READY)
    chat.kill(signal.SIGTERM)
    chat.expect("\x1b[?2004l")  # the terminal is as it was; what is not read when its owner has ended is lost
    assert chat.wait() == 128 + signal.SIGTERM


def test_bytes_that_are_no_utf8_are_kept_as_the_sign_for_that(chat: Terminal, home: Path) -> None:
    chat.type("caf\udce9\r")
    leave(chat)
    assert last_conversation(home)[0]["content"] == "caf\N{REPLACEMENT CHARACTER}"
    kept = (home / "chat-history").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(kept) == "caf\N{REPLACEMENT CHARACTER}"


def test_ctrl_z_is_no_character_of_a_message(chat: Terminal, home: Path) -> None:
    chat.type("half\x1a")  # this terminal has no shell that could take over, so nothing stops
    chat.type(" a line\r")
    chat.expect(READY)
    leave(chat)
    assert last_conversation(home)[0]["content"] == "half a line"


def test_what_was_typed_is_found_again(home: Path) -> None:
    for keys in ("你好 needle\x1b\rsecond\r", "\x12needle\r\r"):  # the second time by Ctrl-R
        with terminal(home) as chat:
            chat.expect(READY)
            chat.type(keys)
            leave(chat)
        assert last_conversation(home)[0]["content"] == "你好 needle\nsecond"
    history = home / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert json.loads(history.read_text().splitlines()[-1]) == "你好 needle\nsecond"


def test_keys_pressed_during_an_answer_wait_for_the_prompt(home: Path) -> None:
    with terminal(home, "--ignore-eos", "--max-new-tokens", "250") as chat:
        chat.expect(READY)
        chat.type("Hello\r")
        chat.expect("demo model")
        chat.type("/stats\r")
        between = chat.expect("1 answers")
        assert "/stats" not in between.partition("length limit")[0]
        leave(chat)


def test_code_is_rendered(home: Path) -> None:
    with terminal(home, columns=40) as chat:
        chat.expect(READY)
        chat.type(f"{CODE}\r")
        answer = chat.expect(READY)
        chat.type("/set markdown off\r")
        chat.expect("markdown is off")
        chat.expect(READY)
        chat.type("/retry\r")
        plain = chat.expect(READY)
        chat.type("\x04")
        assert chat.wait() == 0
    rule = "─" * 39
    assert "\x1b[" in answer.partition("run")[2]
    assert "```" not in answer and f"shell {rule[6:]}" in shown(answer) and rule in shown(answer)
    assert "tpudeploy run chatglm3 --quant int8\n" in shown(answer)
    assert "```shell\ntpudeploy run chatglm3 --quant int8\n```" in shown(plain)


def test_markdown_is_off_where_colours_are_not_wanted(home: Path) -> None:
    with terminal(home, NO_COLOR="1") as chat:
        chat.expect(READY)
        chat.type(f"{CODE}\r")
        assert "```shell\ntpudeploy run chatglm3 --quant int8\n```" in shown(chat.expect(READY))
        chat.type("\x04")
        assert chat.wait() == 0


def test_one_question_is_rendered_in_a_terminal_and_nowhere_else(home: Path) -> None:
    with terminal(home, CODE) as asked:
        assert asked.wait() == 0
    assert "```" not in asked.seen and "shell ─" in shown(asked.seen)
    piped = run_program("run", "chatglm3:demo", "--markdown", CODE, env=environment(home, TERM="xterm"))
    assert piped.stdout == "One command:\n```shell\ntpudeploy run chatglm3 --quant int8\n```\n"


def test_quotes() -> None:
    assert [is_open(text) for text in ('"""', '"""a', '  """a\nb', '"""a"""', '"""a""" ', "a", 'a """', "")] == [
        *(True, True, True),
        *(False, False, False, False, False),
    ]
    assert is_open('/system """a') and not is_open('/system """a"""') and not is_open("/system a")
    assert unquote('"""\na\nb\n"""') == "a\nb"
    assert unquote(' a """b""" ') == ' a """b""" '
    assert [unquote(text) for text in ('"""a"""', '"""', '""""""')] == ["a", '"""', ""]


def test_the_history_file(tmp_path: Path) -> None:
    path = tmp_path / "home" / "history"
    history = LineHistory(path)
    assert history.load() == []
    entries = ["one", "第二\nline", "three\u2028four", '"quoted"']
    for entry in entries:
        history.add(entry)
    assert LineHistory(path).load() == entries
    with path.open("ab") as stream:
        stream.write(b"as readline wrote it\n\xff\n{}\n")
    assert LineHistory(path).load() == [*entries, "as readline wrote it", "\N{REPLACEMENT CHARACTER}"]
    path.write_text("".join(f'"{number}"\n' for number in range(3 * MOST_KEPT)))
    assert len(LineHistory(path).load()) == MOST_KEPT
    assert len(path.read_text().splitlines()) == MOST_KEPT
    assert LineHistory(None).load() == []
    LineHistory(tmp_path).add("a folder is no file")  # costs the history and nothing else
    assert LineHistory(tmp_path).load() == []
