"""What the pipeline reports while it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tpudeploy.contracts.base import Value

Status = Literal["started", "finished", "reused"]


class StageEvent(Value):
    """One step of export or compile.

    :param stage: ``"patch"``, ``"transform"``, ``"export"``, ``"quantize"``, ``"deploy"``, ``"proof"``, ``"slice"``,
        ``"bundle"``, ``"wait"`` or ``"notice"``; the items of these two are texts for people.
    :param item: what it worked on, for example a net's name.
    :param status: how it stands; ``"reused"`` means that the result of an earlier run was taken.
    :param done: steps of this stage that are finished.
    :param total: steps of this stage.
    :param elapsed_s: how long the step took.
    """

    stage: str
    item: str
    status: Status
    done: int
    total: int
    elapsed_s: float = 0.0


Progress = Callable[[StageEvent], None]
"""Called from the main thread of the pipeline."""


def no_progress(event: StageEvent) -> None:
    """Report nothing."""
