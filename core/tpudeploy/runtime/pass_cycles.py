"""What the compiler says that a pass costs."""

from __future__ import annotations

from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.net import NetKind, Stage


def stage_cycles(manifest: Manifest, stage: Stage) -> int | None:
    """Modelled chip cycles of a pass: embedding, every layer, and the output layer for all of its tokens.

    None where the compiler did not report one of its nets. Of several chips, cycles are added up.
    """
    nets, cycles = manifest.nets, manifest.compiler.cycles
    blocks = [net for net in nets.nets if net.kind.is_block and net.stage == stage]
    # A stage may exist in two kinds, for example as prefill and verify: the same net twice, of which one runs.
    blocks = [net for net in blocks if net.kind is blocks[0].kind]
    ends = [net for net in nets.nets if not net.kind.is_block and net.stage.new_tokens == stage.new_tokens]
    if not blocks or not any(net.kind is NetKind.LM_HEAD for net in ends):
        return None
    known = [cycles.get(net.name) for net in (*blocks, *ends)]
    return sum(count for count in known if count) if all(known) else None
