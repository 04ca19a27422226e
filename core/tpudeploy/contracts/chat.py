"""Messages, tokenizers and chat templates: what turns a conversation into token ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from tpudeploy.contracts.base import Value

Role = Literal["system", "user", "assistant", "observation"]


class ToolCall(Value):
    """A call that the model asks for; nothing of it is ever executed by core.

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
    """What an assistant said, parsed: text, or a request to call a tool."""

    content: str
    tool_call: ToolCall | None = None


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
        """Feed decoded text; returns what may be shown."""

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
    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation.

        :param add_generation_prompt: end with the assistant's role token, so that the model answers.
        :raises UsageError: a message that this model's format cannot express.
        """

    @property
    def answer_lead(self) -> str:
        """What the format has between the generation prompt and an answer's text, to be written by the model."""
        return ""

    @abstractmethod
    def answer_stream(self) -> AnswerStream:
        """A fresh parser for one answer."""
