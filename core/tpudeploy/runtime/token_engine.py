"""What generation needs of whatever computes tokens: our own bundles' engine, and that of bmodels that others made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from typing_extensions import Self

from tpudeploy.contracts.backend import Session
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import UsageError
from tpudeploy.runtime.prefix_store import PrefixStore
from tpudeploy.runtime.rounding import EXACT, Rounding


@dataclass(frozen=True)
class Settled:
    """A pass that was run anew.

    :param tokens: how many it computed.
    :param last: the place of the last of them in the sequence.
    :param logits: (vocab,) float32 after that one; None where they were not wanted.
    """

    tokens: int
    last: int
    logits: Array | None


class TokenEngine(ABC):
    """Token ids in, logits or a token out, over a KV cache. Owns its session. One thread at a time may use it."""

    session: Session

    @property
    @abstractmethod
    def seq_length(self) -> int:
        """Tokens that the cache can hold: prompt and answer, without the answer's last token."""

    @property
    @abstractmethod
    def vocab_size(self) -> int | None:
        """Logits of one token; None where the nets do not tell."""

    @property
    def gives_logits(self) -> bool:
        """Whether logits come out. If not, the nets choose the most likely token themselves."""
        return True

    @property
    def revision(self) -> int | None:
        """Another number after every change of which tokens the cache holds, whoever made it; None: it is not told."""
        return None

    def keep_prefixes(self, store: PrefixStore | None) -> bool:
        """Save what the cache loses to other sequences, and restore it when they come again; None: no longer.

        :returns: whether this engine can.
        :raises UsageError: the store holds rows of other nets.
        """
        return False

    def shared_prefix(self, ids: Sequence[int]) -> int:
        """How many leading tokens of a prompt need not be computed, because cache or store hold them.

        Cheap, and from any thread: a hint, for by the time the prompt is computed it may be fewer or more.
        """
        return 0

    @abstractmethod
    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        """Keep of the cache just what ``ids`` begins with, as far as that saves work; at least one is left to compute.

        :param known: of the first so many ``ids`` it is known that the cache holds them and no others, as far as it
            holds that many tokens; they are not compared.
        :returns: the number of tokens kept.
        """

    @abstractmethod
    def pass_size(self, count: int) -> int:
        """How many of ``count`` further tokens the next pass takes."""

    @abstractmethod
    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        """Compute tokens that follow those in the cache.

        :param rows: of how many of the last tokens to return logits.
        :returns: (rows, vocab) float32.
        :raises UsageError: no token, one outside of the vocabulary, more rows than tokens, or no logits to be had.
        :raises SequenceTooLongError: more tokens than the cache has room for.
        :raises BackendError: a net failed.
        """

    def next_token(self, ids: Sequence[int]) -> int:
        """Compute tokens that follow those in the cache; returns the one that the nets choose to come next.

        :raises UsageError: these nets give logits, and leave the choice to the caller.
        """
        raise UsageError("these nets give logits: choose a token from those.")

    def draft_limit(self) -> int:
        """How many drafted tokens the next pass can verify, after the one token that must be computed; 0: none."""
        return 0

    def verify_extra(self) -> float | None:
        """What such a pass costs more than one of a single token, in the latter's cost; None where nothing tells."""
        return None

    @property
    def rounding(self) -> Rounding:
        """How far two logits may come closer, or move apart, by which nets compute them; learns while running."""
        return EXACT

    @property
    def pending(self) -> int:
        """Passes that :meth:`settle` would take; 0: every row of the cache is as it would be without drafts."""
        return 0

    def verify(self, ids: Sequence[int]) -> Array:
        """Compute one token and the drafted ones after it in one pass; the cache holds none of them yet.

        :param ids: at most ``1 + draft_limit()``.
        :returns: logits after each of them, (len(ids), vocab) float32.
        :raises UsageError: no token, one outside of the vocabulary, or more than one pass takes.
        :raises BackendError: a net failed.
        """
        raise UsageError("these nets verify no drafts.")

    def accept(self, ids: Sequence[int]) -> None:
        """Of the tokens that :meth:`verify` just computed, let the cache hold these leading ones; forget the others."""
        raise UsageError("these nets verify no drafts.")

    def settle(self, wanted: Container[int] = ()) -> Iterator[Settled]:
        """Compute anew, pass by pass, every row of the cache that is not as it would be without drafts.

        :param wanted: places of tokens in the sequence whose logits are wanted, where they are a pass's last.
        :returns: an iterator that runs a pass at each step. Abandoned, it leaves a shorter cache.
        """
        return iter(())

    @abstractmethod
    def forget(self) -> None:
        """Forget every token, and whatever a net may have left in the cache that is no number."""

    def close(self) -> None:
        """Close the session. Idempotent."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
