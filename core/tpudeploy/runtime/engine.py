"""The engine: token ids in, logits out, over a KV cache; the same for every backend.

It picks passes, keeps cache and device in step, and reads logits. A sequence is a list of token ids; the engine
computes those of its tokens that the cache does not hold. Not thread-safe: as a device runs one net at a time, so
one thread at a time may use an engine.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence

import numpy as np

from tpudeploy.contracts.backend import Backend, Session
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import NetKind, NetSet, Split
from tpudeploy.errors import BundleError, SequenceTooLongError, UsageError
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.runtime.head import Head
from tpudeploy.runtime.hidden import HiddenStates, PartialSums
from tpudeploy.runtime.kv_cache import KvCache
from tpudeploy.runtime.kv_rows import common_length
from tpudeploy.runtime.pass_cycles import stage_cycles
from tpudeploy.runtime.pass_plan import PassPlanner, stage_costs
from tpudeploy.runtime.passes import Pass
from tpudeploy.runtime.prefix_keeper import PrefixKeeper
from tpudeploy.runtime.prefix_store import PrefixStore
from tpudeploy.runtime.rounding import Rounding
from tpudeploy.runtime.stage_nets import StageNets, find_heads, find_stages
from tpudeploy.runtime.token_engine import Settled, TokenEngine

ROUNDING = {DType.F32: 3e-5, DType.F16: 0.002, DType.BF16: 0.016}
"""See :attr:`TokenEngine.rounding`; of one layer, they add up as random errors do. docs/explanation/speculation.md"""
_FEW_TOKENS = 8
"""Not worth a copy, where every token takes a pass of its own."""


class Engine(TokenEngine):
    """A loaded bundle, ready to compute. Owns its session: closing the engine closes it.

    :ivar cache: the tokens whose keys and values are on the device.
    :raises BundleError: the net set cannot run.
    :raises BackendError: the device has no room, or a net is not as the manifest says.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.nets: NetSet = session.manifest.nets
        stages = find_stages(self.nets)
        largest = max(nets.stage.new_tokens for nets in stages)
        longest = max(self.seq_length, *(nets.stage.cache_length for nets in stages))
        # A padded pass writes all its rows, and the last one may begin at the very end.
        self.cache = KvCache(session, stages[0].caching, longest + largest)
        self._passes = self._build_passes(stages, largest)
        self._heads = self._build_heads(largest)
        shapes = [nets.stage for nets in stages]
        self._planner = PassPlanner(shapes, stage_costs(session.manifest, shapes))
        self._verify_stages = self.nets.stages(NetKind.VERIFY)
        presumed = ROUNDING[self.nets.activation]
        self._rounding = Rounding(presumed * math.sqrt(self.nets.config.num_layers), presumed)
        self._sized: tuple[int, int, Pass] | None = None
        self._keeper: PrefixKeeper | None = None

    @property
    def seq_length(self) -> int:
        """Tokens that the cache can hold: prompt and answer, without the answer's last token."""
        return self.nets.seq_length

    @property
    def vocab_size(self) -> int:
        """Logits of one token; padding of the vocabulary included."""
        return self.nets.config.vocab_size

    @property
    def revision(self) -> int:
        """See :attr:`TokenEngine.revision`."""
        return self.cache.revision

    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        """Keep of the cache just what ``ids`` begins with, and at least one of ``ids`` to compute.

        :param known: see :meth:`TokenEngine.reuse`.
        :returns: the number of tokens kept: what is left to :meth:`forward` are ``ids`` from there on.
        """
        kept = max(0, min(self.cache.common_prefix(ids, known), len(ids) - 1))
        if self._keeper is not None:
            kept = self._keeper.exchange(ids, kept)
        self.cache.truncate(kept)
        return kept

    def keep_prefixes(self, store: PrefixStore | None) -> bool:
        """See :meth:`TokenEngine.keep_prefixes`."""
        self._keeper = None
        if store is not None:
            manifest = self.session.manifest
            bundle = (manifest.checkpoint_digest, manifest.quant, manifest.format, manifest.nets.config)
            store.use_for((*bundle, self.cache.dtype, self.cache.row_sizes()))
            least = self._smallest_prefill
            self._keeper = PrefixKeeper(self.cache, self._planner, store, seq_length=self.seq_length, least=least)
        return True

    def shared_prefix(self, ids: Sequence[int]) -> int:
        """See :meth:`TokenEngine.shared_prefix`."""
        keeper = self._keeper
        return keeper.shared(ids) if keeper is not None else common_length(self.cache.ids, tuple(ids[:-1]))

    @property
    def _smallest_prefill(self) -> int:
        """Tokens of the smallest prefill pass."""
        kinds = (NetKind.PREFILL, NetKind.PREFILL_FIRST)
        chunks = [stage.new_tokens for kind in kinds for stage in self.nets.stages(kind)]
        return min(chunks, default=_FEW_TOKENS)

    def pass_size(self, count: int) -> int:
        """How many of ``count`` further tokens the next pass takes."""
        step = self._choose(count)
        taken = min(count, step.stage.new_tokens)
        self._sized = (self.cache.length, taken, step)
        return taken

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        """Compute tokens that follow those in the cache, in as many passes as it takes.

        The cache holds them afterwards. Where it is interrupted, it holds those of the finished passes.

        :param rows: of how many of the last tokens to return logits.
        :returns: (rows, vocab) float32.
        :raises UsageError: no token, one outside of the vocabulary, or more rows than tokens.
        :raises SequenceTooLongError: more tokens than the cache has room for.
        :raises BackendError: a net failed.
        """
        self._check(ids, rows)
        # Whatever was in flight when an earlier call was interrupted must not meet new inputs.
        self.session.sync()
        logits: list[Array] = []
        start = 0
        while start < len(ids):
            step = self._choose(len(ids) - start)
            chunk = ids[start : start + step.stage.new_tokens]
            step.run(chunk)
            logits += self._finish(step, max(len(ids) - rows - start, 0), len(chunk))
            self.cache.extend(chunk)
            start += len(chunk)
        if len(logits) == 1:
            return logits[0]
        return np.concatenate(logits) if logits else np.empty((0, self.vocab_size), dtype=np.float32)

    def draft_limit(self) -> int:
        """See :meth:`TokenEngine.draft_limit`."""
        cached = self.cache.length
        widths = [stage.new_tokens for stage in self._verify_stages if stage.cache_length >= cached]
        return max(0, min(max(widths, default=0), self.seq_length - cached) - 1)

    def verify_extra(self) -> float | None:
        """See :meth:`TokenEngine.verify_extra`; from the compiler's cycles."""
        most = self.draft_limit() + 1
        if most == 1:
            return None
        stages = (self._choose(1).stage, self._choose_verifying(most).stage)
        one, several = (stage_cycles(self.session.manifest, stage) for stage in stages)
        return several / one - 1 if one and several else None

    @property
    def rounding(self) -> Rounding:
        """See :attr:`TokenEngine.rounding`."""
        return self._rounding

    @property
    def pending(self) -> int:
        """See :attr:`TokenEngine.pending`."""
        return self.cache.pending

    def verify(self, ids: Sequence[int]) -> Array:
        """See :meth:`TokenEngine.verify`."""
        self._check(ids, len(ids))
        if len(ids) > self.draft_limit() + 1:
            raise UsageError(f"no pass verifies {len(ids) - 1} drafted tokens here.")
        self.session.sync()
        step = self._choose_verifying(len(ids))
        step.run(ids)
        logits = self._finish(step, 0, len(ids))
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def accept(self, ids: Sequence[int]) -> None:
        """See :meth:`TokenEngine.accept`."""
        self.cache.extend(ids, drafted=True)

    def settle(self, wanted: Container[int] = ()) -> Iterator[Settled]:
        """See :meth:`TokenEngine.settle`."""
        start, ids = self.cache.settled, self.cache.ids
        stops = []
        while start < len(ids):
            start = self.cache.next_pass(start)
            stops.append(start)
        self.cache.truncate(self.cache.settled)
        for stop in stops:
            chunk = ids[self.cache.length : stop]
            rows = self.forward(chunk, rows=int(stop - 1 in wanted))
            yield Settled(len(chunk), stop - 1, rows[0] if len(rows) else None)

    def forget(self) -> None:
        """See :meth:`TokenEngine.forget`."""
        self.cache.clear()

    def _choose(self, count: int) -> Pass:
        """The first pass of the cheapest way to compute ``count`` tokens over the present cache."""
        cached = self.cache.length
        if self._sized is not None and self._sized[:2] == (cached, count):
            return self._sized[2]  # planned when the caller asked for the size of the pass
        return self._passes[self._planner.first(cached, max(1, min(count, self.seq_length - cached)))]

    def _choose_verifying(self, count: int) -> Pass:
        """The narrowest pass that computes ``count`` tokens over the present cache and has an output layer for them."""
        cached = self.cache.length
        able = [step for step in self._passes if step.stage in self._verify_stages]
        return next(step for step in able if step.stage.new_tokens >= count and step.stage.cache_length >= cached)

    def _finish(self, step: Pass, first: int, stop: int) -> list[Array]:
        """Wait for a pass; logits of its rows from ``first`` to ``stop``, by one launch where a head is that large."""
        if first >= stop:
            self.session.sync()
            return []
        head = self._heads.get(step.stage.new_tokens)
        if head is not None and stop - first > 1:
            return [head.read(0, stop)[first:]]
        return [self._heads[1].read(row) for row in range(first, stop)]

    def _check(self, ids: Sequence[int], rows: int) -> None:
        if not 0 <= rows <= len(ids) or len(ids) == 0:
            raise UsageError(f"cannot compute {len(ids)} tokens and return logits of {rows}.")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise UsageError(f"token ids must lie between 0 and {self.vocab_size - 1}.")
        total = self.cache.length + len(ids)
        if total > self.seq_length:
            raise SequenceTooLongError(
                f"{total} tokens are more than the {self.seq_length} that this bundle can hold.",
                hint="Shorten the prompt, or compile with a larger --seq-length.",
            )

    def _build_passes(self, stages: Sequence[StageNets], largest: int) -> list[Pass]:
        session, nets = self.session, self.nets
        hidden = HiddenStates(session, nets, set().union(*(stage.chips for stage in stages)), largest)
        partials = PartialSums(session, nets, largest) if nets.split is Split.TENSOR else None
        last = self.seq_length - 1
        # Padding beyond the last position takes the last one: the rotary table has no more rows.
        positions = np.minimum(np.arange(self.cache.capacity), last).astype(np.int32)
        return [Pass(session, nets, stage, hidden, partials, self.cache, positions) for stage in stages]

    def _build_heads(self, largest: int) -> dict[int, Head]:
        largest_pass = next(step for step in self._passes if step.stage.new_tokens == largest)
        heads = find_heads(self.nets)
        return {rows: Head(self.session, own, largest_pass.output) for rows, own in heads.items() if rows <= largest}


