"""How ChatGLM3 writes conversations: ``build_chat_input`` of the authors' tokenizer, id for id.

``[gMASK] sop``, then for each message its role token, the encoded metadata line and, encoded separately, the content;
last the assistant's role token. (The jinja template in tokenizer_config.json gives other ids and is not used.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tpudeploy.contracts.chat import AnswerStream, ChatTemplate, Message, Tokenizer
from tpudeploy.errors import UsageError
from tpudeploy_chatglm3.answer import ChatGLM3AnswerStream
from tpudeploy_chatglm3.special_tokens import EOS_ID


class ChatGLM3Template(ChatTemplate):
    """ChatGLM3's prompt format over its tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids

    @property
    def stop_ids(self) -> frozenset[int]:
        """End of sentence, and the role tokens whose messages only others write."""
        return frozenset((EOS_ID, self._special["<|user|>"], self._special["<|observation|>"]))

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation; role tokens come from roles only, never out of a message's text.

        :raises UsageError: tools outside a system message, or metadata of more than one line.
        """
        ids = [self._special["[gMASK]"], self._special["sop"]]
        for message in messages:
            ids += self._message(message)
        if add_generation_prompt:
            ids.append(self._special["<|assistant|>"])
        return ids

    @property
    def answer_lead(self) -> str:
        """The end of the metadata line, which is empty before text."""
        return "\n"

    def answer_stream(self) -> AnswerStream:
        """A fresh parser for one answer."""
        return ChatGLM3AnswerStream()

    def _message(self, message: Message) -> list[int]:
        if "\n" in message.metadata:
            raise UsageError(f"a message's metadata must be one line, not {message.metadata!r}.")
        return [
            self._special[f"<|{message.role}|>"],
            *self._tokenizer.encode(f"{message.metadata}\n"),
            *self._tokenizer.encode(_content(message)),
        ]


def _content(message: Message) -> str:
    if not message.tools:
        return message.content
    if message.role != "system":
        raise UsageError(f"tools belong in a system message, not in one of the {message.role}.")
    try:
        tools = json.dumps(message.tools, indent=4, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a tool's description cannot be written as JSON: {error}.") from error
    return f"{message.content}\n{tools}"
