"""``tpudeploy toolchain``: TPU-MLIR, the vendor's compiler and simulator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpudeploy.cli import options
from tpudeploy.cli.terminal import format_bytes, format_seconds, print_json, print_line, print_note

if TYPE_CHECKING:
    from tpudeploy.compile.toolchain import ToolchainStatus

app = typer.Typer(
    help="Install, check or remove TPU-MLIR, the vendor's compiler and simulator.",
    rich_markup_mode=None,
    invoke_without_command=True,
)


@app.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("install")
def install(
    python: Annotated[
        Path | None,
        typer.Option(
            "--python",
            metavar="FILE",
            envvar="TPUDEPLOY_PYTHON310",
            help="The Python 3.10 to make it with; found by itself if not given.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", envvar="TPUDEPLOY_FORCE", show_default=False, help="Make it anew even if it is there."),
    ] = False,
) -> None:
    """Make a private environment for TPU-MLIR and check it; interrupted, the same command goes on."""
    from tpudeploy.cli.progress import InstallProgress
    from tpudeploy.compile.toolchain import install
    from tpudeploy.settings import load_settings

    with InstallProgress() as line:
        toolchain = install(load_settings(), python=python, progress=line, force=force)
    print_line(f"TPU-MLIR {toolchain.version}: {toolchain.package_dir}")


@app.command("status")
def status(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            envvar="TPUDEPLOY_CHECK",
            show_default=False,
            help="Also compile a tiny net and run it on the simulator; takes seconds.",
        ),
    ] = False,
    toolchain: options.Toolchain = None,
    as_json: options.Json = False,
) -> None:
    """Tell which TPU-MLIR would be used, and what is wrong with it; exit code 5 where --check fails."""
    from tpudeploy.compile.toolchain import check as run_check
    from tpudeploy.compile.toolchain import status
    from tpudeploy.errors import ToolchainError
    from tpudeploy.settings import load_settings

    settings = load_settings()
    state = status(settings)
    if check:
        state = state.model_copy(update={"self_check": run_check(settings)})
    if as_json:
        print_json(state.model_dump(mode="json"))
    else:
        _print_status(state)
    if check and state.self_check is not None and not state.self_check.passed:
        raise typer.Exit(ToolchainError.exit_code)


@app.command("remove")
def remove(yes: options.Yes = False) -> None:
    """Delete the private environment; a TPU-MLIR of your own is never touched."""
    from tpudeploy.compile.toolchain import remove
    from tpudeploy.errors import UsageError
    from tpudeploy.settings import load_settings

    settings = load_settings()
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("removing the toolchain needs a yes.", hint="Give --yes.")
        sys.stderr.write(f"Delete {settings.toolchain_dir}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print_note("Nothing was deleted.")
            return
    freed = remove(settings)
    print_line(f"{format_bytes(freed)} freed." if freed else "There was nothing to delete.")


def _print_status(state: ToolchainStatus) -> None:
    if not state.found:
        print_line("TPU-MLIR is not installed.")
    else:
        kind = {"private": "installed by tpudeploy", "folder": "named by you", "path": "found on PATH"}
        print_line(f"TPU-MLIR {state.version}, {kind[state.kind or 'private']}: {state.folder}")
        print_line(f"Python: {state.python}")
    if state.size_bytes:
        print_line(f"Disk: {format_bytes(state.size_bytes)}")
    if state.self_check is not None:
        result = "passed" if state.self_check.passed else "FAILED"
        when = f"{state.self_check.when:%Y-%m-%d %H:%M}, {format_seconds(state.self_check.seconds)}"
        print_line(f"Self-check: {result} ({when}): {state.self_check.detail}")
    for problem in state.problems:
        print_line(f"Problem: {problem.text}")
        print_line(f"  {problem.remedy}")
