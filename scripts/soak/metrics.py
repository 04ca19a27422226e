"""Figures of ``/metrics``."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Figures:
    """One look at ``/metrics``."""

    def __init__(self, text: str) -> None:
        self._lines = [match.groups() for line in text.splitlines() if (match := _LINE.match(line))]

    def total(self, name: str, **labels: str) -> float:
        """A figure, summed over what is not said of its labels; 0 where there is none."""
        return sum(value for found, value in self._of(name) if found.items() >= labels.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """A figure by one of its labels."""
        sums: dict[str, float] = {}
        for found, value in self._of(name):
            sums[found[label]] = sums.get(found[label], 0) + value
        return sums

    def memory(self) -> dict[str, float]:
        """Everything that is device memory in use."""
        return {
            f"{name}{{{labels or ''}}}": float(value)
            for name, labels, value in self._lines
            if re.search(r"device_memory_used_bytes|model_memory_bytes", name)
        }

    def _of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        for found, labels, value in self._lines:
            if found == name:
                yield dict(_LABEL.findall(labels or "")), float(value)
