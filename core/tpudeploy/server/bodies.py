"""Request bodies of OpenAI's API, as far as they are understood; types are strict, as they are there."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

_SEED = 1 << 63
_MOST_PARTS = 4096
T = TypeVar("T")
Few = Annotated[list[T], Field(fail_fast=True, max_length=_MOST_PARTS)]
"""A list that is given up at its first mistake, or its end: pydantic would write down each of a million, and meanwhile
nobody else would be answered. How many of what a request may have is said where it is used."""
Ids = Annotated[list[int], Field(fail_fast=True, max_length=1 << 20)]


class Body(BaseModel):
    """What all of them are: fields that are not declared are kept, and judged by :mod:`tpudeploy.server.unknown`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _refuse_halves_of_characters(cls, value: object) -> object:
        """JSON can say half of a surrogate pair; no tokenizer can take it."""
        for text in value if isinstance(value, list) else (value,):
            try:
                if isinstance(text, str):
                    text.encode()
            except UnicodeEncodeError:
                raise PydanticCustomError("half_character", "holds half of a character") from None
        return value


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class ContentPart(Body):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Body):
    """What a model asked for."""

    name: str
    arguments: str = ""


class CalledTool(Body):
    """A call in an assistant's message."""

    id: str
    type: str = "function"
    function: CalledFunction | None = None


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Few[ContentPart] | None = None
    name: str | None = None
    tool_calls: Few[CalledTool] | None = None
    tool_call_id: str | None = None


class Function(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool."""

    type: str
    function: Function | None = None


class SamplingBody(Body):
    """What every endpoint takes."""

    model: str
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_SEED, lt=2 * _SEED)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


class GeneratingBody(SamplingBody):
    """What chat and plain completions take."""

    stream_options: StreamOptions | None = None
    stop: str | Few[str] | None = None
    n: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _refuse_far_too_many(cls, value: object) -> object:
        """A dictionary cannot be given up at its first mistake."""
        if isinstance(value, dict) and len(value) > _MOST_PARTS:
            raise PydanticCustomError("too_many", "has far too many entries")
        return value


class ChatBody(GeneratingBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[Few[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Few[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(GeneratingBody):
    """``POST /v1/completions``."""

    prompt: str | Few[str] | Ids | Few[Ids]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class InputItem(Body):
    """One item of a response's input: a message, a call, or a call's result."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Few[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Few[ContentPart] | None = None


class ResponseTool(Body):
    """A tool, as ``/v1/responses`` describes it."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ResponseText(Body):
    """How the text is to look."""

    format: dict[str, Any] | None = None


class ResponseBody(SamplingBody):
    """``POST /v1/responses``."""

    input: str | Annotated[Few[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: ResponseText | None = None
    tools: Few[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
