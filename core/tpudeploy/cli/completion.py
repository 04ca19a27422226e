"""What the shell offers for an unfinished word. A failure offers nothing: completion must never print."""

from __future__ import annotations

from contextlib import suppress


def models(incomplete: str) -> list[str]:
    """Names of models, with their variants."""
    with suppress(Exception):
        from tpudeploy.plugins import registry

        names = [f"{a.name}:{v.name}" for a in registry().models.values() for v in a.variants()]
        return [name for name in names if name.startswith(incomplete)]
    return []


def backends(incomplete: str) -> list[str]:
    """Names of backends."""
    with suppress(Exception):
        from tpudeploy.plugins import registry

        return [name for name in ("auto", *sorted(registry().backends)) if name.startswith(incomplete)]
    return []


def quant_modes(incomplete: str) -> list[str]:
    """Names of quantization modes."""
    with suppress(Exception):
        from tpudeploy.contracts.quant import QuantMode

        return [mode.value for mode in QuantMode if mode.value.startswith(incomplete)]
    return []
