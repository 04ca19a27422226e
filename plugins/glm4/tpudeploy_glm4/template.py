"""How GLM-4 writes conversations: the jinja templates that its repositories publish, as code, id for id.

``[gMASK]<sop>``, then for each message its role token, and metadata, a line end and content as one text; last the
assistant's role token. Tools are described in a system section of their own. GLM-4-0414 writes system messages first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tpudeploy.contracts.chat import AnswerStream, ChatTemplate, Message, Role, Tokenizer, check_tool_name
from tpudeploy.errors import UsageError
from tpudeploy_glm4.answer import GLM4AnswerStream
from tpudeploy_glm4.special_tokens import END_OF_TEXT
from tpudeploy_glm4.tools import TOOLS_HEADING, WHO_YOU_ARE, describe_function, describe_tool

Section = tuple[Role, str]
"""A role token, and the text that follows it."""
AFTER_NAME_0414 = " "
"""What GLM-4-0414's template writes between a tool's name and the line end."""


class GLM4Template(ChatTemplate):
    """GLM-4's prompt format over its tokenizer, which says whether it is 0414's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids
        is_0414 = getattr(tokenizer, "is_0414", False)
        self._sections = _sections_0414 if is_0414 else _sections
        self._after_name = AFTER_NAME_0414 if is_0414 else ""

    @property
    def stop_ids(self) -> frozenset[int]:
        """End of text, and the role tokens whose messages only others write."""
        return frozenset(self._special[name] for name in (END_OF_TEXT, "<|user|>", "<|observation|>"))

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, forced_tool: str | None = None
    ) -> list[int]:
        """Ids of a conversation; role tokens come from roles only, never out of a message's text.

        :raises UsageError: metadata of more than one line, or a tool that the format cannot describe or name.
        """
        ids = [self._special["[gMASK]"], self._special["<sop>"]]
        for message in messages:
            if "\n" in message.metadata:
                raise UsageError(f"a message's metadata must be one line, not {message.metadata!r}.")
        for role, text in self._sections(messages):
            ids += [self._special[f"<|{role}|>"], *self._tokenizer.encode(text)]
        if forced_tool is not None:
            header = f"{check_tool_name(forced_tool)}{self._after_name}\n"
            return [*ids, self._special["<|assistant|>"], *self._tokenizer.encode(header)]
        if add_generation_prompt:
            ids.append(self._special["<|assistant|>"])
        return ids

    @property
    def answer_lead(self) -> str:
        """The end of the metadata line, which is empty before text."""
        return "\n"

    def answer_stream(self, *, forced_tool: str | None = None) -> AnswerStream:
        """A fresh parser for one answer."""
        return GLM4AnswerStream(forced_tool=forced_tool)


def _sections(messages: Sequence[Message]) -> Iterator[Section]:
    """GLM-4-9B-Chat: each message in its place; one without content is left out."""
    for message in messages:
        if message.tools:
            yield "system", f"\n{WHO_YOU_ARE}\n\n{TOOLS_HEADING}" + "".join(map(describe_tool, message.tools))
        if message.content:
            yield message.role, f"{message.metadata}\n{message.content}"


def _sections_0414(messages: Sequence[Message]) -> Iterator[Section]:
    """GLM-4-0414: all tools, then all system messages, then the rest; only the assistant's metadata is written."""
    tools = [tool for message in messages for tool in message.tools]
    if tools:
        yield "system", f"\n{TOOLS_HEADING}\n" + "".join(map(describe_function, tools))
    for message in messages:
        if message.role == "system" and (message.content or not message.tools):
            yield "system", f"\n{message.content}"
    for message in messages:
        if message.role != "system":
            is_call = message.role == "assistant" and message.metadata
            header = f"{message.metadata}{AFTER_NAME_0414}" if is_call else ""
            yield message.role, f"{header}\n{message.content}"
