"""A generation that remembers its tokens: what a reply makes of them is text, and clients ask for more than that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.runtime.generator import Generation, GenerationOptions, TokenEvent
from tpudeploy.runtime.writer import Cancelled


class RecordedGeneration(Generation):
    """Like its base.

    :ivar events: the tokens so far.
    """

    def __init__(
        self, model: LoadedModel, prompt_ids: Sequence[int], options: GenerationOptions, cancelled: Cancelled
    ) -> None:
        options = replace(options, stop_ids=options.stop_ids | model.stop_ids)
        super().__init__(model.engine, prompt_ids, options, cancelled)
        self.events: list[TokenEvent] = []

    def __next__(self) -> TokenEvent:
        event = super().__next__()
        self.events.append(event)
        return event

    @property
    def token_s(self) -> tuple[float, ...]:
        """Seconds that each token after the first took; one that a pass gave beside another took none."""
        return tuple(later.elapsed_s - earlier.elapsed_s for earlier, later in pairwise(self.events))
