"""Make, and remove, the private environment for TPU-MLIR.

Everything is prepared in a folder beside the final one and renamed into place when it works; the marker comes
last. An interrupted installation therefore leaves either the previous environment or none that counts, and what
was downloaded is kept for the next attempt.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tpudeploy.compile.toolchain import host, layout, pins
from tpudeploy.compile.toolchain.download import fetch
from tpudeploy.compile.toolchain.kernels import check_compiler
from tpudeploy.compile.toolchain.model import InstallEvent, SelfCheck, Toolchain
from tpudeploy.compile.toolchain.python310 import find_python
from tpudeploy.compile.toolchain.run import run_logged
from tpudeploy.compile.toolchain.selfcheck import self_check
from tpudeploy.compile.toolchain.unpack import arrange, tree_bytes, unpack, verify
from tpudeploy.errors import StorageError, ToolchainError
from tpudeploy.settings import Settings

Progress = Callable[[InstallEvent], None]


def silent(_event: InstallEvent) -> None:
    """Show no progress."""


def install(
    settings: Settings, *, python: Path | None = None, progress: Progress = silent, force: bool = False
) -> Toolchain:
    """Make the private environment, unless it is there and current.

    :param python: the Python 3.10 to make it with; found by itself if not given.
    :param progress: is told what happens.
    :param force: make it anew even if it is there.
    :returns: the toolchain, checked by compiling a tiny net and running it on the simulator.
    :raises ToolchainError: unsuitable system, no Python 3.10, no pip, no C compiler, or the self-check fails.
    :raises StorageError: no disk space, or a folder that cannot be written.
    :raises FetchError: a download failed; what is whole is kept for the next attempt.
    """
    host.check_host()
    with layout.locked(settings.home / "toolchain.lock", lambda: progress(_WAITING)):
        _tidy(settings)
        present = None if force else _current(settings)
        if present:
            progress(InstallEvent("done", f"TPU-MLIR {present.version} is installed in {settings.toolchain_dir}"))
            return present
        try:
            return _install(settings, python, progress)
        except OSError as error:
            raise StorageError(
                f"cannot install TPU-MLIR in {settings.home}: {error.strerror or error}.",
                hint="Free some space or choose another disk with TPUDEPLOY_HOME, and run it again.",
            ) from error


_WAITING = InstallEvent("wait", "another installation is running; waiting for it to end")


def _current(settings: Settings) -> Toolchain | None:
    """The environment that is there, if it is whole and made from this table of pins."""
    marker = layout.read_marker(settings.toolchain_dir)
    if not marker or marker.pins != pins.digest() or not marker.self_check.passed:
        return None
    toolchain = layout.private_toolchain(settings.toolchain_dir, marker.version)
    return toolchain if toolchain.python.exists() and toolchain.package_dir.is_dir() else None


def _install(settings: Settings, python: Path | None, progress: Progress) -> Toolchain:
    base = find_python(settings, python)
    check_compiler()
    progress(InstallEvent("python", f"using {base}"))
    partial = layout.partial_dir(settings)
    _check_space(partial)
    log = settings.logs_dir / "toolchain-install.log"
    wheels = fetch(pins.PINS, base, partial / "wheels", log=log, offline=settings.offline, progress=progress)
    environment = partial / "env"
    _build(base, environment, wheels, log, progress)
    made = layout.private_toolchain(environment, pins.version())
    _prefer_spare_libraries(made, partial, log)
    result = self_check(made, partial / "check", log, lambda m: progress(InstallEvent("self-check", m)))
    if not result.passed:
        raise ToolchainError(
            f"TPU-MLIR was installed, but does not work here: {result.detail}", hint=f"The whole log is {log}."
        )
    # The check left a link and a kernel that name the folder which is renamed now.
    arrange(made.package_dir)
    if made.kernel_cache is not None:
        layout.delete(made.kernel_cache)
    toolchain = _put_in_place(settings, base, result)
    progress(InstallEvent("done", f"TPU-MLIR {toolchain.version} is ready in {settings.toolchain_dir}"))
    return toolchain


def _check_space(partial: Path) -> None:
    wheels = partial / "wheels"
    present = {
        pin.project
        for pin in pins.PINS
        if any(verify(wheel, pin) for wheel in wheels.glob(f"{pin.project}-{pin.version}-*.whl"))
    }
    host.check_disk(partial.parent, host.bytes_needed(present))


def _build(base: Path, environment: Path, wheels: dict[str, Path], log: Path, progress: Progress) -> None:
    """Make the environment and unpack the wheels into it."""
    layout.delete(environment)
    # Without pip: nothing is ever added to this environment, and the wheels are unpacked here.
    command = [str(base), "-I", "-m", "venv", "--without-pip", str(environment)]
    run_logged(command, cwd=environment.parent, log=log, env=dict(os.environ))
    for script in (environment / "bin").glob("[aA]ctivate*"):
        script.unlink()  # they would name the folder that this environment has only until it is renamed
    site = environment / layout.SITE
    total, done = sum(pin.kept_bytes for pin in pins.PINS), 0
    for pin in pins.PINS:
        progress(InstallEvent("unpack", f"unpacking {pin.requirement}", done, total))
        before = done

        def wrote(count: int, pin: pins.Pin = pin) -> None:
            nonlocal done
            done += count
            progress(InstallEvent("unpack", f"unpacking {pin.requirement}", min(done, total), total))

        unpack(wheels[pin.project], pin, site, wrote)
        done = before + pin.kept_bytes
    arrange(site / "tpu_mlir")


def _prefer_spare_libraries(toolchain: Toolchain, work: Path, log: Path) -> None:
    """Where the system's C++ library is too old or absent, use the one that was set apart."""
    command = toolchain.command("tpuc-opt", "--version")
    done = subprocess.run(command, cwd=work, env=toolchain.environment(), capture_output=True, text=True, check=False)
    if done.returncode == 0 or not any(name in done.stderr for name in ("GLIBCXX_", "CXXABI_", *pins.SPARE)):
        return
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{done.stderr}\nusing the C++ library that TPU-MLIR brings\n")
    (toolchain.package_dir / "lib" / "use-spare").touch()


