"""Tell what toolchain there is and what is wrong with it, without running the vendor's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tpudeploy.compile.toolchain import host, layout, pins
from tpudeploy.compile.toolchain.kernels import check_compiler, check_kernels
from tpudeploy.compile.toolchain.locate import ESSENTIAL, INSTALL, INSTALL_ANEW, find_toolchain
from tpudeploy.compile.toolchain.model import Problem, SelfCheck, Toolchain, ToolchainStatus
from tpudeploy.compile.toolchain.python310 import find_python, why_not
from tpudeploy.compile.toolchain.selfcheck import self_check
from tpudeploy.compile.toolchain.unpack import tree_bytes
from tpudeploy.errors import ToolchainError, TpuDeployError
from tpudeploy.settings import Settings

# Modules that the vendor's Python tools need of the environment they run in.
MODULES = ("numpy", "google/protobuf", "onnx", "onnxruntime", "onnxsim")


def status(settings: Settings) -> ToolchainStatus:
    """What toolchain there is, and what is wrong with it; fast, and never raises for what it finds.

    A self-check is remembered for the private environment only: ``check`` runs one on any.
    """
    try:
        toolchain = find_toolchain(settings)
    except ToolchainError as error:
        return _none(settings, error)
    if toolchain.kind == "private":
        return _private(settings, toolchain)
    return ToolchainStatus(
        found=True,
        kind=toolchain.kind,
        version=toolchain.version,
        python=toolchain.python,
        folder=toolchain.package_dir,
        problems=[*_missing_modules(toolchain), *_failing(lambda: check_kernels(toolchain))],
    )


def check(settings: Settings) -> SelfCheck:
    """Run the self-check on the toolchain that would be used, whichever kind it is; takes seconds.

    :raises ToolchainError: there is none.
    """
    toolchain = find_toolchain(settings)
    result = self_check(toolchain, settings.home / "toolchain-check", settings.logs_dir / "toolchain-check.log")
    marker = layout.read_marker(settings.toolchain_dir) if toolchain.kind == "private" else None
    if marker:
        layout.write_marker(settings.toolchain_dir, marker.model_copy(update={"self_check": result}))
    return result


def _none(settings: Settings, error: ToolchainError) -> ToolchainStatus:
    """No toolchain: what keeps from having one is part of the answer."""
    problems = [Problem(text=error.message, remedy=error.hint)]
    partial = layout.partial_dir(settings)
    if partial.exists():
        size = host.megabytes(tree_bytes(partial))
        problems.append(
            Problem(
                text=f"an installation was interrupted; {partial} holds {size} of it.",
                remedy=f"{INSTALL} to go on, or `tpudeploy toolchain remove` to give the space back.",
            )
        )
    if not settings.toolchain:
        problems.extend(_obstacles(settings))
    return ToolchainStatus(found=False, size_bytes=tree_bytes(partial), problems=problems)


def _obstacles(settings: Settings) -> list[Problem]:
    """What an installation would fail on, as far as can be told now."""
    return _failing(
        host.check_host,
        lambda: find_python(settings),
        check_compiler,
        lambda: host.check_disk(settings.home, host.bytes_needed(set())),
    )


def _failing(*tests: Callable[[], object]) -> list[Problem]:
    """What the tests that raise complain about."""
    problems = []
    for test in tests:
        try:
            test()
        except TpuDeployError as error:
            problems.append(Problem(text=error.message, remedy=error.hint))
    return problems


def _private(settings: Settings, toolchain: Toolchain) -> ToolchainStatus:
    folder = settings.toolchain_dir
    marker = layout.read_marker(folder)
    problems = _failing(lambda: check_kernels(toolchain))
    reason = why_not(toolchain.python)
    if reason:
        base = f" (made with {marker.base_python})" if marker else ""
        problems.append(
            Problem(text=f"its Python {reason}{base}.", remedy=f"{INSTALL_ANEW}, with a Python 3.10 that stays.")
        )
    absent = [name for name in ESSENTIAL if not (toolchain.package_dir / name).exists()]
    if absent:
        problems.append(Problem(text=f"files are missing: {', '.join(absent)}.", remedy=f"{INSTALL_ANEW}."))
    if marker and marker.pins != pins.digest():
        text = f"it was made by another version of tpudeploy; this one makes TPU-MLIR {pins.version()}."
        problems.append(Problem(text=text, remedy=f"{INSTALL} to bring it up to date."))
    if marker and not marker.self_check.passed:
        text = f"its self-check failed: {marker.self_check.detail}"
        problems.append(Problem(text=text, remedy=f"{INSTALL_ANEW}."))
    return ToolchainStatus(
        found=True,
        kind="private",
        version=toolchain.version,
        python=toolchain.python,
        folder=folder,
        size_bytes=tree_bytes(folder),
        self_check=marker.self_check if marker else None,
        problems=problems,
    )


def _missing_modules(toolchain: Toolchain) -> list[Problem]:
    """Packages that an existing TPU-MLIR's Python lacks, looked for in its folders without importing them."""
    prefix = toolchain.python.parent.parent
    places = [
        *prefix.glob("lib/python3*/*-packages"),
        *Path("/usr/local/lib").glob("python3.10/*-packages"),
        *Path("/usr/lib/python3").glob("dist-packages"),
        *Path.home().glob(".local/lib/python3.10/site-packages"),
    ]
    absent = [m.replace("/", ".") for m in MODULES if not any((p / m).is_dir() for p in places)]
    if not absent:
        return []
    return [
        Problem(
            text=f"{toolchain.python} lacks {', '.join(absent)}, which TPU-MLIR's ONNX front end needs.",
            remedy="Install them into that environment, or unset TPUDEPLOY_TOOLCHAIN and run "
            "`tpudeploy toolchain install`.",
        )
    ]
