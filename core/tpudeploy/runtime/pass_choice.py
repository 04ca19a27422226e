"""Which pass takes the next tokens: a pure function of the stages there are, so that estimates can ask it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tpudeploy.contracts.net import Stage


def choose_stage(stages: Sequence[Stage], cached: int, count: int) -> Stage:
    """The smallest stage that takes ``count`` tokens over ``cached`` in the cache, or else the largest.

    :param stages: smallest first (by new tokens, then by cache length); one at least reaches over ``cached``.
    """
    able = [stage for stage in stages if stage.cache_length >= cached]
    for stage in able:
        if stage.new_tokens >= count:
            return stage
    most = able[-1].new_tokens
    return next(stage for stage in able if stage.new_tokens == most)


def plan_passes(stages: Sequence[Stage], cached: int, count: int) -> Iterator[Stage]:
    """The passes that compute ``count`` tokens which follow ``cached`` in the cache, in order."""
    while count > 0:
        stage = choose_stage(stages, cached, count)
        yield stage
        cached += stage.new_tokens
        count -= stage.new_tokens
