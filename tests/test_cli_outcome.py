"""Every way in which a command can end: lines on stderr, exit code, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from cli_support import PROGRAM, environment, run_program
from tpudeploy import errors
from tpudeploy.cli import main
from tpudeploy.cli.main import run_command


def leaves(kind: type[errors.TpuDeployError]) -> Iterator[type[errors.TpuDeployError]]:
    """Every error class that is raised as such."""
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from leaves(child)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[BaseException]]:
    """A program whose only command raises what is put into the list."""
    raised: list[BaseException] = []
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(main, "app", app)
    monkeypatch.setenv("TPUDEPLOY_HOME", str(tmp_path))
    monkeypatch.delenv("TPUDEPLOY_DEBUG", raising=False)
    yield raised


@pytest.mark.parametrize("kind", list(leaves(errors.TpuDeployError)), ids=lambda kind: kind.__name__)
def test_a_deliberate_error_is_a_line_a_hint_and_its_own_exit_code(
    kind: type[errors.TpuDeployError], failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    if kind is errors.UnknownNameError:
        failing.append(kind("model", "x", ["a", "b"], hint="Do this."))  # type: ignore[arg-type,call-arg]
        message = "unknown model 'x'; known: a, b."
    else:
        failing.append(kind("it went [bold]wrong[/bold].", hint="Do this."))
        message = "it went [bold]wrong[/bold]."
    assert run_command([]) == kind.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {message}\nhint: Do this.\n")


def test_debug_shows_the_traceback(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPUDEPLOY_DEBUG", "1")
    failing.append(errors.BundleError("broken."))
    assert run_command([]) == 6
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: broken.\n")


def test_a_defect_is_one_line_and_a_log(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failing.append(ZeroDivisionError("a secret\nof two lines"))
    assert run_command([]) == 70
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert len(lines) == 2
    assert "ZeroDivisionError: a secret" in lines[0]
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in lines[1]
    assert "Traceback" in log.read_text()
    assert "of two lines" in log.read_text()


def test_a_defect_without_a_writable_home_is_logged_elsewhere(
    failing: list[BaseException],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TPUDEPLOY_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    failing.append(ValueError("x"))
    assert run_command([]) == 70
    (log,) = (tmp_path / "temporary").iterdir()
    assert str(log) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (typer.Exit(3), 3),
        (SystemExit(4), 4),
        (SystemExit(None), 0),
        (SystemExit("text"), 1),
    ],
)
def test_other_ends_say_nothing(
    raised: BaseException, code: int, failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(raised)
    assert run_command([]) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'."),
        (["runn"], "No such command 'runn'. Did you mean 'run'?"),
        (["run", "--nonsense"], "No such option: --nonsense"),
        (["run", "chatglm3", "--top-k", "x"], "Invalid value for '--top-k'"),
        (["run", "chatglm3", "--max-new-tokens", "0"], "Invalid value for '--max-new-tokens'"),
        (["compile"], "Missing argument 'MODEL'"),
        (["toolchain", "nonsense"], "No such command 'nonsense'."),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second.startswith("hint: See `tpudeploy ")


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "list-models", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (128 + signal.SIGPIPE, b"")


def test_ctrl_c_while_the_program_itself_is_imported() -> None:
    script = """
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "tpudeploy.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from tpudeploy.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_full_disk_behind_stdout_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "list-models"], stdout=full, stderr=subprocess.PIPE, env=environment(tmp_path), check=False
        )
    assert done.returncode == 8
    assert done.stderr.startswith(b"error: the disk is full (stdout).")
    assert b"Exception ignored" not in done.stderr


def test_closed_streams_are_no_reason_to_fail(tmp_path: Path) -> None:
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *PROGRAM, "list-models"]
    assert subprocess.run(command, env=environment(tmp_path), check=False).returncode == 0


SLEEPER = """
import sys, time
from tpudeploy.cli import main
import typer
app = typer.Typer()
@app.command()
def sleep():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
main.app = app
main.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_unwinds_without_a_traceback(number: signal.Signals, code: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "cleaned up\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_chinese_is_no_reason_to_fail(encoding: str, tmp_path: Path) -> None:
    env = environment(tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    done = run_program("show", "模型", env=env)
    assert done.returncode == 2
    assert "\\u6a21" in done.stderr
    assert "Traceback" not in done.stderr
