"""Between a KV cache and a store of prefixes: what is saved before it is overwritten, and what is worth restoring."""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.runtime.kv_cache import KvCache
from tpudeploy.runtime.kv_rows import Rows, all_finite, common_length
from tpudeploy.runtime.pass_plan import PassPlanner
from tpudeploy.runtime.prefix_store import PrefixStore
from tpudeploy.runtime.stored_prefix import Origin

COPY_SHARE = 8
"""Restoring must save one part in so many of the cheapest pass: about what the copy of a full cache costs."""


class PrefixKeeper:
    """Keeps what one engine's cache loses.

    :param least: fewer tokens than this are not worth a copy: a pass, of which the next prompt needs one anyway,
        computes them along.
    """

    def __init__(
        self, cache: KvCache, planner: PassPlanner, store: PrefixStore, *, seq_length: int, least: int
    ) -> None:
        self.store = store
        self._cache = cache
        self._planner = planner
        self._seq_length = seq_length
        self._least = least
        self._origin = Origin()

    def exchange(self, ids: Sequence[int], kept: int) -> int:
        """Before the cache is cut to its first ``kept`` tokens, with which ``ids`` begin: save what will be lost, and
        fetch what is to be computed and is stored.

        :returns: how many leading ``ids`` the cache holds now, at least ``kept``; all of them but one at most.
        :raises BackendError: a copy failed. The cache then holds fewer tokens, but only valid ones.
        """
        lost, missing = self._cache.length - kept, len(ids) - kept
        if max(lost, missing) < self._least:
            return kept
        found = self.store.find(tuple(ids[:-1])) if missing >= self._least else Origin()
        if lost >= self._least:
            self._save(found)
        if found.length > kept and self._pays(kept, found.length, len(ids)):
            return self._restore(found, kept)
        return kept

    def shared(self, ids: Sequence[int]) -> int:
        """How many leading ``ids`` need not be computed; from any thread."""
        wanted = tuple(ids[:-1])
        return max(common_length(self._cache.ids, wanted), self.store.shared(wanted))

    def _save(self, needed: Origin) -> None:
        cache = self._cache
        held = self._held()
        if cache.length - held.length < self._least:
            return
        rows = self._copy(held.length)
        # What is no number would come back with every prompt that begins like this one.
        if rows is not None and all_finite(rows, cache.dtype):
            self._origin = self.store.add(cache.state, rows, held, needed=needed)
            cache.copied = self._origin.length

    def _copy(self, start: int) -> Rows | None:
        try:
            return self._cache.read_rows(start)
        except MemoryError:
            return None

    def _restore(self, found: Origin, kept: int) -> int:
        state, pieces = self.store.take(found, self._held())
        self._cache.restore(state, pieces)
        self._origin = found
        self._cache.copied = found.length
        self.store.restored(found.length - kept)
        return found.length

    def _held(self) -> Origin:
        """Which rows of the cache are stored."""
        return Origin(self._origin.prefix, min(self._origin.length, self._cache.copied)).alive()

    def _pays(self, kept: int, stored: int, count: int) -> bool:
        """Whether passes are saved, and not just tokens in passes that are needed anyway."""
        count = min(count, self._seq_length)
        saved = self._planner.cost(kept, count - kept) - self._planner.cost(stored, count - stored)
        return saved * COPY_SHARE >= self._planner.cheapest
