"""Which text each token of an answer stands for: what log-probabilities are shown with.

Joined, the texts are the answer's, but for tokens that are only part of a character. What came before the answer's
first word belongs to the format around it and is left out.
"""

from __future__ import annotations

from collections import deque

from tpudeploy.contracts.chat import Tokenizer
from tpudeploy.runtime.generator import TokenEvent
from tpudeploy.server.service import TokenInfo

_LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's API does the same."""


class TokenTexts:
    """Takes tokens with the text that they brought, and gives them out with the text that is shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._silent: list[TokenEvent] = []  # they brought no text yet
        self._known: deque[tuple[int, TokenInfo]] = deque()  # each with the place at which its text begins
        self._length = 0

    def push(self, event: TokenEvent | None, text: str) -> None:
        """A token brought ``text``; None: text that was held back."""
        if not text:
            self._silent += [event] if event is not None else []
            return
        for earlier in self._silent:
            own = self._tokenizer.decode([earlier.token_id])
            if text.startswith(own):
                self._add(earlier, own, len(own))
                text = text[len(own) :]
            elif self._length or own.strip():
                self._add(earlier, own, 0)
        self._silent = []
        if event is not None:
            self._add(event, text, len(text))
        else:
            self._length += len(text)

    def take(self, shown: int) -> tuple[TokenInfo, ...]:
        """The tokens whose text begins within the first ``shown`` characters, each once."""
        taken = []
        while self._known and self._known[0][0] < shown:
            taken.append(self._known.popleft()[1])
        return tuple(taken)

    def _add(self, event: TokenEvent, text: str, length: int) -> None:
        if event.logprobs is not None:
            found = event.logprobs
            top = tuple((self._tokenizer.decode([token]), max(value, _LEAST)) for token, value in found.top)
            self._known.append((self._length, TokenInfo(text, max(found.chosen, _LEAST), top)))
        self._length += length
