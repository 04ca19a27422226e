"""What a plugin may register. Hooks register or observe; what belongs to one model is a method of its adapter.

A plugin is a module or object named by an entry point of the group ``tpudeploy``; it implements any of these with
``tpudeploy.hookimpl``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from tpudeploy.contracts.adapter import ModelAdapter
    from tpudeploy.contracts.backend import Backend
    from tpudeploy.contracts.decoder import DecoderConfig
    from tpudeploy.contracts.drafter import Drafter
    from tpudeploy.contracts.patch import Patch
    from tpudeploy.contracts.progress import StageEvent

PROJECT = "tpudeploy"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's implementation of a hook."""


@hookspec
def tpudeploy_models() -> Sequence[ModelAdapter]:  # type: ignore[empty-body]
    """Register model families.

    :return: adapters; their names must not be taken.
    """


@hookspec
def tpudeploy_backends() -> Sequence[Backend]:  # type: ignore[empty-body]
    """Register ways to run nets.

    :return: backends; their names must not be taken.
    """


@hookspec
def tpudeploy_drafters() -> Sequence[Drafter]:  # type: ignore[empty-body]
    """Register ways to guess the next tokens of an answer, which users choose with ``--draft NAME``.

    A guess is checked by the model before it counts, so a drafter cannot change an answer. One that fails, or drafts
    too many tokens or ids that the model does not have, is not asked again for that answer, and the user is told.

    :return: drafters; their names must not be taken, nor be ``prompt-lookup`` or ``none``.
    """


@hookspec
def tpudeploy_patches(model: str, config: DecoderConfig) -> Sequence[Patch]:  # type: ignore[empty-body]
    """Register further patches for a model, applied after its adapter's own.

    :param model: the adapter's name.
    :param config: the decoder with the adapter's patches applied.
    :return: patches, in order.
    """


@hookspec
def tpudeploy_commands(app: typer.Typer) -> None:
    """Add commands to the command line.

    :param app: the typer application; a command that exists already cannot be replaced.
    """


@hookspec
def tpudeploy_stage_finished(event: StageEvent) -> None:
    """Observe the pipeline: called in the main process after each stage of export or compile.

    :param event: which stage, of which net, how long it took, and whether its result was reused.
    """
