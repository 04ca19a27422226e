"""One sequence whose rows are kept on the host, and which of them it has from others."""

from __future__ import annotations

from dataclasses import dataclass, field

from tpudeploy.runtime.kv_rows import CacheState, Rows


@dataclass(eq=False)
class StoredPrefix:
    """One sequence.

    Its rows stay what they are as long as it is alive; it may only grow.

    :param state: of the whole sequence.
    :param parent: the prefix whose rows come before its own.
    :param shared: how many of them.
    :param rows: its own, from ``shared`` on.
    :param alive: still in the store.
    :param shortened: where it is no longer: what is left of it.
    """

    state: CacheState
    parent: StoredPrefix | None
    shared: int
    rows: Rows
    used: int
    alive: bool = True
    shortened: StoredPrefix | None = None
    branches: list[StoredPrefix] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return len(self.state.ids)

    @property
    def token_bytes(self) -> int:
        """Bytes of the row of one token."""
        return sum(array.shape[1] for array in self.rows)

    @property
    def needed(self) -> int:
        """Tokens that branches need."""
        return max((branch.shared for branch in self.branches), default=0)


@dataclass(frozen=True)
class Origin:
    """Where rows come from: the first ``length`` rows of a stored prefix; those of its parents included."""

    prefix: StoredPrefix | None = None
    length: int = 0

    def alive(self) -> Origin:
        """The same without what is no longer stored, by the prefix whose own rows come last."""
        prefix, length = self.prefix, self.length
        while prefix is not None and (not prefix.alive or length <= prefix.shared):
            if prefix.shortened is not None and length > prefix.shared:
                prefix = prefix.shortened
                length = min(length, prefix.length)
            else:
                length = min(length, prefix.shared)
                prefix = prefix.parent
        return Origin(prefix, length) if prefix is not None else Origin()


def parts(origin: Origin) -> list[tuple[StoredPrefix, int, int]]:
    """Whose own rows make it up, in order: each prefix with the first of its rows that count, and the end of them."""
    prefix, stop = origin.prefix, origin.length
    found = []
    while prefix is not None:
        if prefix.shared < stop:
            found.append((prefix, prefix.shared, stop))
        stop = min(stop, prefix.shared)
        prefix = prefix.parent
    return found[::-1]


def common_rows(one: list[tuple[StoredPrefix, int, int]], other: list[tuple[StoredPrefix, int, int]]) -> int:
    """How many leading rows are the very same."""
    common = 0
    for (prefix, _, stop), (held, _, held_stop) in zip(one, other, strict=False):
        if prefix is not held:
            break
        common = min(stop, held_stop)
        if stop != held_stop:
            break
    return common
