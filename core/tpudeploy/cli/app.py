"""The command line as a whole: the commands of this package, and those that plugins add."""

from __future__ import annotations

from typing import Annotated

import typer

from tpudeploy import __version__
from tpudeploy.cli.commands import (
    bench,
    bundle,
    compile_model,
    doctor,
    estimate,
    export,
    list_models,
    plugins,
    pull,
    run,
    serve,
    show,
    tokenize,
    toolchain,
    verify,
)
from tpudeploy.cli.plugin_commands import CommandGroup

PROGRAM = "tpudeploy"

app = typer.Typer(
    name=PROGRAM,
    cls=CommandGroup,
    help="Run language models, as their authors publish them, on Sophgo BM1684X TPUs.",
    # Plain help: quick, and nothing in it is taken for markup.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("list-models")(list_models.list_models)
app.command("list", hidden=True)(list_models.list_models)  # what users of other tools type
app.command("show")(show.show)
app.command("run")(run.run)
app.command("serve")(serve.serve)
app.command("bench")(bench.bench)
app.command("estimate")(estimate.estimate)
app.command("export")(export.export)
app.command("compile")(compile_model.compile_model)
app.command("pull")(pull.pull)
app.command("bundle")(bundle.bundle)
app.command("tokenize")(tokenize.tokenize)
app.command("verify")(verify.verify)
app.command("plugins")(plugins.plugins)
app.add_typer(toolchain.app, name="toolchain")
app.command("doctor")(doctor.doctor)
