"""Messages, tokenizers and chat templates: what turns a conversation into token ids and back."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from tpudeploy.contracts.base import Value
from tpudeploy.errors import UsageError

Role = Literal["system", "user", "assistant", "observation"]


class ToolCall(Value):
    """A call that the model asks for, of a tool that it may have made up; parsing it runs nothing.

    :param name: the function's name.
    :param arguments: its arguments; None where the model's text could not be parsed.
    :param raw: the model's text.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str


class Message(Value):
    """One message of a conversation.

    :param content: its text; None, as some clients write where there is only a tool, is no text.
    :param metadata: what the model's format puts on the role's line: a tool's name, or empty.
    :param tools: function schemas offered with a system message.
    """

    role: Role
    content: Annotated[str, BeforeValidator(lambda content: "" if content is None else content)]
    metadata: str = ""
    tools: tuple[dict[str, Any], ...] = ()


class Answer(Value):
    """What an assistant said, parsed: text, and requests to call tools.

    :param tool_calls: the calls in the order in which the model wrote them.
    """

    content: str
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def tool_call(self) -> ToolCall | None:
        """The first call; None where there is none."""
        return self.tool_calls[0] if self.tool_calls else None


class TextStream(ABC):
    """Turns token ids into text piece by piece; the pieces joined equal the whole decode."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """Text that ``token_id`` completes; may be empty, never half a character."""

    @abstractmethod
    def flush(self) -> str:
        """What is left when the answer ends; bytes that never became a character are replaced."""


class Tokenizer(ABC):
    """A model's own tokenizer, over the files that its authors publish."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ones included; the padded vocabulary of the weights may be larger."""

    @property
    @abstractmethod
    def special_ids(self) -> Mapping[str, int]:
        """Special tokens by their text. Ordinary text never encodes to one of them."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: no prefix, and special tokens written in it stay text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens by their names."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of text, in UTF-8, that an id stands for in the middle of a text; they may be part of a character.

        :returns: None for special tokens, for ids that stand for nothing, and where a tokenizer cannot tell.
        """
        return None

    @abstractmethod
    def stream(self) -> TextStream:
        """A fresh incremental decoder."""


class AnswerStream(ABC):
    """Separates what a user should see from the format around it, as the answer arrives."""

    @abstractmethod
    def push(self, text: str) -> str:
        """Feed the text of ordinary tokens; returns what may be shown.

        What looks like a special token in it was written out by the model, for example because it repeats a user's
        words, and is text.
        """

    def push_special(self, name: str) -> str:
        """Feed a special token by its name, which only the model itself can write; returns what may be shown."""
        return self.push(name)

    @abstractmethod
    def finish(self) -> Answer:
        """The whole answer, parsed."""


class ChatTemplate(ABC):
    """How one model family writes conversations."""

    @property
    @abstractmethod
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @abstractmethod
    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, forced_tool: str | None = None
    ) -> list[int]:
        """Ids of a conversation.

        :param add_generation_prompt: end with the assistant's role token, so that the model answers.
        :param forced_tool: end with the beginning of a call of this tool as well, so that the model can only go on with
            its arguments; give the same to :meth:`answer_stream`.
        :raises UsageError: a message that this model's format cannot express, or a tool that it cannot force.
        """

    @property
    def answer_lead(self) -> str:
        """What the format has between the generation prompt and an answer's text, to be written by the model."""
        return ""

    @abstractmethod
    def answer_stream(self, *, forced_tool: str | None = None) -> AnswerStream:
        """A fresh parser for one answer.

        :param forced_tool: the tool whose call the prompt began.
        """

    def tool_call_message(self, name: str, arguments: Mapping[str, Any]) -> Message:
        """A call that an assistant made earlier, as history writes it: what the parser reads back as the same.

        :param arguments: what JSON can carry.
        :raises UsageError: something else, or a name that :func:`check_tool_name` refuses.
        """
        return Message(role="assistant", content=arguments_json(name, arguments), metadata=check_tool_name(name))


def check_tool_name(name: str) -> str:
    """``name``, if the line of a role can hold it.

    :raises UsageError: it is empty, holds control characters or line ends, or begins or ends with a space.
    """
    if not name or name != name.strip() or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise UsageError(f"{name!a} cannot be the name of a tool.", hint="Use letters, digits, '_' and '-'.")
    return name


def arguments_json(name: str, arguments: Mapping[str, Any]) -> str:
    """A call's arguments as a JSON object. :raises UsageError: JSON cannot carry them."""
    try:
        text = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the arguments of a call of {name} cannot be written as JSON: {error}.") from error
    return text
