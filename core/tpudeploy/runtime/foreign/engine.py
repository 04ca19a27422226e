"""The engine of a bmodel that others made: the same surface as for our own bundles, over whatever nets there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpudeploy.contracts.backend import Session
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import SequenceTooLongError, UsageError
from tpudeploy.runtime.foreign.ends import Embedding, ForeignHead, TableEmbedding
from tpudeploy.runtime.foreign.layout import ForeignLayout, HiddenMark
from tpudeploy.runtime.foreign.mask_probe import find_hidden_mark
from tpudeploy.runtime.foreign.memory import ForeignCache, States
from tpudeploy.runtime.foreign.passes import ForeignPass, Workspace
from tpudeploy.runtime.token_engine import TokenEngine

TOKENS_PER_STEP = 64
"""Tokens that a pass of many computes in the time of one decode step: steps wait for weights, such a pass computes."""


class ForeignEngine(TokenEngine):
    """A loaded bmodel of others, ready to compute. Owns its session.

    A first prompt takes one padded pass where there are nets for that; later tokens go one by one, or several at once
    where there are nets of several tokens over the cache.

    :ivar mark: how the nets want hidden positions marked.
    :param mark: None finds that out by a probe.
    :param table: a file with the embedding, where no net has it.
    :raises BundleError: the nets hide positions in no way that is known.
    :raises BackendError: the device has no room.
    """

    def __init__(
        self, session: Session, layout: ForeignLayout, mark: HiddenMark | None = None, *, table: Path | None = None
    ) -> None:
        self.session, self.layout = session, layout
        sets = [blocks for blocks in (layout.prefill, layout.over_cache) if blocks is not None]
        largest = max((blocks[0].new_tokens for blocks in sets), default=1)
        rows = max([largest, *(net.inputs[0].elements for net in layout.embeddings)])
        self._states = States(session, layout, rows)
        self.cache = ForeignCache(session, layout, spare_rows=largest)
        self._prefill = Workspace(session, layout, layout.prefill) if layout.prefill else None
        self._over_cache = Workspace(session, layout, layout.over_cache) if layout.over_cache else None
        self._decode = [Workspace(session, layout, blocks) for blocks in layout.decode]
        self._passes: dict[tuple[int, int, int, int], ForeignPass] = {}
        self._embeddings: list[Embedding | TableEmbedding] = [
            Embedding(session, net, layout, self._states) for net in layout.embeddings
        ]
        if table is not None and not self._embeddings:
            self._embeddings.append(TableEmbedding(session, table, layout, self._states))
        self._head = ForeignHead(session, layout, self._states)
        probe = self._pass(self._decode[-1], 1, layout.cache_length)
        self.mark = mark or find_hidden_mark(session, layout, probe, self._states, self.cache)

    @property
    def seq_length(self) -> int:
        """See :attr:`TokenEngine.seq_length`."""
        return self.layout.cache_length

    @property
    def vocab_size(self) -> int | None:
        """See :attr:`TokenEngine.vocab_size`."""
        return self.layout.vocab_size

    @property
    def gives_logits(self) -> bool:
        """See :attr:`TokenEngine.gives_logits`."""
        return self.layout.vocab_size is not None

    @property
    def revision(self) -> int:
        """See :attr:`TokenEngine.revision`."""
        return self.cache.revision

    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        """See :meth:`TokenEngine.reuse`: what costs more to continue than to compute anew is not kept."""
        kept = max(0, min(self.cache.common_prefix(ids, known), len(ids) - 1))
        self.cache.truncate(kept)
        left = len(ids) - kept
        if kept and (self._steps(left) > self._steps_anew(len(ids)) or left > self.cache.steps_left):
            self.cache.truncate(0)
            return 0
        return kept

    def pass_size(self, count: int) -> int:
        """See :meth:`TokenEngine.pass_size`."""
        work = self._choose(count)
        return min(count, work.blocks[0].new_tokens)

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        """See :meth:`TokenEngine.forward`."""
        if rows and not self.gives_logits:
            raise UsageError("this bmodel gives no logits: it chooses the most likely token itself.")
        results = self._advance(ids, rows)
        return np.stack(results) if results else np.empty((0, self.vocab_size or 0), dtype=np.float32)

    def next_token(self, ids: Sequence[int]) -> int:
        """See :meth:`TokenEngine.next_token`."""
        result = self._advance(ids, 1)[0]
        return int(np.argmax(result)) if self.gives_logits else int(result[0])

    def forget(self) -> None:
        """See :meth:`TokenEngine.forget`."""
        self.cache.clear()

    def _advance(self, ids: Sequence[int], rows: int) -> list[Array]:
        """Compute tokens; what the head gives for the last ``rows`` of them."""
        self._check(ids, rows)
        # Whatever was in flight when an earlier call was interrupted must not meet new inputs.
        self.session.sync()
        results: list[Array] = []
        start = 0
        while start < len(ids):
            work = self._choose(len(ids) - start)
            chunk = ids[start : start + work.blocks[0].new_tokens]
            self._run(work, chunk)
            first = max(len(ids) - rows - start, 0)
            results += [self._head.read(row) for row in range(first, len(chunk))]
            start += len(chunk)
        return results

    def _run(self, work: Workspace, ids: Sequence[int]) -> None:
        """One pass; the cache holds its tokens once every net has finished."""
        block, cached = work.blocks[0], len(self.cache.slots)
        new = len(ids) if block.dynamic else block.new_tokens
        step = self._pass(work, new, block.history_tokens)
        slot = self.cache.length_max - 1 if work.slides else self.cache.first_slot(len(ids))
        self._embed(ids)
        step.run(range(cached, cached + len(ids)), self.mark, slot)
        self.session.sync()
        if work.slides:
            self.cache.step(ids[0])
        else:
            self.cache.extend(ids, slot)

    def _embed(self, ids: Sequence[int]) -> None:
        able = [embedding for embedding in self._embeddings if embedding.tokens >= len(ids)]
        if not able:
            most = self._embeddings[-1].tokens
            raise UsageError(f"this bmodel has no embedding for {len(ids)} tokens at once, only for {most}.")
        able[0].run(ids)

    def _choose(self, count: int) -> Workspace:
        """The nets of the next pass, for ``count`` tokens that are left."""
        cached = len(self.cache.slots)
        if count > 1 and not cached and self._prefill is not None:
            return self._prefill
        if count > 1 and self._over_cache is not None and self._over_cache.blocks[0].history_tokens >= cached:
            return self._over_cache
        return next(work for work in self._decode if work.blocks[0].history_tokens >= cached)

    def _pass(self, work: Workspace, new: int, history: int) -> ForeignPass:
        """The pass of that shape, bound; those of a dynamic net are not kept, there may be many."""
        key = (id(work), new, history, self.cache.current)
        step = self._passes.get(key)
        if step is None:
            step = ForeignPass(
                self.session,
                self.layout,
                work,
                self._states,
                self.cache,
                new=new,
                history=history,
                turn=self.cache.current,
            )
            if not work.blocks[0].dynamic:
                self._passes[key] = step
        return step

    def _steps(self, count: int) -> float:
        """What it costs to continue with ``count`` tokens, in decode steps."""
        if self._over_cache is None or count == 1:
            return count
        return self._cost(self._over_cache, count)

    def _steps_anew(self, count: int) -> float:
        """What it costs to compute ``count`` tokens over an empty cache, in decode steps."""
        if self._prefill is None:
            return self._steps(count)
        most = self._prefill.blocks[0].new_tokens
        return self._cost(self._prefill, min(count, most)) + self._steps(max(0, count - most))

    @staticmethod
    def _cost(work: Workspace, count: int) -> float:
        block = work.blocks[0]
        passes = -(-count // block.new_tokens)
        computed = count if block.dynamic else passes * block.new_tokens
        return max(passes, computed / TOKENS_PER_STEP)

    def _check(self, ids: Sequence[int], rows: int) -> None:
        if not 0 <= rows <= len(ids) or len(ids) == 0:
            raise UsageError(f"cannot compute {len(ids)} tokens and return logits of {rows}.")
        known = [count for count in (self.layout.vocab_size, self.layout.known_ids) if count is not None]
        if min(ids) < 0 or (known and max(ids) >= min(known)):
            raise UsageError(f"token ids must lie between 0 and {min(known, default=2**31) - 1}.")
        total = len(self.cache.slots) + len(ids)
        if total > self.seq_length:
            raise SequenceTooLongError(
                f"{total} tokens are more than the {self.seq_length} that this bmodel can hold.",
                hint="Shorten the prompt; what a bmodel can hold is fixed when it is compiled.",
            )
