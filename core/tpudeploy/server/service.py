"""What the HTTP side asks of whatever runs a model, in this process or behind another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tpudeploy.contracts.chat import Message, ToolCall
from tpudeploy.runtime.generator import GenerationOptions

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ModelCard:
    """The model that is served.

    :param name: for example ``chatglm3:6b``.
    :param created: when it was loaded, in seconds since 1970.
    :param seq_length: tokens of prompt and answer together.
    """

    name: str
    created: int
    seq_length: int
    quant: str = ""
    backend: str = ""


@dataclass(frozen=True)
class Question:
    """What to answer.

    :param prompt_ids: the whole prompt.
    :param options: how to generate; the model's own stop ids are added.
    :param stop: strings that end the answer.
    :param is_chat: the answer is in the model's chat format, which is taken off; otherwise the text is as it comes.
    :param as_json: the answer is to be one JSON object.
    :param offers_tools: what looks like a call is one; otherwise it is text.
    :param forced_tool: the tool whose call the prompt began.
    :param most_calls: calls of tools at most; None: as many as the model writes.
    """

    prompt_ids: tuple[int, ...]
    options: GenerationOptions
    stop: tuple[str, ...] = ()
    is_chat: bool = True
    as_json: bool = False
    offers_tools: bool = False
    most_calls: int | None = None
    forced_tool: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of an answer, and of its prompt.

    :param reused_tokens: those of the prompt that were computed for an earlier one.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenInfo:
    """One token of an answer, and what the model made of it.

    :param text: what it added to the answer; of a token that is only part of a character, what stands for such.
    :param logprob: its log-probability.
    :param top: the likeliest tokens in its place, with theirs.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text to show, never half a character.

    :param tokens: those that it came from, where log-probabilities were asked for.
    """

    text: str
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True)
class End:
    """How an answer ended.

    :param tool_calls: what the model wants to be called, in its order.
    """

    finish_reason: FinishReason
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()


Event = Piece | End


class Answering(ABC):
    """An answer on its way: iterate for its pieces and, last, its :class:`End`.

    Iterating raises :class:`~tpudeploy.server.errors.ApiError` where it could not be finished.
    """

    @abstractmethod
    def events(self) -> AsyncIterator[Event]:
        """The events, once."""

    @property
    @abstractmethod
    def position(self) -> int:
        """How many others will be answered before this one is begun; 0 once it is."""

    @abstractmethod
    def cancel(self) -> None:
        """Nobody wants it any more: the device is free within one token. Idempotent."""


@dataclass(frozen=True)
class WorkerHealth:
    """One worker.

    :param devices: ids of its devices.
    :param problem: why it answers nothing any more; empty where it does.
    """

    name: str
    devices: tuple[int, ...] = ()
    busy: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Health:
    """Whether requests are answered."""

    workers: tuple[WorkerHealth, ...] = ()
    waiting: int = 0
    stopping: bool = False

    @property
    def ready(self) -> bool:
        """Whether a request that comes now would be answered."""
        return not self.stopping and any(not worker.problem for worker in self.workers)


class Service(ABC):
    """A model that answers."""

    @property
    @abstractmethod
    def model(self) -> ModelCard:
        """The model."""

    @abstractmethod
    async def encode_chat(self, messages: Sequence[Message], *, forced_tool: str | None = None) -> tuple[int, ...]:
        """Ids of a conversation, ready to be answered.

        :raises ApiError: a message that the model's format cannot express, or far too much text.
        """

    @abstractmethod
    async def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of plain text, as the model's authors begin it; none for none. :raises ApiError: far too much of it."""

    @abstractmethod
    def tool_call_message(self, name: str, arguments: dict[str, object]) -> Message:
        """A call that an assistant made earlier, as the model's format writes it.

        :raises ApiError: it has no form for that.
        """

    @abstractmethod
    def submit(self, question: Question, client: str) -> Answering:
        """Let a question wait for its turn.

        :param client: whose turn that is.
        :raises ApiError: no room for the prompt or in the queue, or nobody there to answer.
        """

    @abstractmethod
    def health(self) -> Health:
        """Whether it answers."""
