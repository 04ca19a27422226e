"""Prompt lookup: which place it takes, what it says of it, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpudeploy.contracts.drafter import Draft
from tpudeploy.runtime.prompt_lookup import PLACES, LookupRun, PromptLookup


def propose(ids: Sequence[int], limit: int = 7) -> Draft | None:
    run = PromptLookup().begin()
    run.extend(ids)
    return run.propose(limit)


@pytest.mark.parametrize(
    ("ids", "drafted"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], (3, 4, 5)),
        ([1, 2, 3, 9, 8, 2, 3, 4, 9, 1, 2, 3], (9, 8, 2)),  # the longer match, not the later one
        ([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], (4, 9, 1)),  # of two as long, the later one
        ([5, 5, 5, 5], (5, 5, 5)),  # into its own continuation
        ([1, 2, 1, 2, 1], (2, 1, 2)),
        ([1, 2, 3], None),
        ([1, 1], None),
        ([7], None),
        ([], None),
    ],
)
def test_what_followed_the_longest_and_latest_match(ids: list[int], drafted: tuple[int, ...] | None) -> None:
    draft = propose(ids, 3)
    assert (draft and draft.ids) == drafted


def test_a_copy_is_taken_up_after_an_edit() -> None:
    """Prompt: 10 to 19; the answer copies, writes 99 in place of 13, and goes on with 14: one token is enough."""
    run = LookupRun()
    run.extend([*range(10, 20), 0, 10, 11])
    draft = run.propose(3)
    assert draft is not None and draft.ids == (12, 13, 14)
    run.extend([12])
    run.extend([99])
    assert run.propose(3) is None, "nothing has followed 99 yet"
    run.extend([14])
    taken_up = run.propose(3)
    assert taken_up is not None and taken_up.ids == (15, 16, 17)
    assert taken_up.evidence != draft.evidence


def test_longer_matches_are_better_evidence() -> None:
    text = list(range(40))
    evidence = []
    for length in (2, 4, 8, 32):
        draft = propose([*text, 99, *text[4 : 4 + length]])
        assert draft is not None
        evidence.append(draft.evidence)
    assert evidence == sorted(set(evidence))


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 4), max_size=60), limit=st.integers(1, 9), cut=st.integers(0, 60))
def test_as_looking_through_the_whole_sequence(ids: list[int], limit: int, cut: int) -> None:
    """In whatever portions it arrives, and however often it is asked in between."""
    run = PromptLookup().begin()
    run.extend(ids[:cut])
    for token in ids[cut:]:
        run.extend([token])
        run.propose(limit)
    draft = run.propose(limit)
    longest = max(
        (size for size in range(1, len(ids)) for start in range(len(ids) - size) if ids[start:][:size] == ids[-size:]),
        default=0,
    )
    if longest < 2:
        assert draft is None or draft.evidence == 0
        return
    assert draft is not None and len(draft.ids) == limit
    followed = {
        tuple((ids + ids[end:] * limit)[end : end + limit])
        for end in range(2, len(ids))
        if ids[end - 2 : end] == ids[-2:]
    }
    assert draft.ids in followed


def test_time_and_memory_do_not_grow() -> None:
    """A text that repeats one pair for ever, and one in which nothing repeats: a token costs what it costs at first."""
    for text in ([1, 2] * 20_000, list(range(40_000))):
        run = LookupRun()
        seconds = []
        for start in range(0, len(text), 10_000):
            began = time.process_time()
            for token in text[start : start + 10_000]:
                run.extend([token])
                run.propose(7)
            seconds.append(time.process_time() - began)
        assert min(seconds[1:]) < 5 * seconds[0] + 0.1
        assert seconds[-1] / 10_000 < 1e-3, "under a millisecond a token, on the slowest machine"
        assert max(map(len, run._places.values())) <= PLACES
        assert len(run._places) <= 2 * len(text)
