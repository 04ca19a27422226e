"""Answers as ``chat.completion`` objects and their chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpudeploy import __version__
from tpudeploy.contracts.chat import ToolCall
from tpudeploy.server.errors import ApiError
from tpudeploy.server.exchange import AnswerForm
from tpudeploy.server.respond import sse
from tpudeploy.server.service import End, Piece, TokenInfo, Usage

DONE = "data: [DONE]\n\n"
FINGERPRINT = f"tpudeploy-{__version__}"


class ChatForm(AnswerForm):
    """Of one answer.

    :param include_usage: a stream ends with a chunk that says what it cost.
    :param logprobs: tell of each token.
    """

    def __init__(self, model: str, *, include_usage: bool = False, logprobs: bool = False) -> None:
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def begin(self) -> Iterator[str]:
        """The role."""
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> Iterator[str]:
        """Text."""
        yield self._chunk({"content": piece.text}, tokens=piece.tokens)

    def end(self, end: End) -> Iterator[str]:
        """Whole calls, why it ended, what it cost."""
        for index, call in enumerate(end.tool_calls):
            yield self._chunk({"tool_calls": [{"index": index, **tool_call(call)}]})
        yield self._chunk({}, end.finish_reason)
        if self._include_usage:
            yield self._sse([], usage_of(end.usage))
        yield DONE

    def failed(self, error: ApiError) -> Iterator[str]:
        """The error; the stream is not done."""
        yield sse(error.body())

    def whole(self, pieces: Sequence[Piece], end: End) -> Mapping[str, Any]:
        """``chat.completion``."""
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if end.tool_calls:
            message |= {"content": text or None, "tool_calls": [tool_call(call) for call in end.tool_calls]}
        tokens = [token for piece in pieces for token in piece.tokens]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._told(tokens),
            "finish_reason": end.finish_reason,
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(end.usage),
            "system_fingerprint": FINGERPRINT,
        }

    def _chunk(
        self, delta: Mapping[str, Any], finish_reason: str | None = None, tokens: Sequence[TokenInfo] = ()
    ) -> str:
        told = self._told(tokens) if tokens else None
        return self._sse([{"index": 0, "delta": delta, "logprobs": told, "finish_reason": finish_reason}])

    def _told(self, tokens: Sequence[TokenInfo]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {**_token(token.text, token.logprob), "top_logprobs": [_token(*other) for other in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _sse(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, "system_fingerprint": FINGERPRINT}
        return sse(chunk | ({"usage": usage} if self._include_usage else {}))


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI writes it; what could not be read as arguments is passed on as it came."""
    readable = call.arguments is not None
    arguments = json.dumps(call.arguments, ensure_ascii=False) if readable else call.raw
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    """A token that is no whole character has no bytes that could be told."""
    whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def usage_of(usage: Usage) -> dict[str, Any]:
    """What an answer cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }
