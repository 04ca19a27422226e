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
            own = self._text_of(earlier.token_id)
            own = own if text.startswith(own) else own.removeprefix(" ")  # as a text's first word is
            if own and text.startswith(own):
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
            chosen, top = event.logprobs.chosen, event.logprobs.top
            at_start = self._text_of(event.token_id) == f" {text}"
            named = tuple(
                (text if token == event.token_id else self._text_of(token, at_start=at_start), max(value, _LEAST))
                for token, value in top
            )
            self._known.append((self._length, TokenInfo(text, max(chosen, _LEAST), named)))
        self._length += length

    def _text_of(self, token_id: int, *, at_start: bool = False) -> str:
        """What a token is in the middle of a text, or where a word's space is left out, at its start.

        Decoded alone it would always stand at the start, and "word" and " word" would be the same.
        """
        own = self._tokenizer.token_bytes(token_id)
        text = self._tokenizer.decode([token_id]) if own is None else own.decode(errors="replace")
        return text.removeprefix(" ") if at_start else text
