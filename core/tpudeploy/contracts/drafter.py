"""Drafters guess the next tokens of an answer, so that one pass of the nets can check several of them.

A guess costs no correctness: the engine computes what the model says after each drafted token, and a draft is kept
only as far as it is what the model would have written. So a drafter needs no knowledge of the model; it needs to be
quick, because it runs before every token, and to know when it has nothing to offer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

NO_DRAFTS = "none"
"""What users say instead of a drafter's name."""
PROMPT_LOOKUP = "prompt-lookup"
"""The name of the drafter that tpudeploy brings along."""
RESERVED_NAMES = frozenset({NO_DRAFTS, PROMPT_LOOKUP})


@dataclass(frozen=True)
class Draft:
    """Token ids that may come next.

    :param ids: in order; the first one follows the sequence so far.
    :param evidence: a class of your own making, for example the length of the match that the draft is based on. How
        many tokens of a draft turn out right is counted for each class apart, and classes that are not worth their
        cost are tried seldom. From 0 to 63; the number itself means nothing.
    """

    ids: tuple[int, ...]
    evidence: int = 0


class DraftRun(ABC):
    """Drafting for one answer."""

    @abstractmethod
    def extend(self, ids: Sequence[int]) -> None:
        """The sequence has grown: first by the prompt, then by each token of the answer, drafted or not."""

    @abstractmethod
    def propose(self, limit: int) -> Draft | None:
        """What may follow the sequence so far; None where there is nothing worth trying.

        :param limit: tokens that can be checked at once, at least 1; a longer draft is an error.
        """

    def judge(self, draft: Draft, accepted: int) -> None:  # noqa: B027 - not abstract: few need it
        """The model has checked a draft; :meth:`extend` with what it wrote follows.

        :param accepted: how many of its leading tokens were right.
        """


class Drafter(ABC):
    """A way of drafting, by name; holds nothing of any answer."""

    name: str
    """What users write after ``--draft``."""
    summary: str = ""
    """One line for people."""

    @abstractmethod
    def begin(self) -> DraftRun:
        """Start an answer."""
