"""How an answer is shown as it comes: as it is, or as rendered Markdown."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod

from tpudeploy.cli.line_reader import is_dumb
from tpudeploy.cli.terminal import printable


class AnswerView(ABC):
    """Where the pieces of one answer go."""

    @abstractmethod
    def push(self, piece: str) -> None:
        """Show a piece."""

    @abstractmethod
    def close(self) -> None:
        """Show what is left, and end the line. Call it once, whatever happened."""


class PlainView(AnswerView):
    """Text as it comes; a terminal gets no control characters."""

    def push(self, piece: str) -> None:
        """Show a piece at once."""
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()

    def close(self) -> None:
        """End the line."""
        sys.stdout.write("\n")
        sys.stdout.flush()


def answer_view(*, markdown: bool) -> AnswerView:
    """A view for one answer. :param markdown: render, where the terminal can."""
    if not (markdown and can_render()):
        return PlainView()
    from tpudeploy.cli.markdown_view import MarkdownView

    return MarkdownView()


def can_render() -> bool:
    """Whether rows can be drawn again on stdout."""
    return sys.stdout.isatty() and not is_dumb()


def renders_markdown(wanted: bool | None) -> bool:
    """Whether to render. :param wanted: what the user said; None: wherever there are colours to do it with."""
    if wanted is None:
        return can_render() and not os.environ.get("NO_COLOR")
    return wanted and can_render()
