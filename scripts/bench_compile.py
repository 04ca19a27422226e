"""Measure a command of tpudeploy from outside: wall time, peak memory of all its processes, peak disk of its home.

    python scripts/synthetic_checkpoint.py /tmp/wide --layers 2
    python scripts/bench_compile.py -- compile chatglm3 --model-dir /tmp/wide --quant int8 --format bmodel

Memory is the sum of the private (unique) memory of the whole process tree, sampled; pages that processes share or that
merely cache a file are not counted twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SAMPLE_S = 0.2


def measure(arguments: list[str], home: Path) -> dict[str, float]:
    """Run ``tpudeploy ARGUMENTS`` with ``home`` as its home; figures in seconds and bytes."""
    import os

    environment = os.environ | {"TPUDEPLOY_HOME": str(home)}
    before = _disk_bytes(home)
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "tpudeploy", *arguments], env=environment)
    peak_rss = peak_uss = peak_disk = 0
    while process.poll() is None:
        rss, uss = _memory_bytes(process.pid)
        peak_rss, peak_uss = max(peak_rss, rss), max(peak_uss, uss)
        peak_disk = max(peak_disk, _disk_bytes(home) - before)
        time.sleep(SAMPLE_S)
    return {
        "exit_code": process.returncode,
        "wall_s": round(time.monotonic() - start, 1),
        "peak_rss_bytes": peak_rss,
        "peak_uss_bytes": peak_uss,
        "peak_disk_bytes": peak_disk,
        "final_disk_bytes": _disk_bytes(home) - before,
    }


def _memory_bytes(pid: int) -> tuple[int, int]:
    rss = uss = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            info = process.memory_full_info()
            rss, uss = rss + info.rss, uss + info.uss
    except psutil.Error:
        pass  # a process ended between listing and looking
    return rss, uss


def _disk_bytes(folder: Path) -> int:
    total, seen = 0, set()
    for path in folder.rglob("*"):
        try:
            stat = path.lstat()
        except OSError:
            continue
        if stat.st_ino not in seen:
            seen.add(stat.st_ino)
            total += stat.st_blocks * 512
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="where tpudeploy works; a temporary folder by default")
    parser.add_argument("arguments", nargs="+", help="what to run, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(options.arguments, options.home or Path(temporary))
    print(json.dumps(figures, indent=1))
    for name, value in figures.items():
        if name.endswith("_bytes"):
            print(f"{name:20} {value / 1e9:8.2f} GB")
    sys.exit(int(figures["exit_code"]))
