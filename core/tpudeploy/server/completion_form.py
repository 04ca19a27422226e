"""Answers as ``text_completion`` objects and their chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpudeploy.server.chat_form import DONE, FINGERPRINT, usage_of
from tpudeploy.server.errors import ApiError
from tpudeploy.server.exchange import AnswerForm
from tpudeploy.server.respond import sse
from tpudeploy.server.service import End, Piece, TokenInfo


class CompletionForm(AnswerForm):
    """Of one answer.

    :param include_usage: a stream ends with a chunk that says what it cost.
    :param logprobs: tell of each token.
    """

    def __init__(self, model: str, *, include_usage: bool = False, logprobs: bool = False) -> None:
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._length = 0
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def begin(self) -> Iterator[str]:
        """Nothing."""
        return iter(())

    def piece(self, piece: Piece) -> Iterator[str]:
        """Text."""
        yield self._sse([self._choice(piece.text, piece.tokens, None)])

    def end(self, end: End) -> Iterator[str]:
        """Why it ended, what it cost."""
        yield self._sse([self._choice("", (), end.finish_reason)])
        if self._include_usage:
            yield self._sse([], usage_of(end.usage))
        yield DONE

    def failed(self, error: ApiError) -> Iterator[str]:
        """The error; the stream is not done."""
        yield sse(error.body())

    def whole(self, pieces: Sequence[Piece], end: End) -> Mapping[str, Any]:
        """``text_completion``."""
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        return {
            **self._head,
            "choices": [self._choice(text, tokens, end.finish_reason)],
            "usage": usage_of(end.usage),
        }

    def _choice(self, text: str, tokens: Sequence[TokenInfo], finish_reason: str | None) -> dict[str, Any]:
        told = self._told(tokens) if self._logprobs else None
        return {"index": 0, "text": text, "logprobs": told, "finish_reason": finish_reason}

    def _told(self, tokens: Sequence[TokenInfo]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._length)
            self._length += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets,
        }

    def _sse(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> str:
        return sse({**self._head, "choices": choices} | ({"usage": usage} if self._include_usage else {}))


def merged(answers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The answers to several prompts as one object."""
    choices = [{**answer["choices"][0], "index": index} for index, answer in enumerate(answers)]
    usages = [answer["usage"] for answer in answers]
    usage = {
        name: sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    reused = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    return {**answers[0], "choices": choices, "usage": usage | {"prompt_tokens_details": {"cached_tokens": reused}}}
