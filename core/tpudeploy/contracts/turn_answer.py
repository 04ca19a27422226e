"""Answers written in turns, each a metadata line and a body, and in them either text or a tool call.

GLM's families write so. An empty first line means text, any other names a tool; a turn of one line is text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpudeploy.contracts.chat import Answer, AnswerStream, ToolCall


@dataclass(frozen=True)
class TurnFormat:
    """How one family writes turns.

    :param next_turn: the name of the special token that begins another turn; not empty.
    :param marker: what the model writes in place of something, and what is shown for it; the first is not empty.
    :param parse_call: from a tool's name and a turn's body to the call; must not fail.
    """

    next_turn: str
    marker: tuple[str, str]
    parse_call: Callable[[str, str], ToolCall]

    def parse(self, text: str) -> Answer:
        """Parse a whole answer, given as decoded text without its stop token: every ``next_turn`` in it is a token."""
        return self.parse_turns(text.split(self.next_turn))

    def parse_turns(self, turns: Sequence[str]) -> Answer:
        """Parse the turns of an answer.

        The texts of all turns, a line each, are the content. The last turn that is not blank decides whether tools are
        to be called: if it is a call, it and all calls before it are.
        """
        split = [split_turn(turn) for turn in turns]
        texts = [body.strip().replace(*self.marker) for header, body in split if not header]
        last, _ = next((turn for turn in reversed(split) if turn[0] or turn[1].strip()), ("", ""))
        calls = [self.parse_call(header, body) for header, body in split if header] if last else []
        return Answer(content="\n".join(filter(None, texts)), tool_calls=tuple(calls))

    def settled(self, text: str) -> str:
        """``text`` without an end that may change: spaces, or the beginning of a marker."""
        marker = self.marker[0]
        begun = (length for length in range(len(marker) - 1, 0, -1) if text.endswith(marker[:length]))
        return text[: len(text) - next(begun, 0)].rstrip()


def split_turn(turn: str) -> tuple[str, str]:
    """Metadata, stripped, and body; a turn without a line end is all body."""
    header, newline, body = turn.partition("\n")
    return (header.strip(), body) if newline else ("", turn)


class TurnAnswerStream(AnswerStream):
    """Shows an answer's text as it arrives, without metadata lines and tool calls.

    What was shown is always a beginning of the final content: a space, a marker or a first line that may yet turn out
    to be no text is held back until that is known, at the latest by :meth:`finish`. Only the token itself begins
    another turn: were its name in a text enough, whoever has the model repeat a text could have it call a tool.

    :param forced_tool: the tool whose name the prompt wrote already, where it did.
    """

    def __init__(self, form: TurnFormat, *, forced_tool: str | None = None) -> None:
        self._form = form
        self._turns: list[list[str]] = [[]]
        self._held = ""
        self._is_text: bool | None = None  # None: this turn's first line is not complete
        self._separator = ""  # goes before the next text that is shown
        self._blank_turn = True  # nothing of this turn was shown yet
        if forced_tool is not None:
            self.push(f"{forced_tool}\n")

    def push(self, text: str) -> str:
        """Feed the text of ordinary tokens; returns what may be shown."""
        self._turns[-1].append(text)
        self._held += text
        return self._advance(ended=False)

    def push_special(self, name: str) -> str:
        """Feed a special token: the one that begins another turn, or one that is shown by its name."""
        if name != self._form.next_turn:
            return self.push(name)
        shown = self._advance(ended=True)
        self._turns.append([])
        self._held, self._is_text, self._blank_turn = "", None, True
        return shown

    def finish(self) -> Answer:
        """The whole answer, parsed; what was not shown yet is the rest of its content."""
        return self._form.parse_turns(["".join(turn) for turn in self._turns])

    def _advance(self, *, ended: bool) -> str:
        turn = self._held
        if self._is_text is None:
            if not ended and "\n" not in turn:
                return ""
            header, turn = split_turn(turn)
            self._is_text = not header
        settled = turn.rstrip() if ended else self._form.settled(turn)
        self._held = turn[len(settled) :]
        return self._show(settled) if self._is_text else ""

    def _show(self, text: str) -> str:
        if self._blank_turn:
            text = text.lstrip()
            if not text:
                return ""
            text = self._separator + text
            self._blank_turn, self._separator = False, "\n"
        return text.replace(*self._form.marker)