def _put_in_place(settings: Settings, base: Path, result: SelfCheck) -> Toolchain:
    """Rename the finished environment into place, then write its marker, then clear up."""
    target, partial = settings.toolchain_dir, layout.partial_dir(settings)
    if target.exists():
        target.rename(target.with_name(f"{target.name}.old-{os.getpid()}"))
    (partial / "env").rename(target)
    marker = layout.Marker(
        version=pins.version(),
        pins=pins.digest(),
        base_python=base,
        size_bytes=tree_bytes(target),
        self_check=result,
    )
    layout.write_marker(target, marker)
    layout.delete(partial)
    _tidy(settings)
    return layout.private_toolchain(target, marker.version)


def _tidy(settings: Settings) -> None:
    """Delete environments that were replaced."""
    for folder in layout.discarded_dirs(settings):
        layout.delete(folder)


def remove(settings: Settings) -> int:
    """Delete what ``install`` made, the simulator's copies and unfinished installations included.

    :returns: bytes freed; 0 if there was nothing.
    :raises StorageError: something cannot be deleted.
    """
    folders = [
        settings.toolchain_dir,
        layout.partial_dir(settings),
        layout.simulator_dir(settings),
        *layout.discarded_dirs(settings),
    ]
    if not any(folder.exists() for folder in folders):
        return 0
    with layout.locked(settings.home / "toolchain.lock", lambda: None):
        freed = tree_bytes(*folders)
        # The marker first: what an interrupted removal leaves does not count as an environment.
        (settings.toolchain_dir / layout.MARKER).unlink(missing_ok=True)
        for folder in folders:
            layout.delete(folder)
    return freed
