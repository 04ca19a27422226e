"""The conversation, in a real terminal: streaming, Ctrl-C, Ctrl-D, commands, history."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_support import Terminal, environment, run_program

PROMPT = ">>> "
LONG = ("--seq-length", "2048", "--ignore-eos")
"""An answer that does not end by itself for seconds."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled, short and long."""
    folder = tmp_path_factory.mktemp("home")
    for options in ((), LONG):
        arguments = ("run", "chatglm3:demo", *options, "--max-new-tokens", "1", "Hello")
        assert run_program(*arguments, env=environment(folder)).returncode == 0
    return folder


@pytest.fixture
def chat(home: Path) -> Iterator[Terminal]:
    """A conversation that waits for its first message."""
    with Terminal("run", "chatglm3:demo", env=environment(home)) as terminal:
        terminal.expect(PROMPT)
        yield terminal


def test_several_turns_then_ctrl_d_leaves(chat: Terminal) -> None:
    assert "/help" in chat.seen
    chat.type("Hello\n")
    chat.expect("I am chatglm3:demo")
    chat.expect(PROMPT)
    chat.type("你好\n")
    chat.expect("演示模型")
    chat.expect(PROMPT)
    chat.type("/stats\n")
    chat.expect("2 answers")
    chat.expect("tokens/s")
    chat.expect(PROMPT)
    chat.type("\x04")
    assert chat.wait() == 0


def test_commands(chat: Terminal) -> None:
    chat.type("/help\n")
    for command in ("/reset", "/stats", "/exit", "Ctrl-C"):
        chat.expect(command)
    chat.expect(PROMPT)
    chat.type("Hello\n")
    chat.expect(PROMPT)
    chat.type("/reset\n")
    chat.expect("forgotten")
    chat.expect(PROMPT)
    chat.type("/stats\n")
    chat.expect("0 answers")
    chat.expect(PROMPT)
    chat.type("/nonsense\n")
    chat.expect("There is no command /nonsense")
    chat.expect(PROMPT)
    chat.type("\n  \n")
    chat.expect(PROMPT)
    chat.expect(PROMPT)
    chat.type("/exit\n")
    assert chat.wait() == 0


def test_ctrl_c_stops_the_answer_and_the_session_goes_on(home: Path) -> None:
    with Terminal("run", "chatglm3:demo", *LONG, env=environment(home)) as chat:
        chat.expect(PROMPT)
        chat.type("Hello\n")
        chat.expect("demo model")
        chat.type("\x03")
        chat.expect("(stopped)", timeout_s=10)
        chat.expect(PROMPT)
        chat.type("/stats\n")
        chat.expect("1 answers")
        chat.expect(PROMPT)
        chat.type("你好\n")
        chat.expect("chatglm3:demo")
        chat.type("\x03")
        chat.expect("(stopped)", timeout_s=10)
        chat.expect(PROMPT)
        chat.type("\x04")
        assert chat.wait() == 0
    assert "Traceback" not in chat.seen


def press_ctrl_c(chat: Terminal, *, until: str) -> None:
    """Press Ctrl-C at the prompt, again where it came between the prompt and the reading of the line."""
    for _ in range(20):
        chat.type("\x03")
        try:
            chat.expect(until, timeout_s=5)
        except AssertionError:
            continue
        return
    raise AssertionError(f"Ctrl-C never led to {until!r}; the terminal has:\n{chat.seen}")


def test_ctrl_c_at_the_prompt_forgets_the_line_and_leaves_nothing(chat: Terminal) -> None:
    chat.type("half a li")
    chat.expect("half a li")
    press_ctrl_c(chat, until="Ctrl-D or /exit leaves")
    chat.expect(PROMPT)
    chat.type("/stats\n")
    chat.expect("0 answers")
    chat.expect(PROMPT)
    chat.type("\x04")
    assert chat.wait() == 0


