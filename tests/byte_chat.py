"""A tokenizer and a chat template over bytes, for tests: 256 ids, four roles and a stop token."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence

from tpudeploy.contracts.chat import Answer, AnswerStream, ChatTemplate, Message, TextStream, Tokenizer, ToolCall
from tpudeploy.errors import UsageError

ROLES = {"system": 256, "user": 257, "assistant": 258, "observation": 259}
STOP = 260


class ByteTokenizer(Tokenizer):
    """One token a byte, so that most characters are split."""

    @property
    def vocab_size(self) -> int:
        return 261

    @property
    def special_ids(self) -> Mapping[str, int]:
        return ROLES

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def stream(self) -> TextStream:
        return ByteStream()


class ByteStream(TextStream):
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]) if token_id < 256 else b"")  # a special one has no text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class CallStream(AnswerStream):
    """An answer ``name()`` on the last line is a call, ``one()two()`` are two.

    A line is held back until it is known to be none.
    """

    def __init__(self) -> None:
        self._all = ""
        self._shown = 0

    def push(self, text: str) -> str:
        self._all += text
        settled = self._all.rfind("\n") + 1
        piece = self._all[self._shown : settled]
        self._shown = settled
        return piece

    def finish(self) -> Answer:
        *lines, last = self._all.split("\n")
        if last.endswith("()"):
            content = "".join(f"{line}\n" for line in lines)
            calls = [ToolCall(name=name, arguments={}, raw=f"{name}()") for name in last.split("()")[:-1]]
            return Answer(content=content, tool_calls=tuple(calls))
        return Answer(content=self._all)


class PlainStream(AnswerStream):
    def __init__(self) -> None:
        self._all = ""

    def push(self, text: str) -> str:
        self._all += text
        return text

    def finish(self) -> Answer:
        return Answer(content=self._all)


class ByteTemplate(ChatTemplate):
    def __init__(self, stream: type[AnswerStream] = PlainStream) -> None:
        self._stream = stream

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset((STOP,))

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, forced_tool: str | None = None
    ) -> list[int]:
        if forced_tool is not None:
            raise UsageError("this format forces no tools.")
        ids: list[int] = []
        for message in messages:
            tools = json.dumps(message.tools) if message.tools else ""
            ids += [ROLES[message.role], *(message.metadata + message.content + tools).encode()]
        return [*ids, ROLES["assistant"]] if add_generation_prompt else ids

    def answer_stream(self, *, forced_tool: str | None = None) -> AnswerStream:
        return self._stream()
