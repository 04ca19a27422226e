"""Markdown as rows of a terminal, by rich.

Other than rich by itself: a line break in the text is one in the terminal, HTML stays text instead of vanishing,
Chinese is wrapped between its characters, links show where they lead, code has no colour behind it that a terminal
would copy as spaces. Nothing that a model writes reaches the terminal as an escape sequence: control characters go
first, and rich makes the rows of what is left, whose text is looked at once more, for Markdown has entities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderResult
from rich.containers import Lines
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownContext, MarkdownElement, Paragraph
from rich.rule import Rule
from rich.segment import Segment, Segments
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from tpudeploy.cli.terminal import printable

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_CODE_THEME = "ansi_dark"
THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.code_block": "none",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold",
        "markdown.h5": "bold",
        "markdown.h6": "bold",
        "markdown.item.bullet": "bold",
        "markdown.item.number": "bold",
        "markdown.block_quote": "dim",
    }
)
_NOT_FIRST = frozenset("，。！？、；：）》」』】〉〕”’…—～,.!?;:)]}%")
"""What must not begin a row."""
_NOT_LAST = frozenset("（《「『【〈〔“‘([{")
"""What must not end one."""


def rows_of(text: str, console: Console) -> list[str]:
    """``text`` as rows with their escape sequences, none wider than the console, an empty one between blocks."""
    rows: list[str] = []
    for block in _blocks(_PARSER.parse(text)):
        shown = _rows_of_block(block, console)
        rows += [""] * bool(rows and shown) + shown
    return rows


def _blocks(tokens: Iterable[Token]) -> Iterator[list[Token]]:
    """The tokens of each paragraph, list, table or the like."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _rows_of_block(block: list[Token], console: Console) -> list[str]:
    rows = [_row(line, console) for line in console.render_lines(_Block(block), pad=False)]
    while rows and not rows[0]:
        del rows[0]
    while rows and not rows[-1]:
        del rows[-1]
    return rows


def finished_until(text: str) -> int:
    """Where the last block of ``text`` begins: what comes before will look the same, whatever follows."""
    blocks = [token for token in _PARSER.parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    if len(blocks) < 2:
        return 0
    line = (blocks[-1].map or [0])[0]
    return sum(len(row) + 1 for row in text.split("\n")[:line])


def break_offsets(text: str, width: int) -> list[int]:
    """Where to break a line: after spaces, and between the wide characters of Chinese, not before a comma.

    :returns: offsets into ``text``, ascending.
    """
    offsets: list[int] = []
    start = best = used = 0
    for index, character in enumerate(text):
        size = cell_len(character)
        if index > start and _may_break(text[index - 1], character):
            best = index
        while used + size > width and index > start and not character.isspace():
            start = best if best > start else index
            offsets.append(start)
            used = cell_len(text[start:index])
        used += size
    return offsets


def _may_break(before: str, after: str) -> bool:
    if before.isspace():
        return not after.isspace()
    if after in _NOT_FIRST or before in _NOT_LAST or after.isspace():
        return False
    return cell_len(after) == 2 or (cell_len(before) == 2 and cell_len(after) > 0)


def _row(line: Iterable[Segment], console: Console) -> str:
    segments = [Segment(printable(part.text), part.style) for part in line if not part.control]
    while segments and not segments[-1].text.strip() and not _is_visible(segments[-1]):
        segments.pop()
    if segments and not _is_visible(segments[-1]):
        segments[-1] = Segment(segments[-1].text.rstrip(), segments[-1].style)
    with console.capture() as captured:
        console.print(Segments(segments), end="", soft_wrap=True)
    return captured.get()


def _is_visible(segment: Segment) -> bool:
    """Whether even its spaces show."""
    style = segment.style
    return bool(style and (style.bgcolor or style.underline or style.reverse or style.strike))


class _WrappedText(Text):
    """Text that is wrapped as Chinese wants it."""

    def wrap(
        self,
        console: Console,
        width: int,
        *,
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        tab_size: int = 8,
        no_wrap: bool | None = None,
    ) -> Lines:
        """See rich."""
        lines = Lines()
        for line in self.split(allow_blank=True):
            line.expand_tabs(tab_size)
            parts = line.divide(break_offsets(line.plain, width))
            for part in parts:
                part.rstrip()
            lines.extend(parts)
        return lines


class _WrappedParagraph(Paragraph):
    def on_enter(self, context: MarkdownContext) -> None:
        """See rich."""
        super().on_enter(context)
        self.text = _WrappedText()


class _LeftHeading(Heading):
    def on_enter(self, context: MarkdownContext) -> None:
        """See rich."""
        super().on_enter(context)
        self.text = _WrappedText()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _RuledCode(CodeBlock):
    """Code between two rules: it can be copied as it stands."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title = self.lexer_name if self.lexer_name != "text" else ""
        yield Rule(Text(title), style="dim", align="left")
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=_CODE_THEME, word_wrap=True)
        yield Rule(style="dim")


class _Block(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "paragraph_open": _WrappedParagraph,
        "heading_open": _LeftHeading,
        "fence": _RuledCode,
        "code_block": _RuledCode,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        _keep_line_breaks(tokens)
        self.parsed = tokens


def _keep_line_breaks(tokens: Iterable[Token]) -> None:
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        _keep_line_breaks(token.children or ())
