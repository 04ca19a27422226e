"""``tpudeploy toolchain``: options, progress, questions; the installation itself has tests of its own."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from cli_support import Terminal, environment, run_cli
from tpudeploy.compile import toolchain
from tpudeploy.compile.toolchain import InstallEvent, Problem, SelfCheck, Toolchain, ToolchainStatus
from tpudeploy.errors import ToolchainError
from tpudeploy.settings import Settings

WHEN = datetime(2024, 5, 1, 12, 30, tzinfo=timezone.utc)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "home")


def stub(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    monkeypatch.setattr(toolchain, name, function)


def test_install_reports_each_step_once_and_prints_where_it_is(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def install(settings: Settings, *, python: Path | None, progress: Any, force: bool) -> Toolchain:
        asked.update(home=settings.home, python=python, force=force)
        for done in (0, 50, 100):
            progress(InstallEvent("download", "downloading [bold]tpu_mlir[/bold]", done, 100))
        progress(InstallEvent("done", "ready"))
        return Toolchain(kind="private", python=Path("python"), package_dir=Path("there"), version="9.9")

    stub(monkeypatch, "install", install)
    done = run_cli("toolchain", "install", "--python", "/opt/python3.10", "--force", env=env)
    assert (done.returncode, done.stdout) == (0, "TPU-MLIR 9.9: there\n")
    assert done.stderr == "downloading [bold]tpu_mlir[/bold]\nready\n"
    assert asked == {"home": tmp_path / "home", "python": Path("/opt/python3.10"), "force": True}


def test_install_that_fails(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def install(settings: Settings, **options: Any) -> Toolchain:
        raise ToolchainError("no Python 3.10 was found.", hint="Install one.")

    stub(monkeypatch, "install", install)
    done = run_cli("toolchain", "install", env=env)
    assert (done.returncode, done.stderr) == (5, "error: no Python 3.10 was found.\nhint: Install one.\n")


def test_status(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    check = SelfCheck(passed=True, when=WHEN, seconds=3.21, detail="equal")
    state = ToolchainStatus(
        found=True,
        kind="private",
        version="9.9",
        python=Path("py"),
        folder=Path("there"),
        size_bytes=1_500_000_000,
        self_check=check,
        problems=[Problem(text="it is old.", remedy="Install it anew.")],
    )
    stub(monkeypatch, "status", lambda settings: state)
    done = run_cli("toolchain", "status", env=env)
    assert done.returncode == 0
    for part in ("9.9", "installed by tpudeploy", "1.5 GB", "passed", "2024-05-01", "it is old.", "Install it anew."):
        assert part in done.stdout
    said = json.loads(run_cli("toolchain", "status", "--json", env=env).stdout)
    assert (said["version"], said["self_check"]["passed"]) == ("9.9", True)
    stub(monkeypatch, "check", lambda settings: check.model_copy(update={"passed": False}))
    checked = run_cli("toolchain", "status", "--check", env=env)
    assert checked.returncode == 5
    assert "FAILED" in checked.stdout


def test_status_without_a_toolchain(env: dict[str, str], tmp_path: Path) -> None:
    done = run_cli("toolchain", "status", env=env | {"PATH": str(tmp_path)})
    assert done.returncode == 0
    assert "not installed" in done.stdout
    assert "toolchain install" in done.stdout


def test_remove_asks(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_cli("toolchain", "remove", env=env)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert run_cli("toolchain", "remove", "--yes", env=env).stdout == "There was nothing to delete.\n"
    stub(monkeypatch, "remove", lambda settings: 1_200_000_000)
    assert run_cli("toolchain", "remove", "--yes", env=env).stdout == "1.2 GB freed.\n"
    for answer, said in (("n\n", "Nothing was deleted."), ("y\n", "There was nothing to delete.")):
        with Terminal("toolchain", "remove", env=env) as terminal:
            terminal.expect("[y/N]")
            terminal.type(answer)
            terminal.expect(said)
            assert terminal.wait() == 0


def test_without_a_command_it_shows_its_help(env: dict[str, str]) -> None:
    done = run_cli("toolchain", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "install" in done.stdout


@pytest.mark.parametrize(
    "command", [["compile", "chatglm3:demo"], ["run", "chatglm3:demo", "--backend", "simulator", "x"]]
)
def test_a_toolchain_of_ones_own_is_named_by_option(command: list[str], tmp_path: Path) -> None:
    """The option wins over the variable, and reaches whatever needs a toolchain."""
    (tmp_path / "mine").mkdir()
    env = environment(tmp_path / "home", TPUDEPLOY_TOOLCHAIN=str(tmp_path / "other"))
    done = run_cli(*command, "--toolchain", tmp_path / "mine", env=env)
    assert done.returncode != 0
    assert f"{tmp_path / 'mine'} (TPUDEPLOY_TOOLCHAIN) holds no TPU-MLIR" in done.stderr
