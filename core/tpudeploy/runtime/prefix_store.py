"""Keys and values of sequences that left the KV cache, in host memory, so that nobody computes them again.

A device has one cache. Where several conversations take turns, each turn would begin with computing that
conversation's whole history. So rows that are about to be overwritten are copied here, and copied back when a prompt
comes that begins like them. A row is only ever copied: what comes back is bit for bit what was there.

Sequences often begin alike, with the same system message. Rows that a sequence has from another one, because it was
continued from there, are kept once: a stored prefix names the one that it branches off from, and where. It is not
enough that ids are the same; two passes may round differently, and a row must go with the rows that it was computed
over.

The store is bounded in bytes. What was not used for longest goes first: a prefix that nothing branches off from is
dropped, of others the part that no branch needs. Any number of engines over the same nets may share a store, each in a
thread of its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.errors import UsageError
from tpudeploy.runtime.kv_rows import CacheState, Piece, Rows, common_length, join_rows, row_bytes, slice_rows
from tpudeploy.runtime.stored_prefix import Origin, StoredPrefix, common_rows, parts

MOST_BYTES = 1_000_000_000
"""The default limit, where a tenth of the free memory is not less."""
MEM_INFO = Path("/proc/meminfo")
_FREE_UNKNOWN = 2_000_000_000


@dataclass(frozen=True)
class StoreCounts:
    """What a store has done so far, and holds now.

    :param lookups: prompts that were looked for, because the cache did not hold enough of them.
    :param hits: those of them for which rows were restored.
    :param restored_tokens: tokens whose rows were; none of them had to be computed.
    :param saved_tokens: tokens whose rows were copied here.
    :param evicted_tokens: tokens whose rows had to make room.
    :param refused: sequences that found no room.
    :param prefixes: sequences that are stored now.
    :param tokens: tokens whose rows are stored now.
    :param bytes: of these rows.
    """

    lookups: int
    hits: int
    restored_tokens: int
    saved_tokens: int
    evicted_tokens: int
    refused: int
    prefixes: int
    tokens: int
    bytes: int
    limit_bytes: int


class PrefixStore:
    """Rows of many sequences.

    :param limit_bytes: host memory that rows may take; None: a tenth of what is free now, and at most 1 GB.
    :raises UsageError: a limit below 0.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes < 0:
            raise UsageError(f"a limit of {limit_bytes} bytes cannot be kept.")
        self.limit_bytes = default_limit_bytes() if limit_bytes is None else limit_bytes
        self._lock = threading.Lock()
        self._nets: object = None
        self._stored: list[StoredPrefix] = []
        self._bytes = self._clock = 0
        self._lookups = self._hits = self._restored = self._saved = self._evicted = self._refused = 0

    @property
    def counts(self) -> StoreCounts:
        """Figures for people and monitoring; from any thread."""
        with self._lock:
            tokens = sum(prefix.length - prefix.shared for prefix in self._stored)
            return StoreCounts(
                lookups=self._lookups,
                hits=self._hits,
                restored_tokens=self._restored,
                saved_tokens=self._saved,
                evicted_tokens=self._evicted,
                refused=self._refused,
                prefixes=len(self._stored),
                tokens=tokens,
                bytes=self._bytes,
                limit_bytes=self.limit_bytes,
            )

    def use_for(self, nets: object) -> None:
        """Keep rows of nets that are known by a value that equals no others'.

        :raises UsageError: the store is used for others.
        """
        with self._lock:
            if self._nets is not None and self._nets != nets:
                raise UsageError("a prefix store cannot be shared by engines over different nets.")
            self._nets = nets

    def shared(self, ids: tuple[int, ...]) -> int:
        """How many leading ids have their rows here, or had a moment ago; from any thread.

        It takes no lock: a server's event loop asks, and must not wait while another thread copies rows.
        """
        return max((common_length(prefix.state.ids, ids) for prefix in tuple(self._stored)), default=0)

    def find(self, ids: tuple[int, ...]) -> Origin:
        """Where the rows of most leading ids are."""
        with self._lock:
            self._lookups += 1
            found = [(common_length(prefix.state.ids, ids), prefix.used, prefix) for prefix in self._stored]
            length, _, prefix = max(found, key=lambda item: item[:2], default=(0, 0, None))
            return Origin(prefix, length).alive()

    def take(self, origin: Origin, held: Origin) -> tuple[CacheState, list[Piece]]:
        """The rows of ``origin``, without the leading ones that are those of ``held`` as well.

        They may be used until the prefix is gone, and after that as well: they are never written to.
        """
        with self._lock:
            now = origin.alive()
            origin = now if now.length == origin.length else origin
            if origin.prefix is None:
                return CacheState((), (), 0), []
            state = origin.prefix.state.first(origin.length)
            pieces: list[Piece] = []
            common = common_rows(parts(origin), parts(held.alive()))
            for prefix, start, stop in parts(origin):
                prefix.used = self._tick()
                if stop > common:
                    begin = max(start, common)
                    pieces.append(Piece(begin, slice_rows(prefix.rows, begin - start, stop - start)))
            return state, pieces

    def restored(self, tokens: int) -> None:
        """Rows that were taken arrived, and so many tokens need not be computed."""
        with self._lock:
            self._hits += 1
            self._restored += tokens

    def add(self, state: CacheState, rows: Rows, origin: Origin, *, needed: Origin) -> Origin:
        """Store a sequence.

        :param rows: of its tokens from ``origin.length`` on.
        :param origin: where the rows before them are.
        :param needed: what must not make room for it.
        :returns: where its rows are; ``origin`` where there is no room for it.
        """
        with self._lock:
            origin = origin.alive()
            size, start = row_bytes(rows), len(state.ids) - len(rows[0])
            pinned: dict[StoredPrefix, int] = {}
            for prefix, _, stop in (*parts(needed.alive()), *parts(origin)):
                pinned[prefix] = max(pinned.get(prefix, 0), stop)
            if origin.length != start or not self._make_room(size, pinned):
                self._refused += 1
                return origin.alive()
            self._saved += len(rows[0])
            self._bytes += size
            parent = origin.alive().prefix
            if parent is None or parent.length != start:
                parent = self._insert(StoredPrefix(state, parent, start, rows, self._tick()))
            else:  # it grows
                parent.rows, parent.state, parent.used = join_rows(parent.rows, rows), state, self._tick()
            return Origin(parent, parent.length)

    def clear(self) -> None:
        """Forget every sequence."""
        with self._lock:
            for prefix in self._stored:
                prefix.alive = False
            self._stored.clear()
            self._bytes = 0

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _insert(self, prefix: StoredPrefix) -> StoredPrefix:
        if prefix.parent is not None:
            prefix.parent.branches.append(prefix)
        self._stored.append(prefix)
        return prefix

    def _make_room(self, size: int, pinned: dict[StoredPrefix, int]) -> bool:
        """Drop what was not used for longest until ``size`` bytes fit; drops nothing where they cannot.

        :param pinned: of these prefixes, up to where rows are needed now.
        """
        kept = sum((stop - prefix.shared) * prefix.token_bytes for prefix, stop in pinned.items())
        if size > self.limit_bytes - kept:
            return False
        while self._bytes + size > self.limit_bytes:
            able = [prefix for prefix in self._stored if max(prefix.needed, pinned.get(prefix, 0)) < prefix.length]
            oldest = min(able, key=lambda prefix: prefix.used)
            self._cut(oldest, max(oldest.needed, pinned.get(oldest, 0)))
            if oldest.shortened is not None and oldest in pinned:
                pinned[oldest.shortened] = pinned[oldest]
        return True

    def _cut(self, prefix: StoredPrefix, length: int) -> None:
        """Drop rows from ``length`` on. What is left is another prefix, for rows of one that is alive never change."""
        self._bytes -= row_bytes(prefix.rows)
        self._evicted += prefix.length - max(length, prefix.shared)
        prefix.alive = False
        self._stored.remove(prefix)
        if prefix.parent is not None:
            prefix.parent.branches.remove(prefix)
        if length <= prefix.shared:
            return
        rows = [array.copy() for array in slice_rows(prefix.rows, 0, length - prefix.shared)]
        shorter = StoredPrefix(prefix.state.first(length), prefix.parent, prefix.shared, rows, prefix.used)
        shorter.branches = prefix.branches
        for branch in shorter.branches:
            branch.parent = shorter
        self._bytes += row_bytes(rows)
        prefix.shortened = self._insert(shorter)


def default_limit_bytes() -> int:
    """A tenth of the memory that is free now, and at most 1 GB."""
    return min(MOST_BYTES, _free_bytes() // 10)


def _free_bytes() -> int:
    try:
        for line in MEM_INFO.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _FREE_UNKNOWN
