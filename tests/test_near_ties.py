"""Near ties: choices that rounding could change are made as without drafts, margins are measured, costs are bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.drafting import NoisyEngine, Scripted, random_table

from tpudeploy.contracts.dtypes import Array
from tpudeploy.runtime.generator import GenerationOptions, GenerationResult, generate
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.runtime.rounding import ENOUGH, EXACT, OF_LARGEST, SIGMAS, Rounding
from tpudeploy.runtime.sampling import SamplingOptions

VOCAB = 101
NOISE = 0.002
PRESUMED = 0.06


def run(engine: NoisyEngine, prompt: Sequence[int], options: GenerationOptions) -> GenerationResult:
    engine.forget()
    generation = generate(engine, prompt, options)
    for _ in generation:
        pass
    return generation.result


def known(answer: Sequence[int], prompt_tokens: int, wrong: float, seed: int) -> Scripted:
    """Drafts the answer, and spoils tokens at random."""
    chance = np.random.default_rng(seed)

    def propose(seen: list[int], limit: int) -> list[int]:
        at = len(seen) - prompt_tokens
        return [(token + (chance.random() < wrong)) % VOCAB for token in answer[at : at + limit]]

    return Scripted(propose)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_noise_changes_no_greedy_answer(penalty: float) -> None:
    """To 40 random prompts; without margins it changes many, and the presumed one costs more than the measured."""
    sampling = SamplingOptions(repetition_penalty=penalty)
    rounding, constant = Rounding(PRESUMED), Rounding(PRESUMED)
    constant.compare = lambda row, settled: None  # type: ignore[method-assign]
    random = np.random.default_rng(2)
    flipped, settled = 0, {True: 0, False: 0}
    for trial in range(40):
        table = random_table(VOCAB, seed=trial % 4)
        prompt = [int(token) for token in random.integers(0, VOCAB, random.integers(1, 12))]
        plain = run(NoisyEngine(table, NOISE, EXACT), prompt, GenerationOptions(drafter=None, sampling=sampling))
        drafter = known(plain.token_ids, len(prompt), 0.05, trial)
        for kind in (rounding, constant):
            result = run(NoisyEngine(table, NOISE, kind), prompt, GenerationOptions(drafter=drafter, sampling=sampling))
            assert result.token_ids == plain.token_ids, trial
            settled[kind is rounding] += result.drafts.settled
        careless = NoisyEngine(table, NOISE, EXACT)
        flipped += (
            run(careless, prompt, GenerationOptions(drafter=drafter, sampling=sampling)).token_ids != plain.token_ids
        )
    assert flipped > 5, "the noise would not have mattered"
    assert SIGMAS * NOISE < rounding.margin < PRESUMED / 2
    assert 10 < settled[True] < 0.95 * settled[False]


def test_settling_makes_the_same_cache_and_is_counted() -> None:
    engine = NoisyEngine(random_table(VOCAB), NOISE, Rounding(PRESUMED), seq_length=200)
    plain = run(engine, [1, 2, 3], GenerationOptions(drafter=None))
    held, engine.passes = engine.held, []
    result = run(engine, [1, 2, 3], GenerationOptions(drafter=known(plain.token_ids, 3, 0.0, 0)))
    assert (result.token_ids, engine.held) == (plain.token_ids, held)
    counts = result.drafts
    assert counts.settled == len(engine.settlings) > 1
    assert counts.recomputed == sum(engine.settlings) - counts.settled > 3
    assert counts.passes == len(engine.passes) - 1


def test_draws_never_settle() -> None:
    engine = NoisyEngine(random_table(VOCAB), NOISE, Rounding(PRESUMED), seq_length=200)
    sampling = SamplingOptions(temperature=1.0, seed=1)
    result = run(engine, [1, 2, 1, 2], GenerationOptions(drafter=PromptLookup(), sampling=sampling))
    assert (result.drafts.settled, engine.settlings) == (0, [])


@pytest.mark.parametrize("extra", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("tied", [1.0, 0.3, 0.02, 0.003])
def test_ties_leave_at_most_one_debt(extra: float, tied: float) -> None:
    """Passes cost 1.04 a token, one wrong draft, and one settling, whatever ties there are and however drafts go."""

    def chain(ids: tuple[int, ...]) -> Array:
        """Counts upwards; some tokens hardly lead."""
        logits = np.zeros(VOCAB, dtype=np.float32)
        after = (ids[-1] + 1 if ids else 0) % VOCAB
        logits[after] = 9.0
        logits[(after + 1) % VOCAB] = 8.99 if np.random.default_rng(len(ids)).random() < tied else 0
        return logits

    def propose(seen: list[int], limit: int) -> list[int]:
        right = [(seen[-1] + 1 + step) % VOCAB for step in range(limit)]
        return right if len(seen) // 50 % 2 else [*right[:1], *[0] * (limit - 1)]

    tries = 0
    for tokens in (5, 20, 100, 300, 2000):
        engine = NoisyEngine(chain, 0.0, Rounding(0.01, 0.01), seq_length=4096, extra=extra, width=16)
        result = run(engine, [1], GenerationOptions(drafter=Scripted(propose), max_new_tokens=tokens))
        assert result.token_ids == tuple((2 + place) % VOCAB for place in range(tokens))
        cost = result.drafts.passes + result.drafts.verify_passes * extra
        debt = max(engine.settlings, default=0)
        assert cost <= 1.04 * (tokens - 1) + min(extra, 1.0) + debt + 1e-9
        tries += result.drafts.verify_passes
    assert tries > 3


def test_a_margin_is_presumed_until_enough_was_seen() -> None:
    rounding = Rounding(0.1, 0.01)
    settled = np.linspace(-4, 8, 200, dtype=np.float32)
    for row in range(ENOUGH):
        assert rounding.margin == 0.1 and rounding.wants_rows
        changed = settled.copy()
        changed[-1] += 0.08 * (-1) ** row  # all leads by a hundredth of the best
        rounding.compare(changed, settled)
    assert rounding.margin == pytest.approx(SIGMAS * 0.01, rel=1e-3)
    changed = settled.copy()
    changed[-3] += 0.8
    rounding.compare(changed, settled)
    assert rounding.margin == pytest.approx(OF_LARGEST * 0.1, rel=1e-3)
    for _ in range(1000):
        rounding.compare(settled, settled)
    assert not rounding.wants_rows
    assert rounding.margin >= OF_LARGEST * 0.1 - 1e-6


def test_margins_that_need_no_measuring() -> None:
    assert EXACT.margin == 0.0 and not EXACT.wants_rows
    quiet = Rounding(0.1, 0.01)
    logits = np.arange(5, dtype=np.float32)
    for _ in range(ENOUGH):
        quiet.compare(logits, logits)
    assert quiet.margin == 0.01
    loud = Rounding(0.1, 0.01)
    loud.compare(logits + np.array([0, 0, 0, 0, 2], dtype=np.float32), logits)
    assert loud.margin == pytest.approx(OF_LARGEST * 0.5), "more than presumed counts at once"
