"""What a verification found: a row a net and a row a prompt for everything that was compared, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from pydantic import computed_field

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.net import NetKind, Stage
from tpudeploy.verify.limits import Limits


class Verdict(str, Enum):
    """Whether something is as close to the reference as its quantization mode allows."""

    OK = "ok"
    WORSE = "worse than expected"


class NetRow(Value):
    """One net beside the reference, over the same inputs.

    :param output: the output that is furthest from the reference.
    :param cosine: its cosine similarity; 0 where it holds numbers that are not finite.
    :param max_error: largest difference of any output, relative to the output's largest magnitude where that is over
        one; None where an output holds numbers that are not finite.
    """

    net: str
    kind: NetKind
    layer: int | None
    stage: Stage
    output: str
    cosine: float
    max_error: float | None
    verdict: Verdict


class PromptRow(Value):
    """The whole model on one prompt, beside the reference over the same tokens.

    The answer is the target's own greedy one. At each of its tokens the reference, given what precedes it, is asked
    for its choice: up to the first divergence that is what the reference would have answered by itself.

    :param answer_tokens: tokens of the answer, the stop token included.
    :param agreement: share of them that the reference would have chosen.
    :param first_divergence: index of the first that it would not have, or None.
    :param cosine: cosine similarity of the logits after the prompt; 0 where they are not finite.
    :param worst_cosine: the smallest of any token.
    :param regret: how much more the reference liked its own choice than the target's, at worst, in standard
        deviations of its logits; 0 where it agrees everywhere. None where logits are not finite.
    """

    prompt: str
    prompt_tokens: int
    answer_tokens: int
    agreement: float
    first_divergence: int | None
    cosine: float
    worst_cosine: float
    regret: float | None
    verdict: Verdict


class TargetReport(Value):
    """Everything that was compared of one form of the model.

    :param name: for people, for example ``"simulator int8"``.
    :param backend: the backend that ran it; empty for slices that were exported and checked one by one.
    :param quant: its quantization mode.
    :param bundle: the bundle's folder; empty where there is none.
    :param limits: what is expected of this mode.
    """

    name: str
    backend: str
    quant: str
    bundle: str
    limits: Limits
    nets: tuple[NetRow, ...]
    prompts: tuple[PromptRow, ...]
    elapsed_s: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """The worst of all rows."""
        return _worst_verdict((*self.nets, *self.prompts))

    def by_kind(self) -> Iterator[NetRow]:
        """The worst row of each kind of net and stage: a short table for a model of many layers."""
        worst: dict[tuple[NetKind, Stage], NetRow] = {}
        for row in self.nets:
            key = (row.kind, row.stage)
            if key not in worst or (row.verdict is Verdict.OK, row.cosine) < (
                worst[key].verdict is Verdict.OK,
                worst[key].cosine,
            ):
                worst[key] = row
        yield from worst.values()


class Skipped(Value):
    """Something that was not compared, and why."""

    what: str
    reason: str


class VerifyReport(Value):
    """What a verification found.

    :param model: for example ``chatglm3-demo``.
    :param seq_length: tokens that a conversation may hold, in every target.
    """

    model: str
    quant: str
    seq_length: int
    targets: tuple[TargetReport, ...]
    skipped: tuple[Skipped, ...]
    elapsed_s: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """The worst of all targets."""
        return _worst_verdict(self.targets)


def _worst_verdict(rows: Iterable[NetRow | PromptRow | TargetReport]) -> Verdict:
    return Verdict.WORSE if any(row.verdict is Verdict.WORSE for row in rows) else Verdict.OK
