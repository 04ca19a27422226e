"""The files of ``deploy``: as far as they can be checked without the machines that they are for."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tpudeploy.cli.commands.serve import serve
from tpudeploy.errors import TpuDeployError
from tpudeploy.server import local_service, serving

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy/tpudeploy.service"
SETTINGS = ROOT / "deploy/tpudeploy.env"
CONTAINER = ROOT / "deploy/Containerfile"
INSTRUCTIONS = {
    "ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
    "ENTRYPOINT",
}  # fmt: skip


def known_variables() -> set[str]:
    """Every variable that an option or a setting has."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "core/tpudeploy").rglob("*.py"))
    return set(re.findall(r'"(TPUDEPLOY_\w+)"', code)) | {"TPUDEPLOY_HOME"}


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def settings() -> dict[str, str]:
    lines = SETTINGS.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"#?(\w+)=(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", CONTAINER.read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/tpudeploy/bin/tpudeploy", sys.executable)
    copy.write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert UNIT.name not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_the_unit_waits_for_the_last_answers() -> None:
    grace_s = float(settings()["TPUDEPLOY_SHUTDOWN_GRACE"])
    needed_s = grace_s + serving._LAST_WORDS_S + local_service._STOP_S
    assert needed_s + 5 <= float(unit()["Service"]["TimeoutStopSec"])


def test_the_unit_leaves_the_chips_and_their_locks_alone() -> None:
    service = unit()["Service"]
    text = UNIT.read_text(encoding="utf-8")
    for node in ("bmdev-ctl", "bm-tpu0", "ion", "bm-sophon0"):
        assert f"DeviceAllow=/dev/{node} rw" in text
    assert {"PrivateDevices", "ProcSubset", "MemoryDenyWriteExecute"}.isdisjoint(service)
    assert "/run/lock" in service["ReadWritePaths"]


def test_what_is_not_tried_again_is_what_no_attempt_mends() -> None:
    codes = {int(code) for code in unit()["Service"]["RestartPreventExitStatus"].split()}
    known = {error.exit_code for error in _errors(TpuDeployError)}
    assert codes < known
    assert 7 not in codes  # a device may come back


def _errors(base: type[TpuDeployError]) -> list[type[TpuDeployError]]:
    return [base, *(error for child in base.__subclasses__() for error in _errors(child))]


def test_settings_are_those_that_serve_has() -> None:
    used = set(settings())
    used |= {word.partition("=")[0] for kind, text in instructions() if kind == "ENV" for word in text.split()}
    assert {name for name in used if name.startswith("TPUDEPLOY_")} <= known_variables()
    assert serve.__name__ == unit()["Service"]["ExecStart"].split()[-1]


def test_the_container_file_is_one() -> None:
    found = instructions()
    assert {kind for kind, _ in found} <= INSTRUCTIONS
    for kind, text in found:
        if kind == "COPY" and not text.startswith("--from"):
            assert all((ROOT / source).exists() for source in text.split()[:-1])
    last = dict(found)
    assert json.loads(last["ENTRYPOINT"]) == ["tpudeploy", "serve"]
    _, program, option, code = [*json.loads(f'["", {last["HEALTHCHECK"].split("CMD [", 1)[1]}')]
    assert (program, option) == ("python", "-c")
    compile(code, "health check", "exec")
    assert last["USER"] == "tpudeploy"
