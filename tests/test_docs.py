"""Every command in README and docs is run, page by page, as a reader would: in order, in one folder, with one home.

A block fenced as ``console`` holds commands (``$ ...``) and, below each, lines of its real output. A line without
digits (sizes and times differ) must be in the output of the command above it. ``# exit code N`` after a command
says that it ends with N.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import link_toolchain
from tpudeploy.errors import ToolchainError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
DEMO = ROOT / "plugins/chatglm3/tpudeploy_chatglm3/demo/checkpoint"
NEEDS_TOOLCHAIN = re.compile(r"toolchain|--backend simulator|tpudeploy compile")


@dataclass
class Command:
    text: str
    output: list[str] = field(default_factory=list)
    exit_code: int = 0


def commands_of(page: Path) -> list[Command]:
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
        for line in block.splitlines():
            if line.startswith("$ "):
                text, _, code = line[2:].partition("  # exit code ")
                found.append(Command(text, exit_code=int(code or 0)))
            elif found and line.strip():
                found[-1].output.append(line)
    return found


WITH_COMMANDS = [page for page in PAGES if commands_of(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_works_as_shown(page: Path, tmp_path: Path) -> None:
    commands = commands_of(page)
    if any(NEEDS_TOOLCHAIN.search(command.text) for command in commands):
        try:
            home = link_toolchain(tmp_path / "home").home
        except ToolchainError as error:
            pytest.skip(error.message)
    else:
        home = tmp_path / "home"
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(DEMO, work / "demo-checkpoint")
    shutil.copytree(ROOT / "examples", work / "examples")
    environment = os.environ | {
        "TPUDEPLOY_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == command.exit_code, f"$ {command.text}\n{said}"
        for line in command.output:
            shown = line.strip()
            if shown == "..." or any(character.isdigit() for character in shown):
                continue
            assert shown in said, f"$ {command.text}\nis shown to print: {shown}\nbut printed:\n{said}"


def test_a_page_shows_an_example_as_it_is() -> None:
    page = (ROOT / "docs/how-to/tools.md").read_text(encoding="utf-8")
    assert re.findall(r"^```python\n(.*?)^```", page, re.S | re.M) == [
        (ROOT / "examples/weather.py").read_text(encoding="utf-8")
    ]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_reference_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
