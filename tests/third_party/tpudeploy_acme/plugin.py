"""The entry point: registers a model, a backend, a drafter and a command."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from tpudeploy import hookimpl
from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.drafter import Drafter
from tpudeploy_acme.adapter import Acme
from tpudeploy_acme.backend import AcmeChip
from tpudeploy_acme.drafter import LastAgain


@hookimpl
def tpudeploy_models() -> Sequence[ModelAdapter]:
    """Acme's family."""
    return [Acme()]


@hookimpl
def tpudeploy_backends() -> Sequence[Backend]:
    """Acme's chip."""
    return [AcmeChip()]


@hookimpl
def tpudeploy_drafters() -> Sequence[Drafter]:
    """Acme's guess."""
    return [LastAgain()]


@hookimpl
def tpudeploy_commands(app: typer.Typer) -> None:
    """One new command, and one that tpudeploy has already."""

    @app.command("acme-hello")
    def hello(name: str) -> None:
        """Greet somebody in Acme's name."""
        typer.echo(f"Acme greets {name}.")

    @app.command("run")
    def run() -> None:
        """Try to take over a command."""
        typer.echo("taken over")
