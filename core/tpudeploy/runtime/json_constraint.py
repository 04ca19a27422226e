"""Answers that are one JSON object: OpenAI's ``response_format`` of ``json_object``."""

from __future__ import annotations

from collections.abc import Callable

from tpudeploy.runtime.constraint import ConstraintRun, TokenConstraint
from tpudeploy.runtime.json_syntax import DONE, START, State, feed


class JsonObject(TokenConstraint):
    """A complete JSON object and nothing else, except where the answer becomes too long.

    :param token_bytes: the bytes of a token; None or none for one that stands for no text, which is never chosen.
    :param lead: what the model's format has before the text of an answer; must come first.
    """

    def __init__(self, token_bytes: Callable[[int], bytes | None], *, lead: str = "") -> None:
        self._token_bytes = token_bytes
        self._lead = lead.encode()

    def begin(self) -> ConstraintRun:
        """Start an answer."""
        return _Run(self._token_bytes, self._lead)


class _Run(ConstraintRun):
    def __init__(self, token_bytes: Callable[[int], bytes | None], lead: bytes) -> None:
        self._token_bytes = token_bytes
        self._lead = lead
        self._state = START
        self._begun: dict[int, State | None] = {}  # by the next byte: most tokens fail at their first one

    @property
    def complete(self) -> bool:
        return self._state == DONE

    def allows(self, token_id: int) -> bool:
        return self._after(token_id) is not None

    def advance(self, token_id: int) -> None:
        after = self._after(token_id)
        if after is None:
            raise ValueError(f"token {token_id} was not allowed")
        self._lead, self._state = after
        self._begun.clear()

    def _after(self, token_id: int) -> tuple[bytes, State] | None:
        data = self._token_bytes(token_id)
        if not data:
            return None
        count = min(len(data), len(self._lead))
        if data[:count] != self._lead[:count]:
            return None
        state: State | None = self._state
        if count < len(data):
            first = data[count]
            if first not in self._begun:
                self._begun[first] = feed(self._state, bytes([first]))
            state = self._begun[first]
            state = feed(state, data[count + 1 :]) if state is not None else None
        return (self._lead[count:], state) if state is not None else None
