"""What ChatGLM3 answers: turns of a metadata line and a body, and in them either text or a tool call.

The authors' ``process_response`` decides what is what: an empty first line means text, any other names a tool.
It runs ``eval`` on the call; here :mod:`tpudeploy_chatglm3.tool_call` reads it as data.
"""

from __future__ import annotations

from tpudeploy.contracts.chat import Answer, AnswerStream
from tpudeploy_chatglm3.tool_call import parse_tool_call

NEXT_TURN = "<|assistant|>"
DATE_MARKER, DATE = "[[训练时间]]", "2023年"
"""What the model writes for the date of its training, and what the authors show for it."""


def parse_answer(text: str) -> Answer:
    """Parse a whole answer, given as decoded text without its stop token.

    The texts of all turns, a line each, are the content; the last turn that is not blank decides on the tool call.
    """
    turns = [_split_turn(turn) for turn in text.split(NEXT_TURN)]
    texts = [body.strip().replace(DATE_MARKER, DATE) for header, body in turns if not header]
    header, body = next((turn for turn in reversed(turns) if turn[0] or turn[1].strip()), ("", ""))
    return Answer(
        content="\n".join(filter(None, texts)),
        tool_call=parse_tool_call(header, body) if header else None,
    )


def _split_turn(turn: str) -> tuple[str, str]:
    header, newline, body = turn.partition("\n")
    return (header.strip(), body) if newline else ("", turn)


class ChatGLM3AnswerStream(AnswerStream):
    """Shows an answer's text as it arrives, without metadata lines and tool calls.

    What was shown is always a beginning of the final content: a space, a marker or a first line that may yet turn out
    to be no text is held back until that is known, at the latest by :meth:`finish`.
    """

    def __init__(self) -> None:
        self._all: list[str] = []
        self._held = ""
        self._is_text: bool | None = None  # None: this turn's first line is not complete
        self._separator = ""  # goes before the next text that is shown
        self._blank_turn = True  # nothing of this turn was shown yet

    def push(self, text: str) -> str:
        """Feed decoded text; returns what may be shown."""
        self._all.append(text)
        self._held += text
        shown = []
        while True:
            turn, marker, rest = self._held.partition(NEXT_TURN)
            shown.append(self._advance(turn, ended=bool(marker)))
            if not marker:
                return "".join(shown)
            self._held, self._is_text, self._blank_turn = rest, None, True

    def finish(self) -> Answer:
        """The whole answer, parsed; what was not shown yet is the rest of its content."""
        return parse_answer("".join(self._all))

    def _advance(self, turn: str, *, ended: bool) -> str:
        if self._is_text is None:
            if not ended and "\n" not in turn:
                return ""
            header, turn = _split_turn(turn)
            self._is_text = not header
        settled = turn.rstrip() if ended else _settled(turn)
        self._held = turn[len(settled) :]
        return self._show(settled) if self._is_text else ""

    def _show(self, text: str) -> str:
        if self._blank_turn:
            text = text.lstrip()
            if not text:
                return ""
            text = self._separator + text
            self._blank_turn, self._separator = False, "\n"
        return text.replace(DATE_MARKER, DATE)


def _settled(text: str) -> str:
    """``text`` without an end that may change: spaces, or the beginning of a marker."""
    for marker in (NEXT_TURN, DATE_MARKER):
        begun = (length for length in range(len(marker) - 1, 0, -1) if text.endswith(marker[:length]))
        text = text[: len(text) - next(begun, 0)]
    return text.rstrip()
