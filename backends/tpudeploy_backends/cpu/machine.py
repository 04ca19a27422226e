"""What this machine offers: processor cores that the process may use, and memory."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from tpudeploy.errors import UsageError

THREADS_VARIABLE = "TPUDEPLOY_CPU_THREADS"


_MOST_THREADS = 16
"""By default; one token is as fast as memory is, and more threads do not make that faster."""
_SMALL_BYTES = 4 << 20
"""Over fewer weights than these, waking a second thread takes longer than the work that it would do."""


def thread_count(weights_bytes: int) -> int:
    """How many threads a net computes with: ``TPUDEPLOY_CPU_THREADS``, or the physical cores that the process may use.

    :param weights_bytes: of one net.
    :raises UsageError: the variable is not a positive number.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return min(usable_cores(), _MOST_THREADS) if weights_bytes >= _SMALL_BYTES else 1
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{THREADS_VARIABLE} is {text!r}, which is no number of threads.")
    return int(text)


def usable_cores() -> int:
    """Physical cores, no more than the scheduler's mask and the container's quota allow."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = _physical_cores(allowed) or len(allowed)
    quota = _container_quota()
    return max(1, min(cores, quota) if quota else cores)


def _physical_cores(allowed: set[int], cpu_info: Path = Path("/proc/cpuinfo")) -> int:
    """Distinct cores among the allowed logical ones; 0 where the system does not say."""
    cores: set[tuple[str, str]] = set()
    try:
        text = cpu_info.read_text()
    except OSError:
        return 0
    for block in text.split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if "core id" in fields and fields.get("processor", "").isdecimal() and int(fields["processor"]) in allowed:
            cores.add((fields.get("physical id", ""), fields["core id"]))
    return len(cores)


def _container_quota(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that a control group allows, rounded up; 0 where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = cpu_max.read_text().split()
        if quota != "max":
            return -(-int(quota) // int(period))
    return 0


def processor_name(cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in cpu_info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes(mem_info: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Memory of the machine and how much of it is in use, None where the system does not tell."""
    fields: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in mem_info.read_text().splitlines():
            key, _, value = line.partition(":")
            number = value.split()[0] if value.split() else ""
            if number.isdecimal():
                fields[key] = int(number) * 1024
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    used = total - available if total is not None and available is not None else None
    return total, used
