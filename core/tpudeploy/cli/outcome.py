"""How a command ended: what to tell the user, and the exit code.

Deliberate errors are one line and a hint, without a traceback (``TPUDEPLOY_DEBUG=1`` shows it). Anything else is a
defect: one line that names a log file with the traceback, and exit code 70 (EX_SOFTWARE).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from tpudeploy.errors import StorageError, TpuDeployError

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 128 + signal.SIGPIPE
DEFECT = 70
DEBUG_VARIABLE = "TPUDEPLOY_DEBUG"

# typer brings its own click since 0.26; what both have in common are the names that typer itself exports.
_CommandLineError: type[Exception] = [kind for kind in typer.BadParameter.__mro__ if hasattr(kind, "format_message")][
    -1
]


@dataclass
class Outcome:
    """How a command ended.

    :param stdout_lost: whether stdout takes nothing any more: its reader went away, or its disk is full.
    """

    code: int = 0
    stdout_lost: bool = False


@contextmanager
def exit_code_of() -> Iterator[Outcome]:
    """Run a block; however it ends, tell the user and keep the exit code."""
    outcome = Outcome()
    try:
        with _ended_by_sigterm():
            yield outcome
    except typer.Exit as ended:
        outcome.code = ended.exit_code
    except SystemExit as ended:
        outcome.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        outcome.code = INTERRUPTED
    except BrokenPipeError:
        outcome.code, outcome.stdout_lost = PIPE_CLOSED, True
    except OSError as error:
        outcome.stdout_lost = error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = StorageError(f"the disk is full ({error.filename or 'stdout'}).", hint="Free some room and try again.")
        outcome.code = _tell(full if outcome.stdout_lost else error)
    except Exception as error:  # noqa: BLE001 - the last place where an error can be told
        outcome.code = _tell(error)


def _tell(error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        _print_traceback(error)
    if isinstance(error, TpuDeployError):
        print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, _CommandLineError):
        print_error(_first_line(error.format_message()), _usage_hint(error))  # type: ignore[attr-defined]
        return int(getattr(error, "exit_code", 2))
    log = _write_log(error)
    where = f"with the file {log}" if log else f"with the output under {DEBUG_VARIABLE}=1"
    print_error(
        f"tpudeploy failed in a way that it should not: {type(error).__name__}: {_first_line(str(error))}",
        f"Please report it {where}.",
    )
    return DEFECT


def print_error(message: str, hint: str = "") -> None:
    """One line for what went wrong, one for what to do about it, on stderr."""
    lines = [f"error: {message}"] + ([f"hint: {hint}"] if hint else [])
    with suppress(OSError, ValueError):  # the very thing to be told may be that stdout takes nothing
        sys.stdout.flush()
    with suppress(OSError, ValueError):  # stderr itself may be closed
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"See `{context.command_path} --help`." if context is not None else ""


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def _write_log(error: Exception) -> Path | None:
    """Keep the traceback; None where no folder can be written to."""
    import platform
    import tempfile
    import traceback

    from tpudeploy import __version__
    from tpudeploy.settings import load_settings

    header = f"tpudeploy {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n"
    text = header + "".join(traceback.format_exception(error))
    name = f"defect-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (load_settings().logs_dir, Path(tempfile.gettempdir())):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return folder / name
    return None


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that vendor tools are stopped and devices freed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    try:
        previous = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: signals are someone else's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
