"""Fetch the pinned wheels with pip, so that the user's index, mirror, proxy and certificates apply."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tpudeploy.compile.toolchain.model import InstallEvent
from tpudeploy.compile.toolchain.pins import Pin
from tpudeploy.compile.toolchain.process import start, watch
from tpudeploy.compile.toolchain.run import meaningful_lines
from tpudeploy.compile.toolchain.unpack import tree_bytes, verify
from tpudeploy.errors import FetchError, StorageError, ToolchainError, TpuDeployError

POLL_S = 0.2
DISK_FULL = re.compile(r"no space left on device|errno 28", re.IGNORECASE)
OTHER_VERSIONS = re.compile(r"from versions: \d", re.IGNORECASE)
NO_NETWORK = re.compile(
    r"from versions: none|name resolution|getaddrinfo|nodename nor servname|failed to establish|max retries"
    r"|timed out|unreachable|connection (refused|reset|aborted|broken)|proxyerror|certificate|sslerror"
    r"|retry\(total",
    re.IGNORECASE,
)
# --python, which makes another interpreter's pip serve this one, came with pip 22.3.
PIP_FOR_ANOTHER = (22, 3)


def fetch(
    pins: tuple[Pin, ...],
    python: Path,
    folder: Path,
    *,
    log: Path,
    offline: bool,
    progress: Callable[[InstallEvent], None],
) -> dict[str, Path]:
    """Bring the wheels into ``folder``; those that are there and whole are not fetched again.

    :param python: the Python 3.10 that they are for.
    :param log: gets pip's output.
    :param offline: let pip look only where no network is needed (``find-links`` of its configuration).
    :returns: the wheel of each project.
    :raises FetchError: network down, or an index without such a wheel; the last lines of pip are in the message.
    :raises StorageError: the disk is full.
    :raises ToolchainError: there is no pip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(pin.size_bytes for pin in pins)
    wheels = {pin.project: _whole(folder, pin) for pin in pins}
    missing = [pin for pin in pins if wheels[pin.project] is None]
    pip = pip_for(python, folder.parent / "pip") if missing else []
    done = total - sum(pin.size_bytes for pin in missing)
    for pin in missing:
        before = done

        def report(bytes_so_far: int, pin: Pin = pin, before: int = before) -> None:
            got = min(bytes_so_far, pin.size_bytes)
            progress(InstallEvent("download", f"downloading {pin.requirement}", before + got, total))

        wheels[pin.project] = _fetch_one(pin, pip, folder, log, offline, report)
        done += pin.size_bytes
    return {project: wheel for project, wheel in wheels.items() if wheel is not None}


def _whole(folder: Path, pin: Pin) -> Path | None:
    """The wheel of ``pin`` in ``folder`` if it is the published file; one that is not is removed."""
    for wheel in folder.glob(f"{pin.project}-{pin.version}-*.whl"):
        if verify(wheel, pin):
            return wheel
        wheel.unlink()
    return None


def pip_for(python: Path, spare: Path) -> list[str]:
    """A pip command that fetches for ``python``: its own, this interpreter's, or one made from ensurepip.

    :param spare: where to make an environment for ensurepip's pip.
    :raises ToolchainError: there is none of the three.
    """
    own = [str(python), "-m", "pip"]
    if _pip_version(own):
        return own
    ours = [sys.executable, "-m", "pip"]
    if _pip_version(ours) >= PIP_FOR_ANOTHER:
        return [*ours, "--python", str(python)]
    subprocess.run([str(python), "-m", "venv", str(spare)], capture_output=True, check=False)
    made = [str(spare / "bin" / "python"), "-m", "pip"]
    if _pip_version(made):
        return made
    raise ToolchainError(
        f"there is no pip: not with {python}, nor with {sys.executable}.",
        hint=f"Install one: `{python} -m ensurepip --user`, or your system's python3-pip package.",
    )


def _pip_version(pip: list[str]) -> tuple[int, ...]:
    """The version of a pip command, empty if it does not run."""
    try:
        done = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return ()
    match = re.match(r"pip (\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if done.returncode == 0 and match else ()


def _fetch_one(pin: Pin, pip: list[str], folder: Path, log: Path, offline: bool, report: Callable[[int], None]) -> Path:
    """Have pip download one wheel, and check that it is the published file."""
    temporary = folder.parent / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    command = [
        *[*pip, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input"],
        *["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(temporary / "dest")],
        *(["--no-index"] if offline else []),
        pin.requirement,
    ]
    # pip's own temporary folder is often too small for 300 MB, and here its growth shows the progress.
    env = {**os.environ, "TMPDIR": str(temporary), "PIP_REQUIRE_VIRTUALENV": "0"}
    log.parent.mkdir(parents=True, exist_ok=True)
    report(0)
    with log.open("ab") as file:
        begin = file.tell()
        process = start(command, output=file, env=env)
        code = watch(process, POLL_S, lambda: report(tree_bytes(temporary)))
    if code != 0:
        raise _explain(pin, log, begin, offline=offline)
    return _accept(pin, temporary / "dest", folder)


def _accept(pin: Pin, source: Path, folder: Path) -> Path:
    """Move the downloaded wheel into ``folder``, if it is the published file."""
    for wheel in source.glob("*.whl"):
        if verify(wheel, pin):
            return wheel.replace(folder / wheel.name)
    names = ", ".join(w.name for w in source.glob("*")) or "nothing"
    raise FetchError(
        f"the index gave {names} for {pin.requirement}, which is not the file that was published "
        f"({pin.size_bytes} bytes, SHA-256 {pin.sha256}).",
        hint="Check the index or mirror in pip's configuration (`pip config list`), and run the installation again.",
    )


def _explain(pin: Pin, log: Path, begin: int, *, offline: bool) -> TpuDeployError:
    """The error for a pip that failed."""
    lines = meaningful_lines(log, begin)
    text = "\n".join(lines)
    said = f" pip said, in {log}:\n{text}\n"
    if DISK_FULL.search(text):
        return StorageError(f"no space left while downloading {pin.requirement}.{said}", hint="Free some space.")
    if offline:
        hint = "tpudeploy is offline (TPUDEPLOY_OFFLINE): unset it, or point pip's find-links to a folder of wheels."
    elif OTHER_VERSIONS.search(text):
        hint = "The package index that pip is configured for does not have this version: see `pip config list`."
    elif NO_NETWORK.search(text):
        hint = (
            "Check the network, and which index pip is configured for (`pip config list`). Behind a proxy set "
            "HTTPS_PROXY; for a mirror set PIP_INDEX_URL. What was downloaded is kept: run "
            "`tpudeploy toolchain install` again to go on."
        )
    else:
        hint = "Run `tpudeploy toolchain install` again; what was downloaded is kept."
    return FetchError(f"cannot download {pin.requirement}.{said}", hint=hint)
