"""Measure compiling from outside: wall and CPU time, peak memory of all processes, peak disk; also of llm_convert.py.

One command of tpudeploy:

    python scripts/synthetic_checkpoint.py /tmp/wide --layers 2
    python scripts/bench_compile.py -- compile chatglm3 --model-dir /tmp/wide --quant int8

The vendor's llm_convert.py and tpudeploy on one synthetic full-width checkpoint, in turn, as often as asked:

    python scripts/bench_compile.py --layers 12 --vendor-python /opt/vendor/bin/python --rounds 2

The vendor's environment is a Python 3.10 with tpu_mlir, torch, transformers and all that they need; GNU parallel must
be on PATH. Without ``--vendor-python`` only tpudeploy runs. ``pair`` are two nets a layer, as the vendor makes them (a
prefill of the whole sequence, and decode); ``default`` is the net set that users get.

Memory is the sum of the private (unique) memory of the whole process tree, sampled; pages that processes share or that
merely cache a file are not counted twice.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from synthetic_checkpoint import write_checkpoint

SAMPLE_S = 1.0
SEQ_LENGTH = 512
GB = 1e9
CHECKPOINT_GB = (1.1, 0.41)
"""Of embedding and output head together, and of a layer, in float16."""
OURS_GB = (4.0, 0.6)
VENDOR_GB = (5.0, 4.0)
"""Peak disk, measured: what any number of layers takes, and what each adds."""
FOR_LLM_CONVERT = {
    "vocab_size": 65024,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 13696,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
}
"""What the vendor's tool looks for in config.json under other names than the family's own."""


def measure(command: list[str], environment: Mapping[str, str], folder: Path) -> dict[str, float]:
    """Run a command; figures in seconds and bytes. ``folder`` is where its files grow."""
    before, used = _disk_bytes(folder), resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, env=dict(environment), cwd=folder)
    peak_uss = peak_disk = 0
    while process.poll() is None:
        peak_uss = max(peak_uss, _memory_bytes(process.pid))
        peak_disk = max(peak_disk, _disk_bytes(folder) - before)
        time.sleep(SAMPLE_S)
    wall_s = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "exit_code": process.returncode,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime, 1),
        "peak_uss_bytes": peak_uss,
        "peak_disk_bytes": peak_disk,
        "final_disk_bytes": _disk_bytes(folder) - before,
        "bmodel_bytes": max((path.stat().st_size for path in folder.rglob("*.bmodel")), default=0),
    }


def _memory_bytes(pid: int) -> int:
    """Private memory of a process tree, summed by the kernel: reading every mapping would take a core of its own."""
    total = 0
    try:
        root = psutil.Process(pid)
        pids = [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return 0
    for each in pids:
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # it ended between listing and looking
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return total


def _disk_bytes(folder: Path) -> int:
    """What a folder's files take; those that vanish meanwhile, and whole folders that do, count as nothing."""
    total, seen = 0, set()
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(root, name))  # noqa: PTH118 - thousands of times a second
            except OSError:
                continue
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                total += stat.st_blocks * 512
    return total


def run_tpudeploy(arguments: list[str], home: Path) -> dict[str, float]:
    """``tpudeploy ARGUMENTS`` with ``home`` as its home."""
    environment = os.environ | {"TPUDEPLOY_HOME": str(home)}
    return measure([sys.executable, "-m", "tpudeploy", *arguments], environment, home)


def run_ours(checkpoint: Path, nets: str, work: Path, quant: str) -> dict[str, float]:
    """Compile the checkpoint in an empty home that shares this one's toolchain."""
    home = Path(tempfile.mkdtemp(prefix=f"ours-{nets}-", dir=work))
    own = Path(os.environ.get("TPUDEPLOY_HOME") or Path.home() / ".cache" / "tpudeploy")
    if (own / "toolchain").exists():
        (home / "toolchain").symlink_to((own / "toolchain").resolve())
    stages = ["--prefill", f"{SEQ_LENGTH}x{SEQ_LENGTH}", "--verify-nets", "none"] if nets == "pair" else []
    arguments = ["compile", "chatglm3", "--model-dir", str(checkpoint), "--quant", quant, "--seq-length"]
    try:
        return run_tpudeploy([*arguments, str(SEQ_LENGTH), *stages], home)
    finally:
        shutil.rmtree(home)


