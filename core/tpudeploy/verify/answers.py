"""The whole model on prompts: its own greedy answers, judged by the reference over the same tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from tpudeploy.contracts.dtypes import Array
from tpudeploy.runtime.engine import Engine
from tpudeploy.verify.limits import Limits
from tpudeploy.verify.prompts import Prompt
from tpudeploy.verify.report import PromptRow, Verdict


@dataclass(frozen=True)
class GreedyAnswer:
    """What a target answered.

    :param ids: the answer, the stop token included.
    :param logits: (answer, vocab) float32: what each of its tokens was chosen from.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    logits: Array

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens that the answer was computed from: all but its last."""
        return (*self.prompt.ids, *self.ids[:-1])


def answer_greedily(engine: Engine, prompt: Prompt, *, max_new_tokens: int, stop_ids: Collection[int]) -> GreedyAnswer:
    """Answer a prompt from an empty cache; ends early at a stop token, or where logits are not finite.

    :raises SequenceTooLongError: the prompt is longer than the bundle allows.
    :raises BackendError: a net failed.
    """
    engine.cache.truncate(0)
    room = engine.seq_length - len(prompt.ids) + 1
    row = engine.forward(prompt.ids)[0]
    ids, rows = [int(np.argmax(row))], [row]
    while len(ids) < min(max_new_tokens, room) and ids[-1] not in stop_ids and bool(np.isfinite(row).all()):
        row = engine.forward(ids[-1:])[0]
        ids.append(int(np.argmax(row)))
        rows.append(row)
    return GreedyAnswer(prompt, tuple(ids), np.stack(rows))


def judge(answer: GreedyAnswer, reference: Array, limits: Limits) -> PromptRow:
    """Compare an answer with the reference.

    :param reference: (answer, vocab) float32: the reference's logits where the answer's tokens were chosen.
    """
    chosen = np.asarray(answer.ids)
    equal = reference.argmax(axis=1) == chosen
    finite = bool(np.isfinite(answer.logits).all())
    cosines = [_cosine(*rows) for rows in zip(reference, answer.logits, strict=True)]
    regret = _regret(reference, chosen) if finite else None
    fits = regret is not None and regret <= limits.regret and min(cosines) >= limits.logits_cosine
    return PromptRow(
        prompt=answer.prompt.name,
        prompt_tokens=len(answer.prompt.ids),
        answer_tokens=len(answer.ids),
        agreement=float(equal.mean()),
        first_divergence=None if equal.all() else int(np.argmin(equal)),
        cosine=cosines[0],
        worst_cosine=min(cosines),
        regret=regret,
        verdict=Verdict.OK if fits else Verdict.WORSE,
    )


def _regret(reference: Array, chosen: Array) -> float:
    lost = reference.max(axis=1) - reference[np.arange(len(chosen)), chosen]
    spread = reference.std(axis=1)
    return float((lost / np.where(spread == 0, 1, spread)).max())


def _cosine(expected: Array, actual: Array) -> float:
    if not np.isfinite(actual).all():
        return 0.0
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    norm = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    return float(expected @ actual) / norm if norm else float(np.array_equal(expected, actual))


def needed_rows(answers: Sequence[GreedyAnswer]) -> dict[tuple[int, ...], int]:
    """Context -> how many of its last positions the reference must give logits for; equal contexts count once."""
    needed: dict[tuple[int, ...], int] = {}
    for answer in answers:
        needed[answer.context] = max(needed.get(answer.context, 0), len(answer.ids))
    return needed
