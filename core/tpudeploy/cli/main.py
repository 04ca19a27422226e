"""The program ``tpudeploy``: runs one command and turns every outcome into lines on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

try:
    from tpudeploy.cli.app import PROGRAM, app
    from tpudeploy.cli.outcome import exit_code_of
    from tpudeploy.cli.terminal import prepare_streams, silence_stdout
except KeyboardInterrupt:  # Ctrl-C in the tenth of a second that these take
    sys.exit(130)

_COMPLETION_VARIABLE = "_TPUDEPLOY_COMPLETE"
"""Set by the shell when it asks for completions."""


def main() -> None:
    """Entry point of the program; ends the process."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Tests and the program take the same way."""
    prepare_streams()
    if _COMPLETION_VARIABLE in os.environ:
        app(prog_name=PROGRAM)
        return 0
    with exit_code_of() as outcome:
        import typer.main

        command = typer.main.get_command(app)
        with command.make_context(PROGRAM, list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    if outcome.stdout_lost:
        silence_stdout()
    return outcome.code


if __name__ == "__main__":
    main()
