"""Progress on stderr: one live line where a person watches, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from tpudeploy.cli.terminal import format_bytes, format_seconds, print_note, printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from tpudeploy.compile.toolchain import InstallEvent
    from tpudeploy.contracts.progress import StageEvent
    from tpudeploy.fetch import FetchProgress

_NOTABLE_S = 0.05
_LINE_EVERY_S = 15.0
"""How often a plain line may tell of one long transfer."""


class LiveLine:
    """One line that is drawn again and again; nothing is drawn before the first :meth:`update`."""

    def __init__(self, *, live: bool | None = None) -> None:
        self.live = _can_draw() if live is None else live
        self._drawn: RichProgress | None = None

    def update(self, text: str, done: float, total: float, detail: str = "") -> None:
        """Show where things stand; does nothing where no terminal is.

        :param detail: what stands behind the bar, for example ``"3/12"``.
        """
        if not self.live:
            return
        if self._drawn is None:
            self._drawn = _draw()
            self._drawn.add_task("", total=None, detail="")
            self._drawn.start()
        task = self._drawn.task_ids[0]
        self._drawn.update(task, description=printable(text), completed=done, total=total or None, detail=detail)

    def prepare(self) -> None:
        """Show that something begins: torch alone takes seconds to import."""
        self.update("preparing", 0, 0)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._drawn is not None:
            from rich.text import Text

            self._drawn.console.print(Text(printable(text)))
        else:
            print_note(text)

    def close(self) -> None:
        """Remove the live line."""
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _can_draw() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _draw() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("remaining"),
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
    )


class BuildProgress(LiveLine):
    """Shows the stages of an export or a build; a person keeps one line that sums it up."""

    def __init__(self, *, live: bool | None = None) -> None:
        super().__init__(live=live)
        self._began = time.monotonic()
        self._finished: Counter[str] = Counter()
        self._done = 0

    def __call__(self, event: StageEvent) -> None:
        """Take one event of the pipeline."""
        if event.stage in {"wait", "notice"}:
            self.note(f"{event.item}.")
            return
        self.update(f"{event.stage} {event.item}", event.done, event.total, f"{event.done}/{event.total}")
        if event.status == "started":
            return
        self._finished[event.stage] += 1
        if not self.live:
            self._print(event)
        elif event.stage == "bundle":
            steps = ", ".join(f"{stage} {count}" for stage, count in self._finished.items() if stage != "bundle")
            self.note(f"{event.item}: {steps} in {format_seconds(time.monotonic() - self._began)}")

    def _print(self, event: StageEvent) -> None:
        count = f"[{event.done}/{event.total}]"
        head = count if event.done != self._done else " " * len(count)
        self._done = event.done
        took = f": {format_seconds(event.elapsed_s)}" if event.elapsed_s >= _NOTABLE_S else ""
        how = ": from an earlier run" if event.status == "reused" else took
        print_note(f"{head} {event.stage} {event.item}{how}")


class InstallProgress(LiveLine):
    """Shows the steps of a toolchain installation."""

    def __init__(self, *, live: bool | None = None) -> None:
        super().__init__(live=live)
        self._last = ""

    def __call__(self, event: InstallEvent) -> None:
        """Take one event."""
        detail = ""
        if event.total_bytes:
            detail = f"{format_bytes(event.done_bytes)} of {format_bytes(event.total_bytes)}"
        self.update(event.message, event.done_bytes, event.total_bytes, detail)
        if event.message != self._last and (not self.live or event.step == "done"):
            self.note(event.message)
        self._last = event.message


class FetchLine(LiveLine):
    """Shows a download."""

    def __init__(self, *, live: bool | None = None) -> None:
        super().__init__(live=live)
        self._noted = ("", False)
        self._noted_at = 0.0

    def __call__(self, event: FetchProgress) -> None:
        """Take one event."""
        detail = format_bytes(event.done_bytes)
        if event.total_bytes:
            detail += f" of {format_bytes(event.total_bytes)}"
        if event.bytes_per_s:
            detail += f", {format_bytes(int(event.bytes_per_s))}/s"
        self.update(f"{event.status} {event.file}", event.done_bytes, event.total_bytes, detail)
        state = (event.file, 0 < event.total_bytes <= event.done_bytes)
        due = state != self._noted or time.monotonic() - self._noted_at >= _LINE_EVERY_S
        if due and not self.live:
            self._noted, self._noted_at = state, time.monotonic()
            print_note(f"{event.status} {event.file}: {detail}")
