"""Invented names and texts, so that the model learns to copy what it reads and to admit what it does not know."""

from __future__ import annotations

import random
from collections.abc import Iterable

_ONSETS = ("b", "ch", "d", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "v", "w")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
_CODAS = ("", "", "", "l", "n", "r", "s", "t", "nd")


class Inventor:
    """Makes up words and sentences from syllables and from the characters of known texts."""

    def __init__(self, known: Iterable[str], chance: random.Random) -> None:
        self._characters = sorted({character for text in known for character in text if "一" <= character <= "龥"})
        self._random = chance

    def word(self) -> str:
        """A word of one to three syllables that means nothing."""
        pick = self._random.choice
        return "".join(pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS) for _ in range(self._random.randint(1, 3)))

    def characters(self, fewest: int, most: int) -> str:
        """A run of Chinese characters, most of them from the known texts."""
        count = self._random.randint(fewest, most)
        return "".join(self._character() for _ in range(count))

    def sentence(self, *, chinese: bool) -> str:
        """A few invented words with a mark at the end."""
        if chinese:
            return self.characters(2, 9) + self._random.choice(("", "。", "？", "！"))
        words = [self.word() for _ in range(self._random.randint(1, 6))]
        text = " ".join(words)
        return (text.capitalize() if self._random.random() < 0.5 else text) + self._random.choice(("", ".", "?", "!"))

    def mixture(self) -> str:
        """Words, numbers and characters in a row, for copying."""
        return " ".join(self._item() for _ in range(self._random.randint(3, 12)))

    def _item(self) -> str:
        kind = self._random.random()
        if kind < 0.45:
            return self.word()
        return self.characters(1, 5) if kind < 0.85 else str(self._random.randint(0, 9999))

    def _character(self) -> str:
        if self._random.random() < 0.1:
            return chr(self._random.randint(0x4E00, 0x9FA5))
        return self._random.choice(self._characters)
