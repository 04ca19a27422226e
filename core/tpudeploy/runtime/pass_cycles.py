"""What the compiler says that a pass costs."""

from __future__ import annotations

from collections.abc import Iterable

from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.net import NetKind, NetSpec, Stage


def stage_cycles(manifest: Manifest, stage: Stage) -> int | None:
    """Modelled chip cycles of a pass: embedding, every layer, and the output layer for all of its tokens.

    None where the compiler did not report one of its nets. Of several chips, cycles are added up.
    """
    ends = [net for net in manifest.nets.nets if not net.kind.is_block and net.stage.new_tokens == stage.new_tokens]
    if not any(net.kind is NetKind.LM_HEAD for net in ends):
        return None
    return _sum(manifest, [*_blocks(manifest, stage), *ends])


def block_cycles(manifest: Manifest, stage: Stage) -> int | None:
    """:func:`stage_cycles` of the layers alone."""
    return _sum(manifest, _blocks(manifest, stage))


def _blocks(manifest: Manifest, stage: Stage) -> list[NetSpec]:
    blocks = [net for net in manifest.nets.nets if net.kind.is_block and net.stage == stage]
    # A stage may exist in two kinds, for example as prefill and verify: the same net twice, of which one runs.
    return [net for net in blocks if net.kind is blocks[0].kind]


def _sum(manifest: Manifest, nets: Iterable[NetSpec]) -> int | None:
    known = [manifest.compiler.cycles.get(net.name) for net in nets]
    return sum(count for count in known if count) if known and all(known) else None
