"""How much was received, and how fast."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Literal

from tpudeploy.fetch.model import FetchFile, FetchProgress, ProgressCallback
from tpudeploy.fetch.parts import Parts

_REPORT_EVERY_S = 0.2
_WINDOW_S = 5.0


class Meter:
    """Adds up what is here of each file, and reports it a few times a second."""

    def __init__(self, files: Iterable[FetchFile], parts: Parts, callback: ProgressCallback) -> None:
        files = tuple(files)
        self._have = {file.path: parts.received_bytes(file) for file in files}
        self._total = sum(file.size_bytes for file in files)
        self._callback = callback
        self._received = 0
        self._reported_s = 0.0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def have(self, file: FetchFile, size_bytes: int, *, received_bytes: int = 0) -> None:
        """Note how much of a file is here now, and how much of that just arrived."""
        self._have[file.path] = size_bytes
        self._received += received_bytes
        if time.monotonic() - self._reported_s >= _REPORT_EVERY_S or size_bytes == file.size_bytes:
            self.report(file)

    def report(self, file: FetchFile, status: Literal["downloading", "checking"] = "downloading") -> None:
        """Report at once."""
        now_s = self._reported_s = time.monotonic()
        self._samples.append((now_s, self._received))
        while len(self._samples) > 2 and now_s - self._samples[1][0] > _WINDOW_S:
            self._samples.popleft()
        since_s, before = self._samples[0]
        self._callback(
            FetchProgress(
                file=file.path,
                status=status,
                done_bytes=sum(self._have.values()),
                total_bytes=self._total,
                bytes_per_s=(self._received - before) / max(now_s - since_s, 1e-3),
            )
        )
