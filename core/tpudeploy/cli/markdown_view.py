"""An answer as rendered Markdown while it grows, without flicker.

Blocks that are finished are printed and left alone. The last one is rendered anew as it grows, and of its rows only
those that differ are written, from the first of them on; in most steps that is the end of one row. Rows that have
scrolled out of the terminal cannot be changed any more and stay as they were.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from tpudeploy.cli.answer_view import AnswerView
from tpudeploy.cli.markdown_rows import THEME, finished_until, rows_of
from tpudeploy.cli.terminal import printable

_SLACK = 1
"""Columns left free: some terminals draw a character wider than Unicode says."""
_LEAST_WIDTH = 10
_PAUSE_S = 0.03
_SHARE = 5
"""At most one part in so many of the time goes into drawing: the processor also runs the model."""


class MarkdownView(AnswerView):
    """Renders one answer on stdout, which is a terminal."""

    def __init__(self) -> None:
        self._text = ""  # of the blocks that are not finished
        self._rows: list[str] = []  # of the same, as they stand in the terminal; the cursor is behind the last
        self._begun = False
        self._size = shutil.get_terminal_size()
        self._console = _console(self._size.columns)
        self._draw_at = 0.0
        self._drawn = ""

    def push(self, piece: str) -> None:
        """Show a piece, at once or together with the next."""
        self._text += printable(piece)
        began = time.monotonic()
        if began >= self._draw_at:
            self._draw()
            spent = time.monotonic() - began
            self._draw_at = began + max(_PAUSE_S, spent * _SHARE)

    def close(self) -> None:
        """Show what is left, and end the line."""
        self._draw()
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _draw(self) -> None:
        if self._text == self._drawn:
            return
        self._look_at_size()
        cut = finished_until(self._text)
        done = rows_of(self._text[:cut], self._console) if cut else []
        live = rows_of(self._text[cut:], self._console)
        if not live:  # a block of which nothing shows yet: nothing follows what is finished
            cut = 0
        rows = [*done, "", *live] if done and live else [*done, *live]
        if rows:  # what shows as nothing now is the beginning of something: until then the rows stay
            self._replace(rows)
            self._rows = rows[len(rows) - len(live) :] if cut else rows
        self._text = self._drawn = self._text[cut:]

    def _replace(self, rows: Sequence[str]) -> None:
        """Make the rows in the terminal ``rows``."""
        old = self._rows
        if rows == old:
            return
        same = next((i for i, (a, b) in enumerate(zip(old, rows, strict=False)) if a != b), min(len(old), len(rows)))
        out = self._go_to(min(max(same, len(old) - self._size.lines + 1), len(rows) - 1), rows)
        sys.stdout.write(out)
        sys.stdout.flush()
        self._begun = True

    def _go_to(self, first: int, rows: Sequence[str]) -> str:
        """What brings the terminal from its rows to these, of which those before ``first`` are right."""
        old = self._rows
        if first >= len(old):
            return ("\n" if self._begun else "") + "\n".join(rows[first:])
        if first == len(old) - 1 and rows[first].startswith(old[first]):
            return "\n".join([rows[first][len(old[first]) :], *rows[first + 1 :]])
        up = len(old) - 1 - first
        move = f"\x1b[{up}A\r" if up else "\r"
        return move + "\x1b[K\n".join(rows[first:]) + "\x1b[J"

    def _look_at_size(self) -> None:
        """After a change of width, nobody knows where the rows are: begin the block anew below."""
        size = shutil.get_terminal_size()
        if size.columns != self._size.columns:
            self._rows = []
            self._console = _console(size.columns)
        self._size = size


def _console(columns: int) -> Console:
    width = max(columns - _SLACK, _LEAST_WIDTH)
    return Console(file=sys.stdout, force_terminal=True, width=width, theme=THEME, highlight=False, markup=False)