def test_the_answer_streams(home: Path) -> None:
    """The first words are there long before the last."""
    with Terminal("run", "chatglm3:demo", *LONG, "--max-new-tokens", "1000", env=environment(home)) as chat:
        chat.expect(PROMPT)
        chat.type("Hello\n")
        chat.expect("Hello!")
        began = time.monotonic()
        chat.expect("(ended by the length limit)")
        assert time.monotonic() - began > 0.2
        chat.expect(PROMPT)
        chat.type("\x04")
        assert chat.wait() == 0


def test_a_message_of_several_lines(chat: Terminal) -> None:
    chat.type('"""Hel\n')
    chat.expect("... ")
    chat.type('lo"""\n')
    chat.expect(PROMPT)
    chat.type('"""Hello"""\n')
    chat.expect("I am chatglm3:demo")
    chat.expect(PROMPT)
    chat.type('"""never\n')
    chat.expect("... ")
    chat.type("more")
    chat.expect("more")
    press_ctrl_c(chat, until="leaves")
    chat.expect(PROMPT)
    chat.type("/stats\n")
    chat.expect("2 answers")
    chat.expect(PROMPT)
    chat.type("\x04")
    assert chat.wait() == 0


def test_what_was_typed_is_kept_for_the_arrow_keys(home: Path) -> None:
    env = environment(home, TERM="xterm")
    for keys in ("/stats\n", "\x1b[A\n"):
        with Terminal("run", "chatglm3:demo", env=env) as chat:
            chat.expect(PROMPT.strip())
            chat.type(keys)
            chat.expect("0 answers")
            chat.expect(PROMPT.strip())
            chat.type("\x04")
            assert chat.wait() == 0
    assert stat.S_IMODE((home / "chat-history").stat().st_mode) == 0o600


def test_typed_bytes_that_are_no_utf8_end_nothing(home: Path) -> None:
    # As in any locale with UTF-8 but that named C, where Python is lenient by itself.
    with Terminal("run", "chatglm3:demo", env=environment(home, PYTHONIOENCODING="utf-8:strict")) as chat:
        chat.expect(PROMPT)
        chat.type("caf\udce9\n")
        chat.expect(PROMPT)
        chat.type("/list\n")
        chat.expect("caf\N{REPLACEMENT CHARACTER}")
        chat.expect(PROMPT)
        chat.type("\x04")
        assert chat.wait() == 0


def test_a_message_that_is_too_long_leaves_the_session_usable(home: Path) -> None:
    with Terminal("run", "chatglm3:demo", env=environment(home)) as chat:
        chat.expect(PROMPT)
        for _ in range(6):  # a terminal takes some four thousand characters a line
            chat.type('"""' + "早上好 " * 100 + "\n" if _ == 0 else "早上好 " * 100 + "\n")
            chat.expect("... ")
        chat.type('"""\n')
        chat.expect("error: ")
        chat.expect(PROMPT)
        chat.type("Hello\n")
        chat.expect("I am chatglm3:demo")
        chat.expect(PROMPT)
        chat.type("\x04")
        assert chat.wait() == 0


def test_the_live_progress_line_is_gone_when_the_answer_comes(tmp_path: Path) -> None:
    env = environment(tmp_path, TERM="xterm")
    with Terminal("run", "chatglm3:demo", "Hello", env=env) as terminal:
        terminal.expect("slice")
        terminal.expect("remaining")
        terminal.expect("I am chatglm3:demo")
        assert terminal.wait() == 0
    last = terminal.seen.splitlines()[-2]
    assert last.endswith("a very small demo model.")


def test_ctrl_c_while_compiling_ends_the_program(tmp_path: Path) -> None:
    with Terminal("run", "chatglm3:demo", env=environment(tmp_path, TERM="xterm")) as terminal:
        terminal.expect("slice")
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.seen
    assert list(tmp_path.rglob("*.incomplete")) == []


def test_without_a_terminal_there_is_no_conversation(home: Path) -> None:
    done = run_program("run", "chatglm3:demo", env=environment(home))
    assert done.returncode == 2
    assert "prompt is empty" in done.stderr
    with Terminal("run", "chatglm3:demo", "--json", env=environment(home)) as terminal:
        terminal.expect("there is no prompt")
        assert terminal.wait() == 2
