"""Answers as rendered Markdown: what a terminal shows in the end, and that nothing of a model's reaches it raw."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tpudeploy.cli import markdown_view
from tpudeploy.cli.answer_view import PlainView, answer_view, renders_markdown
from tpudeploy.cli.markdown_rows import THEME, break_offsets, finished_until, rows_of
from tpudeploy.cli.markdown_view import MarkdownView

SGR = re.compile(r"\x1b\[[0-9;]*m")
DOCUMENT = """# 标题

一段**粗体**的话，里面有 `code` 和一个 [链接](https://example.com/a)，很长很长，看看换行是不是正确的，标点不应该在行首。
second line

- one
- 二
  - nested

1. eins
2. zwei

> 引用

| 名 | value |
|---|---:|
| 温度 | 0.8 |

```python
def f(x):
    return "a long line of code that is wider than the terminal is, so that it must be broken somewhere"
```

#include <vector> stays, and so does <b>this</b>.
"""


class Screen(io.StringIO):
    """A terminal that keeps every row: line feeds, carriage returns, cursor up, erasing; no other escape sequence."""

    def __init__(self, columns: int = 40, lines: int = 12) -> None:
        super().__init__()
        self.columns, self.lines = columns, lines
        self.rows: list[str] = [""]
        self._row = self._column = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", SGR.sub("", text), re.S):
            if len(part) > 1:
                self._control(part[2:-1], part[-1])
            elif part == "\n":
                self._row, self._column = self._row + 1, 0
                self.rows += [""] * (self._row + 1 - len(self.rows))
            elif part == "\r":
                self._column = 0
            else:
                assert part.isprintable(), f"{part!r} reached the terminal"
                row = self.rows[self._row].ljust(self._column)
                self.rows[self._row] = row[: self._column] + part + row[self._column + 1 :]
                self._column += 1
                assert cell_len(self.rows[self._row]) < self.columns, "a row that the terminal would wrap"
        return len(text)

    def _control(self, number: str, what: str) -> None:
        if what == "A":
            self._row -= int(number)
            assert self._row >= max(0, len(self.rows) - self.lines), "a row that has scrolled out"
        elif what == "K":
            self.rows[self._row] = self.rows[self._row][: self._column]
        elif what == "J":
            self.rows[self._row] = self.rows[self._row][: self._column]
            del self.rows[self._row + 1 :]
        else:
            raise AssertionError(f"an escape sequence that is not ours: {number!r} {what!r}")

    @property
    def shown(self) -> list[str]:
        """Its rows, those that ended in spaces without them."""
        return [row.rstrip() for row in self.rows]


def connect(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(screen.columns))
    monkeypatch.setenv("LINES", str(screen.lines))
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr(markdown_view, "_PAUSE_S", 0.0)
    monkeypatch.setattr(markdown_view, "_SHARE", 0)
    return screen


def show(pieces: Sequence[str]) -> None:
    view = MarkdownView()
    for piece in pieces:
        view.push(piece)
    view.close()


def rows(text: str, width: int = 39) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, theme=THEME, highlight=False)
    return [SGR.sub("", row) for row in rows_of(text, console)]


@pytest.mark.parametrize(("columns", "lines"), [(40, 24), (80, 24)])
@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_the_screen_is_the_same_however_the_text_arrives(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: int, size: int
) -> None:
    screen = connect(Screen(columns, lines), monkeypatch)
    show([DOCUMENT[start : start + size] for start in range(0, len(DOCUMENT), size)])
    assert screen.shown == [*(row.rstrip() for row in rows(DOCUMENT, columns - 1)), ""]


def test_code_is_between_rules_and_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = connect(Screen(), monkeypatch)
    show(["Look:\n``", "`cpp\nint main() {\n", "    return 0;\n}\n```", "\nDone."])
    rule = "─" * 39
    assert screen.shown == ["Look:", "", f"cpp {rule[4:]}", "int main() {", "    return 0;", "}", rule, "", "Done.", ""]


def test_an_answer_longer_than_the_terminal_scrolls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that have scrolled out are never written again: the screen would refuse to go there."""
    screen = connect(Screen(40, 6), monkeypatch)
    text = "```\n" + "".join(f"line {number}\n" for number in range(50)) + "```\n\nend"
    show(list(text))
    assert [row for row in screen.shown if row.startswith("line")] == [f"line {number}" for number in range(50)]
    assert screen.shown[-2:] == ["end", ""]


def test_only_what_changed_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Recorder(Screen):
        def write(self, text: str) -> int:
            written.append(text)
            return super().write(text)

    connect(Recorder(), monkeypatch)
    show(["Hello", " wor", "ld.", "\n\nNext"])
    assert [text for text in written if text] == ["Hello", " wor", "ld.", "\n\nNext", "\n"]


def test_after_a_resize_the_block_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = connect(Screen(), monkeypatch)
    view = MarkdownView()
    view.push("First.\n\nsome words")
    monkeypatch.setenv("COLUMNS", "60")
    screen.columns = 60
    view.push(" and more")
    view.close()
    assert screen.shown == ["First.", "", "some words", "some words and more", ""]


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "`\x1b[2J`",
        "```\n\x1b[2J\n```",
        "[x](http://a/\x1b]8;;evil\x1b\\)",
        "&#27;[31m &#x9b;31m &#155;",
        "a\rb\bc\x7f\x9b31m",
        "&#13;&#12;&#8;overwritten",
        "![\x1b[31m](\x1b[31m)",
        "| \x1b[31m |\n|---|\n| \x1b[31m |",
        "<b onclick='\x1b[31m'>",
    ],
)
def test_no_escape_sequence_of_a_models_reaches_the_terminal(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    screen = connect(Screen(), monkeypatch)
    show(list(text))  # the screen knows no escape sequence but the view's own, and no control character
    assert "".join(screen.rows).strip()


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab 你，*_`~#>-1.|[]()<>&;!\\\n\t\x1b\x9b\r")))
def test_any_text_is_drawn(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        connect(Screen(), patch)
        show([text[start : start + 3] for start in range(0, len(text), 3)])


def test_html_and_line_breaks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = connect(Screen(), monkeypatch)
    show(["#include <vector>\nnext <br> line"])
    assert screen.shown == ["#include <vector>", "next <br> line", ""]


def test_links_show_where_they_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = connect(Screen(), monkeypatch)
    show(["[bank](https://evil.example)"])
    assert screen.shown == ["bank (https://evil.example)", ""]


def test_chinese_is_wrapped_between_characters() -> None:
    assert cut("abc 你好，世界", 6) == ["abc 你", "好，世", "界"]
    assert cut("abc 你好，世界", 8) == ["abc 你", "好，世界"]  # no comma begins a row
    assert cut("one two three", 8) == ["one two ", "three"]
    assert cut("a" * 20, 8) == ["a" * 8, "a" * 8, "a" * 4]
    assert cut("", 8) == [""]


def cut(text: str, width: int) -> list[str]:
    offsets = [0, *break_offsets(text, width), len(text)]
    return [text[start:end] for start, end in pairwise(offsets)]


@given(st.text(st.sampled_from("ab ，。你好（)")), st.integers(2, 12))
def test_no_row_is_too_wide(text: str, width: int) -> None:
    assert all(cell_len(row.rstrip()) <= width for row in cut(text, width))
    assert "".join(cut(text, width)) == text


def test_the_last_block_is_not_finished() -> None:
    assert finished_until("one\n\ntwo") == len("one\n\n")
    assert finished_until("- one\n\n- two\n") == 0
    assert finished_until("```\none\n\ntwo") == 0
    assert finished_until("") == 0


def test_where_markdown_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(Screen(), monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert renders_markdown(None) and renders_markdown(True) and not renders_markdown(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert renders_markdown(True) and not renders_markdown(None)
    monkeypatch.setenv("TERM", "dumb")
    assert not renders_markdown(True) and not renders_markdown(None)
    assert isinstance(answer_view(markdown=True), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(answer_view(markdown=True), MarkdownView)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not renders_markdown(True)


def test_no_color_means_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = connect(Screen(), monkeypatch)
    written: list[str] = []
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(screen, "write", written.append)
    show(["`code` **bold**\n```python\nprint('x')  # y\n```"])
    colours = {code for codes in re.findall(r"\x1b\[([0-9;]*)m", "".join(written)) for code in codes.split(";")}
    assert colours <= {"", "0", "1", "2", "3", "4"}
