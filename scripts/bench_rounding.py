"""How far verify nets and decode nets round apart: on the simulated chip, or in an emulation of 16-bit rounding.

    python scripts/bench_rounding.py chip --layers 8 --quant bf16     # needs the toolchain; minutes
    python scripts/bench_rounding.py emulate --layers 2 8 28 40       # any width, any number of positions

A decoder with random weights reads random tokens. Logits of the same positions are computed in four ways: by decode
passes alone (what an answer without drafts is chosen from), by a verify pass over the same cache, by a decode pass over
a cache that verify passes have written, and by a verify pass over that. The table has the change of the lead of the
best logit over each of the next 15, as a share of the best logit.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from rounding_emulation import Emulation
from synthetic_checkpoint import write_narrow_checkpoint
from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, plan_build
from tpudeploy.compile.source import open_source, parse_model
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.settings import Settings, load_settings

RIVALS = 15
WIDTH = 16
PROMPT = 8
WAYS = ("verify pass, same cache", "decode pass, verified cache", "verify pass, verified cache")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["chip", "emulate"])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 28])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=320)
    parser.add_argument("--quant", default="int8", help="int8: F16 activations; bf16")
    parser.add_argument("--positions", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="keep the logits in this folder")
    options = parser.parse_args()
    print(f"{'layers':>6}  {'way':28} {'rms':>8} {'99 %':>8} {'max':>8}  x sqrt(layers) x unit: rms, max")
    for layers in options.layers:
        rows = _chip(layers, options) if options.what == "chip" else _emulated(layers, options)
        if options.save is not None:
            np.savez(options.save / f"{options.what}-{options.quant}-{layers}-{options.hidden}.npz", *rows)
        for way, other in zip(WAYS, rows[1:], strict=True):
            print(_line(layers, way, rows[0], other, options.quant), flush=True)


def lead_changes(plain: Array, other: Array) -> Array:
    """(positions, vocab) twice, NaN where not computed -> (n, RIVALS) changes of leads, as shares of the best logit."""
    known = ~np.isnan(other[:, 0])
    plain, other = plain[known], other[known]
    top = np.argsort(-plain, axis=1, kind="stable")[:, : RIVALS + 1]
    before, after = (np.take_along_axis(rows, top, axis=1) for rows in (plain, other))
    change = (after[:, :1] - after[:, 1:]) - (before[:, :1] - before[:, 1:])
    shares: Array = np.abs(change) / np.maximum(1, np.abs(before[:, :1]))
    return shares


def _line(layers: int, way: str, plain: Array, other: Array, quant: str) -> str:
    shares = lead_changes(plain, other)
    rms, most = float(np.sqrt(np.mean(shares**2))), float(shares.max())
    unit = (2**-8 if quant == "bf16" else 2**-11) * layers**0.5
    return (
        f"{layers:6}  {way:28} {rms:8.5f} {np.quantile(shares, 0.99):8.5f} {most:8.5f}  "
        f"{rms / unit:5.2f} {most / unit:5.2f}   ({shares.shape[0]} positions)"
    )


def _emulated(layers: int, options: argparse.Namespace) -> tuple[Array, ...]:
    dtype = torch.bfloat16 if options.quant == "bf16" else torch.float16
    emulation = Emulation(layers, options.hidden, options.vocab, dtype, seed=options.seed)
    ids = np.random.default_rng(options.seed).integers(0, options.vocab, options.positions)
    return emulation.four_ways(torch.from_numpy(ids))


def _chip(layers: int, options: argparse.Namespace) -> tuple[Array, ...]:
    ids = [int(token) for token in np.random.default_rng(options.seed).integers(0, options.vocab, 64)]
    with tempfile.TemporaryDirectory() as folder:
        home = Settings(home=Path(folder) / "home", toolchain=load_settings().toolchain)
        if home.toolchain is None:
            home.home.mkdir()
            (home.home / "toolchain").symlink_to(load_settings().toolchain_dir)
        write_narrow_checkpoint(Path(folder) / "model", layers, options.hidden, options.vocab, seed=options.seed)
        adapter, variant = parse_model("chatglm3", registry())
        source = open_source(adapter, variant, home, model_dir=Path(folder) / "model")
        stage = Stage(new_tokens=WIDTH, cache_length=64)
        nets = NetPlan(seq_length=64, prefill=(stage,), decode_cache_lengths=(64,), verify=(stage,))
        build = BuildOptions(quant=QuantMode(options.quant), format=BundleFormat.BMODEL, nets=nets)
        bundle = open_bundle(build_bundle(plan_build(source, build, registry()), home).folder)
        with open_engine(bundle, registry().backend("simulator")) as engine:
            return _measure(engine, ids, options)


def _measure(engine: Engine, ids: list[int], options: argparse.Namespace) -> tuple[Array, ...]:
    stop = PROMPT + options.positions
    plain, same, cached, both = (np.full((stop, options.vocab), np.nan, dtype=np.float32) for _ in range(4))
    engine.forward(ids[:PROMPT], rows=0)
    for place in range(PROMPT, stop):
        if place % 4 == 0:
            same[place] = engine.verify(ids[place : place + WIDTH])[0]
        plain[place] = engine.forward([ids[place]])[0]
    engine.reuse(ids[: PROMPT + 1])
    for start in range(PROMPT, stop, WIDTH):
        rows = engine.verify(ids[start : min(start + WIDTH, stop)])
        both[start : start + len(rows)] = rows
        if start > PROMPT:
            for place in range(start, min(start + WIDTH // 2, stop)):
                cached[place] = engine.forward([ids[place]])[0]
            engine.reuse(ids[: start + 1])
            engine.verify(ids[start : min(start + WIDTH, stop)])
        engine.accept(ids[start : min(start + WIDTH, stop)])
    return tuple(rows[PROMPT:] for rows in (plain, same, cached, both))


if __name__ == "__main__":
    main()
