"""Ends a text at the first of several strings, wherever pieces of it are cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets text through up to a stop string, which is left out.

    What may be the beginning of one is held back until that is known.

    :param stops: the strings; none of them empty.
    :ivar hit: whether one was met; nothing comes after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.hit = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Feed text; returns what may be shown."""
        if self.hit:
            return ""
        text = self._held + text
        ends = [place + len(stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.hit, self._held = True, ""
            # The one that ends first is met, as it would be if the text came letter by letter.
            met = text[: min(ends)]
            return met[: min(place for stop in self._stops if (place := met.find(stop)) >= 0)]
        held = self._open_end(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, for it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _open_end(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
