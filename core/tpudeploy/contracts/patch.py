"""A patch is data: a named, reasoned, reversible change to the model in memory.

The users of earlier ports edited ``config.json`` and ``modeling_chatglm.py`` by hand. Here each of those edits is a
:class:`Patch` on a field of :class:`~tpudeploy.contracts.decoder.DecoderConfig`; a checkpoint folder is never written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.errors import PluginError


class Patch(Value):
    """One change of one field.

    :param name: short, unique within a model, for example ``"half-split-rope"``.
    :param field: dotted path into :class:`DecoderConfig`, for example ``"form.mask"``.
    :param before: the field's value as published.
    :param after: the value that the export needs.
    :param reason: why, in a sentence.
    :param changes: what it changes in the authors' code or weights, for people.
    :param undo: how the change is undone, for people; :func:`revert_patch` does it.
    """

    name: str
    field: str
    before: Any
    after: Any
    reason: str
    changes: str
    undo: str


def apply_patch(config: DecoderConfig, patch: Patch) -> DecoderConfig:
    """Return ``config`` with the patch applied.

    :raises PluginError: the field does not exist or does not hold the value that the patch expects.
    """
    return _replace(config, patch, expected=patch.before, value=patch.after)


def revert_patch(config: DecoderConfig, patch: Patch) -> DecoderConfig:
    """Return ``config`` with an applied patch undone: the inverse of :func:`apply_patch`."""
    return _replace(config, patch, expected=patch.after, value=patch.before)


def apply_patches(config: DecoderConfig, patches: Iterable[Patch]) -> DecoderConfig:
    """Apply patches in order; reverting them in reverse order gives ``config`` back."""
    for patch in patches:
        config = apply_patch(config, patch)
    return config


def _replace(config: DecoderConfig, patch: Patch, *, expected: Any, value: Any) -> DecoderConfig:
    dump = config.model_dump(mode="json")
    *parents, leaf = patch.field.split(".")
    node: Any = dump
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise PluginError(f"patch {patch.name!r} names the field {patch.field!r}, which a decoder does not have.")
    if node[leaf] != expected:
        raise PluginError(
            f"patch {patch.name!r} expects {patch.field} to be {expected!r}, but it is {node[leaf]!r}.",
            hint="Another patch may have changed it: see `tpudeploy show MODEL --patches`.",
        )
    node[leaf] = value
    return DecoderConfig.model_validate(dump)