def open_engine(bundle: Bundle, backend: Backend, *, devices: Sequence[int] = ()) -> Engine:
    """Load a bundle on devices.

    :param devices: device ids, one a chip of the bundle; empty lets the backend choose.
    :raises BundleError: the backend does not run this kind of bundle, or the net set cannot run.
    :raises BackendError: the backend or a device is not available, or has no room.
    """
    manifest = bundle.manifest
    if manifest.format not in backend.formats:
        raise BundleError(
            f"backend {backend.name} does not run {manifest.format.value} bundles.",
            hint="`tpudeploy plugins` lists the backends and what they run.",
        )
    devices = devices or backend.default_devices(manifest.nets.chips)
    if len(devices) != manifest.nets.chips:
        raise wrong_device_count("bundle", manifest.nets.chips, len(devices))
    session = backend.open(bundle.folder, manifest, devices=devices)
    try:
        return Engine(session)
    except BaseException:
        session.close()
        raise


def wrong_device_count(what: str, chips: int, named: int) -> UsageError:
    """The error of naming more devices, or fewer, than a model or bundle has chips."""
    wanted = ",".join(map(str, range(chips)))
    return UsageError(
        f"this {what} is for {chips} chip{'s' if chips > 1 else ''}, and --device names {named}.",
        hint=f"Name {chips} device{'s' if chips > 1 else ''}, for example --device {wanted}.",
    )
