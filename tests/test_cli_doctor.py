"""``tpudeploy doctor``: a verdict and a remedy for each part, and an exit code that means something."""

from __future__ import annotations

import importlib.metadata
import json
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from cli_support import environment, run_cli
from third_party.tpudeploy_acme.adapter import Acme
from third_party.tpudeploy_acme.backend import AcmeChip
from tpudeploy.compile.toolchain import Problem, SelfCheck, ToolchainStatus
from tpudeploy.contracts.backend import Availability, DeviceInfo, MemoryHeap
from tpudeploy.doctor import Finding, examine, machine, packages, parts
from tpudeploy.errors import BackendError
from tpudeploy.plugins import PluginRecord, PluginRegistry, registry
from tpudeploy.settings import Settings

OLD = Problem(text="it is old.", remedy="Install it anew.")
FAILED = SelfCheck(passed=False, when=datetime.now(tz=timezone.utc), seconds=1.0, detail="wrong numbers")


class Chip(AcmeChip):
    """A backend that works."""

    name = "chip"
    found: tuple[DeviceInfo, ...] = (DeviceInfo(id=0, name="chip", memory_bytes=16 * 10**9, used_bytes=10**9),)

    def availability(self) -> Availability:
        return Availability(available=True)

    def devices(self) -> tuple[DeviceInfo, ...]:
        return self.found


class Broken(AcmeChip):
    """A backend that raises where it must not."""

    name = "broken"

    def availability(self) -> Availability:
        raise OSError("driver crashed")


def plugins(*offered: AcmeChip) -> PluginRegistry:
    found = PluginRegistry(pluggy.PluginManager("tpudeploy"))
    found.backends.update((backend.name, backend) for backend in offered)
    found.models["acme"] = Acme()
    return found


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_is_ready(tmp_path: Path) -> None:
    done = run_cli("doctor", env=environment(tmp_path))
    assert done.returncode == 0, done.stdout
    for part in ("Python", "packages", "home", "memory", "plugins", "toolchain", "backend cpu"):
        assert f"{part} " in done.stdout
    said = run_cli("doctor", "--json", env=environment(tmp_path))
    findings = json.loads(said.stdout)
    assert {finding["verdict"] for finding in findings} <= {"ok", "warn"}
    assert all(finding["remedy"] for finding in findings if finding["verdict"] != "ok")
    details = {finding["name"]: finding["detail"] for finding in findings}
    assert importlib.metadata.version("numpy") in details["packages"]
    assert importlib.metadata.version("onnxruntime") in details["packages [cpu]"]


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli("doctor", env=environment(tmp_path / "file" / "home"))
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FAIL"))
    assert "cannot be written" in line
    assert "-> Set TPUDEPLOY_HOME" in done.stdout


def test_little_disk_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 10**9)
    (finding,) = machine.check_home(settings)
    assert (finding.verdict, "1.0 GB free" in finding.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("text", "verdict", "detail"),
    [
        ("MemTotal: 9 kB\nMemAvailable:   16000000 kB\n", "ok", "16.4 GB available"),
        ("MemAvailable: 1000000 kB\n", "warn", "1.0 GB available"),
        ("nothing of use\n", "ok", "does not tell"),
    ],
)
def test_memory(text: str, verdict: str, detail: str, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(text)
    (finding,) = machine.check_memory(tmp_path / "meminfo")
    assert finding.verdict == verdict
    assert detail in finding.detail
    assert "does not tell" in next(iter(machine.check_memory(tmp_path / "absent"))).detail


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OLDEST_PYTHON", (99, 0))
    assert next(iter(machine.check_python())).verdict == "fail"


def test_a_terminal_without_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="ascii"))
    (finding,) = machine.check_encoding()
    assert finding.verdict == "warn"
    assert "UTF-8" in finding.remedy


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=999", "a-package-that-is-not-there", 'onnxruntime>=999; extra == "cpu"', 'numpy; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    base, cpu, export, _ = packages.check_packages()
    assert base.verdict == "fail"
    assert "numpy" in base.detail
    assert ">=999" in base.detail
    assert "a-package-that-is-not-there is missing" in base.detail
    assert (cpu.verdict, export.verdict) == ("warn", "ok")
    assert "tpudeploy[cpu]" in cpu.remedy


def test_tpudeploy_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "DISTRIBUTION", "not-installed-at-all")
    (finding,) = packages.check_packages()
    assert finding.verdict == "fail"


def test_backends_and_their_devices() -> None:
    found = by_name(parts.check_backends(plugins(Chip(), AcmeChip(), Broken())))
    assert found["backend chip"].verdict == "ok"
    assert found["backend chip"].detail == "0: chip, 16.0 GB, 1.0 GB in use"
    assert (found["backend acme-chip"].verdict, found["backend acme-chip"].remedy) == ("warn", "Buy one.")
    assert "driver crashed" in found["backend broken"].detail
    assert "backends" not in found
    none = by_name(parts.check_backends(plugins(AcmeChip(), Broken())))
    assert none["backends"].verdict == "fail"
    empty = Chip()
    empty.found = ()
    assert by_name(parts.check_backends(plugins(empty)))["backend chip"].verdict == "warn"


