"""What a bundle format brings to a build: how one slice is made, and how the slices become a bundle."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.compile.workers import Report
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import CompilerInfo, NetProfile
from tpudeploy.contracts.progress import Progress, StageEvent, Status
from tpudeploy.contracts.slices import Slice, SliceCheck

_RECORD_NAME = "slice.json"


class SliceRecord(Value):
    """What is known of a built slice beside its files.

    :param net_files: net name -> file within the slice's folder.
    :param profiles: what the compiler's model of the chip says of each net.
    :param blocks: large blocks that the nets' files leave out: SHA-256 (hex) -> file within the slice's folder.
    """

    net_files: dict[str, str]
    blocks: dict[str, str] = Field(default_factory=dict)
    checks: tuple[SliceCheck, ...]
    profiles: dict[str, NetProfile] = Field(default_factory=dict)


class BuiltSlice(Value):
    """A finished slice in the stage store.

    :param key: its stage key.
    :param folder: its folder in the store.
    """

    key: str
    folder: Path
    reused: bool
    record: SliceRecord

    @property
    def checks(self) -> tuple[SliceCheck, ...]:
        """How its nets compared with the torch reference when they were exported."""
        return self.record.checks

    @property
    def profiles(self) -> dict[str, NetProfile]:
        """What the compiler's model of the chip says of each net, where there is one."""
        return self.record.profiles


class SliceBuilder(ABC):
    """Builds the slices of one bundle format."""

    compiler: CompilerInfo

    def prepare(  # noqa: B027 - a default, not a gap
        self, parts: Sequence[Slice], weights: ModelWeights, jobs: int, progress: Progress
    ) -> None:
        """Do what all slices share, before the first, on ``jobs`` things at once; nothing by default."""

    @abstractmethod
    def build(self, part: Slice, weights: ModelWeights, report: Report) -> BuiltSlice:
        """Build one slice, or find it in the store. Called from several threads."""

    @abstractmethod
    def assemble(self, built: Sequence[BuiltSlice], folder: Path) -> dict[str, str]:
        """Put the slices' nets into a bundle folder; returns net name -> file within it."""


def stage_event(stage: str, item: str, status: Status, start: float | None = None) -> StageEvent:
    """An event of a slice; how far the whole build is, the caller fills in.

    :param start: ``time.monotonic()`` when the step began, or None where that is now.
    """
    elapsed_s = time.monotonic() - start if start is not None else 0.0
    return StageEvent(stage=stage, item=item, status=status, done=0, total=0, elapsed_s=elapsed_s)


def write_record(folder: Path, record: SliceRecord) -> None:
    """Keep a record beside the files of a slice."""
    (folder / _RECORD_NAME).write_text(record.model_dump_json())


def read_record(folder: Path) -> SliceRecord:
    """Read the record of a finished slice."""
    return SliceRecord.model_validate(json.loads((folder / _RECORD_NAME).read_text()))