def run_vendor(python: Path, checkpoint: Path, work: Path, quant: str) -> dict[str, float]:
    """``llm_convert.py`` on the same weights, with the config.json that it wants."""
    folder = Path(tempfile.mkdtemp(prefix="vendor-", dir=work))
    copy = folder / "checkpoint"
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).symlink_to(path)
    config = json.loads((checkpoint / "config.json").read_text()) | FOR_LLM_CONVERT
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config, indent=1))
    tool = shutil.which("llm_convert.py", path=str(python.parent)) or "llm_convert.py"
    mode = {"int8": "w8f16", "int4": "w4f16", "f16": "f16"}[quant]
    command = [str(python), tool, "-m", str(copy), "-s", str(SEQ_LENGTH), "-q", mode, "-c", "bm1684x", "-o", "out"]
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    try:
        return measure(command, environment, folder)
    finally:
        shutil.rmtree(folder)


def compare(options: argparse.Namespace, work: Path) -> dict[str, list[dict[str, float]]]:
    """All runs, in turn, so that what else the machine does meets each."""
    checkpoint = options.checkpoint or work / f"chatglm3-{options.layers}"
    layers = options.layers or json.loads((checkpoint / "config.json").read_text())["num_layers"]
    written = 0.0 if checkpoint.exists() else CHECKPOINT_GB[0] + CHECKPOINT_GB[1] * layers
    each = VENDOR_GB if options.vendor_python else OURS_GB
    needed, free = written + each[0] + each[1] * layers, shutil.disk_usage(work).free / GB
    if free < needed:
        sys.exit(f"{layers} layers need about {needed:.0f} GB in {work}, where {free:.0f} GB are free: fewer --layers.")
    if not checkpoint.exists():
        write_checkpoint(checkpoint, "chatglm3", layers=layers)
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        if options.vendor_python:
            done = run_vendor(options.vendor_python.absolute(), checkpoint, work, options.quant)
            results.setdefault("llm_convert", []).append(done)
            show("llm_convert", done)
        for nets in options.nets.split(","):
            done = run_ours(checkpoint, nets, work, options.quant)
            results.setdefault(f"tpudeploy {nets}", []).append(done)
            show(f"tpudeploy {nets}", done)
    return results


def show(name: str, figures: Mapping[str, float]) -> None:
    """One run on a line."""
    sizes = ", ".join(
        f"{key.removesuffix('_bytes').replace('_', ' ')} {value / GB:.2f} GB"
        for key, value in figures.items()
        if key.endswith("_bytes")
    )
    print(
        f"{name}: exit {figures['exit_code']:.0f}, {figures['wall_s']} s, CPU {figures['cpu_s']} s, {sizes}", flush=True
    )


def main() -> int:
    """Parse, run, print; exit code of the last run of tpudeploy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="where a single command works; a temporary folder by default")
    parser.add_argument("--layers", type=int, help="compare on a synthetic checkpoint of so many layers")
    parser.add_argument("--checkpoint", type=Path, help="compare on this one; made by synthetic_checkpoint.py")
    parser.add_argument("--vendor-python", type=Path, help="the Python of an environment with llm_convert.py")
    parser.add_argument("--nets", default="pair,default", help="which of tpudeploy's net sets to compile")
    parser.add_argument("--quant", default="int8", choices=("int8", "int4", "f16"))
    parser.add_argument("--rounds", type=int, default=1, help="how often, one after the other")
    parser.add_argument("--work", type=Path, help="where a comparison works; a temporary folder by default")
    parser.add_argument("arguments", nargs="*", help="what to run, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        if options.layers or options.checkpoint:
            results = compare(options, Path(temporary))
            print(json.dumps(results, indent=1))
            return int(max(run["exit_code"] for runs in results.values() for run in runs))
        figures = run_tpudeploy(options.arguments, options.home or Path(temporary))
    print(json.dumps(figures, indent=1))
    show("tpudeploy", figures)
    return int(figures["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