def test_chips_are_described_one_by_one() -> None:
    heaps = tuple(MemoryHeap(name=name, total_bytes=2 << 30, free_bytes=1 << 30) for name in ("npu", "vpp"))
    well = DeviceInfo(
        id=0,
        name="BM1684X",
        platform="SoC",
        memory_bytes=4 << 30,
        used_bytes=2 << 30,
        heaps=heaps,
        temperature_celsius=48,
        utilization_percent=7,
    )
    chip = Chip()
    chip.found = (
        well,
        well.model_copy(update={"id": 1, "holder": 4711}),
        well.model_copy(update={"id": 2, "temperature_celsius": 95}),
        well.model_copy(update={"id": 3, "fault": "the chip hangs"}),
    )
    found = by_name(parts.check_backends(plugins(chip)))
    assert found["backend chip"].detail == "4 chips"
    assert found["device 0"].detail == (
        "BM1684X, SoC, 4.3 GB, 2.1 GB in use, free in npu 1024 of 2048 MiB, vpp 1024 of 2048 MiB, 48 °C, 7 % busy"
    )
    assert [found[f"device {number}"].verdict for number in range(4)] == ["ok", "warn", "warn", "fail"]
    assert "wait for process 4711" in found["device 1"].remedy
    assert "fan" in found["device 2"].remedy
    assert "--dev=3 --recovery" in found["device 3"].remedy
    second = Chip()
    second.name, second.found = "other", chip.found
    names = [finding.name for finding in parts.check_backends(plugins(chip, second))]
    assert names == ["backend chip", *(f"device {number}" for number in range(4)), "backend other"]


def test_a_library_that_cannot_be_loaded_is_a_finding() -> None:
    class Old(Chip):
        def devices(self) -> tuple[DeviceInfo, ...]:
            raise BackendError("it lacks a call.", hint="Install a newer one.")

    finding = by_name(parts.check_backends(plugins(Old())))["backend chip"]
    assert (finding.verdict, finding.remedy) == ("fail", "Install a newer one.")


def test_equal_devices_are_one_line() -> None:
    chip = Chip()
    chip.found = tuple(DeviceInfo(id=number, name="imagined") for number in (0, 1, 2, 3))
    assert by_name(parts.check_backends(plugins(chip)))["backend chip"].detail == "0-3: imagined"


def test_chips_that_are_no_part_of_this_machine_are_one_line() -> None:
    class Card(AcmeChip):
        def __init__(self, name: str) -> None:
            self.name = name

        def availability(self) -> Availability:
            return Availability(available=False, absent=True, reason="no card.", remedy="Buy one.")

    findings = list(parts.check_backends(plugins(Chip(), Card("card"), Card("sail"))))
    assert [finding.name for finding in findings] == ["backend chip", "chips"]
    assert findings[1].verdict == "ok"
    assert "card, sail" in findings[1].detail


def test_what_a_backend_stands_on_is_told_before_it() -> None:
    class Driven(AcmeChip):
        def findings(self) -> tuple[Finding, ...]:
            return (Finding(name="driver", verdict="ok", detail="0.5.1"),)

    names = [finding.name for finding in parts.check_backends(plugins(Chip(), Driven()))]
    assert names == ["driver", "backend acme-chip", "backend chip"]


def test_plugins_that_failed_are_named() -> None:
    found = plugins()
    found.records.append(PluginRecord(name="bad", package="tpudeploy-bad", version="1", target="x", error="broken."))
    findings = by_name(parts.check_plugins(found))
    assert findings["plugin bad"].verdict == "warn"
    assert "tpudeploy-bad" in findings["plugin bad"].remedy
    found.models.clear()
    assert by_name(parts.check_plugins(found))["plugins"].verdict == "fail"


@pytest.mark.parametrize(
    ("status", "verdict", "detail"),
    [
        (ToolchainStatus(found=False), "warn", "not installed"),
        (ToolchainStatus(found=True, version="1.2", folder=Path("here")), "ok", "TPU-MLIR 1.2"),
        (ToolchainStatus(found=True, version="1", problems=[OLD]), "warn", "it is old."),
        (ToolchainStatus(found=True, version="1", problems=[OLD], self_check=FAILED), "fail", "it is old."),
    ],
)
def test_the_toolchain(
    status: ToolchainStatus, verdict: str, detail: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpudeploy.compile.toolchain.status", lambda settings: status)
    (finding,) = parts.check_toolchain(settings)
    assert finding.verdict == verdict
    assert detail in finding.detail


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(machine, "check_memory", fail)
    findings = by_name(examine(registry(), settings))
    assert findings["memory"].verdict == "fail"
    assert "ZeroDivisionError" in findings["memory"].detail
    assert "Python" in findings
    assert "backend cpu" in findings
