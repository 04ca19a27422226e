"""How ChatGLM3 writes conversations: ``build_chat_input`` of the authors' tokenizer, id for id.

``[gMASK] sop``, then for each message its role token, the encoded metadata line and, encoded separately, the content;
last the assistant's role token. (The jinja template in tokenizer_config.json gives other ids and is not used.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpudeploy.contracts.chat import AnswerStream, ChatTemplate, Message, Role, Tokenizer, check_tool_name
from tpudeploy.errors import UsageError
from tpudeploy_chatglm3.answer import ChatGLM3AnswerStream
from tpudeploy_chatglm3.special_tokens import EOS_ID
from tpudeploy_chatglm3.tool_call import write_tool_call

TOOLS_ARE_THERE = "Answer the following questions as best as you can. You have access to the following tools:"
"""The authors' system message before tools; for those who offer tools and write none of their own."""


class ChatGLM3Template(ChatTemplate):
    """ChatGLM3's prompt format over its tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids

    @property
    def stop_ids(self) -> frozenset[int]:
        """End of sentence, and the role tokens whose messages only others write."""
        return frozenset((EOS_ID, self._special["<|user|>"], self._special["<|observation|>"]))

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, forced_tool: str | None = None
    ) -> list[int]:
        """Ids of a conversation; role tokens come from roles only, never out of a message's text.

        :raises UsageError: tools outside a system message, metadata of more than one line, or no name of a tool.
        """
        ids = [self._special["[gMASK]"], self._special["sop"]]
        for message in messages:
            ids += self._message(message)
        if forced_tool is not None:
            return ids + self._header("assistant", check_tool_name(forced_tool))
        if add_generation_prompt:
            ids.append(self._special["<|assistant|>"])
        return ids

    @property
    def answer_lead(self) -> str:
        """The end of the metadata line, which is empty before text."""
        return "\n"

    def answer_stream(self, *, forced_tool: str | None = None) -> AnswerStream:
        """A fresh parser for one answer."""
        return ChatGLM3AnswerStream(forced_tool=forced_tool)

    def tool_call_message(self, name: str, arguments: Mapping[str, Any]) -> Message:
        """A call in the form that the authors train, or as JSON where Python cannot name the arguments so."""
        content = write_tool_call(check_tool_name(name), arguments)
        return Message(role="assistant", content=content, metadata=name)

    def _message(self, message: Message) -> list[int]:
        if "\n" in message.metadata:
            raise UsageError(f"a message's metadata must be one line, not {message.metadata!r}.")
        return self._header(message.role, message.metadata) + self._tokenizer.encode(_content(message))

    def _header(self, role: Role, metadata: str) -> list[int]:
        return [self._special[f"<|{role}|>"], *self._tokenizer.encode(f"{metadata}\n")]


def _content(message: Message) -> str:
    if not message.tools:
        return message.content
    if message.role != "system":
        raise UsageError(f"tools belong in a system message, not in one of the {message.role}.")
    try:
        tools = json.dumps([_function(tool) for tool in message.tools], indent=4, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a tool's description cannot be written as JSON: {error}.") from error
    return f"{message.content or TOOLS_ARE_THERE}\n{tools}"


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """A function as the authors describe it: alone, where a client wrapped it as ``{"type": "function", ...}``."""
    function = tool.get("function")
    return function if tool.get("type") == "function" and isinstance(function, dict) else tool
