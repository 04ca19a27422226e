"""What a first token and a further one cost by the compiler's cycle model, from nets of full width made here.

    python scripts/bench_cycles.py --family chatglm3 glm4 --quant int8 int4
    python scripts/bench_cycles.py --family chatglm3 --quant int8 --vendor ENVIRONMENT

One layer and the ends of each model, random weights, through `tpudeploy compile`; every layer costs what the one does
(1e6 cycles = 1 ms). How they add up is told in docs/explanation/performance.md. ``--vendor`` compiles the same
checkpoint with the vendor's llm_convert.py and puts its nets beside ours; ENVIRONMENT is a Python environment that has
the published tpu_mlir with what it needs (torch, transformers, GNU parallel on PATH).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthetic_checkpoint import FAMILIES, write_checkpoint
from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.net import NetKind, Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.runtime.pass_plan import PassPlanner

CYCLES_A_MS = 1e6
PROMPTS = (16, 64, 128, 256, 384, 512)
TARGETS = {
    ("chatglm3", "int8"): {"first token 128": 0.16, "first token 512": 0.50, "tokens/s": 8.4},
    ("chatglm3", "int4"): {"tokens/s": 15.0},
    ("glm4", "int8"): {"tokens/s": 5.7},
    ("glm4", "int4"): {"tokens/s": 10.0},
}
"""Seconds at most, tokens a second at least."""
_TOTAL = re.compile(r"total_cycle:(\d+)")


@dataclass(frozen=True)
class Costs:
    """ms of every net of a model whose layers cost the same.

    :param blocks: one layer, by stage.
    :param embeddings: by number of tokens.
    :param heads: by number of tokens.
    """

    layers: int
    blocks: Mapping[Stage, float]
    embeddings: Mapping[int, float]
    heads: Mapping[int, float]

    def first_token_s(self, prompt: int) -> tuple[float, list[Stage]]:
        """Seconds to the logits after a prompt over an empty cache, and the passes that the engine would choose."""
        stages = sorted(self.blocks, key=lambda stage: (stage.new_tokens, stage.cache_length))
        planner = PassPlanner(stages, [round(self.blocks[stage] * CYCLES_A_MS) for stage in stages])
        passes = [stages[index] for index in planner.plan(0, prompt)]
        ms = sum(self.layers * self.blocks[step] + self.embeddings[step.new_tokens] for step in passes)
        return (ms + self.heads[1]) / 1e3, passes

    def tokens_per_s(self, context: int) -> float:
        """Tokens a second, one a pass, over a cache that holds ``context`` tokens."""
        able = [ms for stage, ms in self.blocks.items() if stage.new_tokens == 1 and stage.cache_length >= context]
        return 1e3 / (self.layers * min(able) + self.embeddings[1] + self.heads[1])


def compile_model(checkpoint: Path, options: argparse.Namespace, family: str, quant: str) -> Manifest:
    """Compile with the default nets of the sequence length; the manifest has the cycles."""
    command = [sys.executable, "-m", "tpudeploy", "compile", family, "--model-dir", str(checkpoint)]
    command += ["--quant", quant, "--seq-length", str(options.seq_length)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Manifest.model_validate_json((Path(done.stdout.strip()) / "manifest.json").read_text())


def costs_of(manifest: Manifest, layers: int) -> Costs:
    """The costs of a model of so many layers, from a bundle of one."""
    ms = {name: cycles / CYCLES_A_MS for name, cycles in manifest.compiler.cycles.items()}
    nets = manifest.nets.nets
    embeddings = [net for net in nets if net.kind in (NetKind.EMBEDDING, NetKind.EMBEDDING_ONE)]
    return Costs(
        layers=layers,
        blocks={net.stage: ms[net.name] for net in nets if net.kind.is_block},
        embeddings={net.stage.new_tokens: ms[net.name] for net in embeddings},
        heads={net.stage.new_tokens: ms[net.name] for net in nets if net.kind is NetKind.LM_HEAD},
    )


def vendor_cycles(environment: Path, checkpoint: Path, quant: str, seq_length: int, work: Path) -> dict[str, float]:
    """ms of each net that llm_convert.py makes of the checkpoint."""
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {
        "vocab_size": config["padded_vocab_size"],
        "num_key_value_heads": config["multi_query_group_num"],
        "head_dim": config["kv_channels"],
        "intermediate_size": config["ffn_hidden_size"],
        "rms_norm_eps": config["layernorm_epsilon"],
        "num_hidden_layers": config["num_layers"],
        "hidden_act": "silu",
        "max_position_embeddings": seq_length,
    }
    theirs = work / "theirs"
    theirs.mkdir()
    for path in checkpoint.iterdir():
        (theirs / path.name).symlink_to(path)
    (theirs / "config.json").unlink()
    (theirs / "config.json").write_text(json.dumps(config))
    half = "bf16" if config["torch_dtype"] == "bfloat16" else "f16"
    mode = {"int8": f"w8{half}", "int4": f"w4{half}"}.get(quant, quant)
    command = [str(environment / "bin/llm_convert.py"), "-m", str(theirs), "-s", str(seq_length), "-q", mode]
    command += ["-g", "64", "-c", "bm1684x", "--debug", "-o", str(work / "out")]
    search = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    log = work / "llm_convert.log"
    with log.open("wb") as stream:
        env = os.environ | {"PATH": search}
        done = subprocess.run(command, cwd=work, env=env, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise SystemExit(f"llm_convert.py failed with exit code {done.returncode}")
    profiles = {path.parent.name: path for path in (work / "out").rglob("compiler_profile_0.txt")}
    return {
        name: sum(map(int, _TOTAL.findall(path.read_text(errors="replace")))) / CYCLES_A_MS
        for name, path in profiles.items()
    }


def show(title: str, costs: Costs, quant: str, family: str) -> dict[str, float]:
    """Print one model's tables; the figures by name."""
    print(f"\n{title}: ms a net, {costs.layers} layers")
    for stage, ms in sorted(costs.blocks.items(), key=lambda item: (item[0].new_tokens, item[0].cache_length)):
        print(f"  layer {stage!s:10} {ms:8.3f}   {ms / stage.new_tokens * 1e3:8.1f} us a token")
    for what, table in (("embedding", costs.embeddings), ("lm_head", costs.heads)):
        for tokens, ms in sorted(table.items()):
            print(f"  {what} {tokens:<5} {ms:8.3f}")
    longest = max(stage.cache_length for stage in costs.blocks)
    figures = {}
    for prompt in (length for length in PROMPTS if length <= longest):
        seconds, passes = costs.first_token_s(prompt)
        figures[f"first token {prompt}"] = seconds
        print(f"  first token after {prompt:4} tokens: {seconds:6.3f} s   by {' + '.join(map(str, passes))}")
    figures["tokens/s"] = costs.tokens_per_s(min(512, longest) - 1)
    print(f"  tokens/s: {figures['tokens/s']:.2f}")
    for name, target in TARGETS.get((family, quant), {}).items():
        met = figures[name] >= target if name == "tokens/s" else figures[name] <= target
        print(f"  target {name}: {target}  {'met' if met else 'MISSED'}")
    return figures


def show_vendor(cycles: Mapping[str, float], layers: int) -> dict[str, float]:
    """Print the vendor's nets and sums."""
    print("\nllm_convert.py of the same checkpoint: ms a net")
    for name, ms in sorted(cycles.items()):
        print(f"  {name:24} {ms:8.3f}")
    head = cycles["lm_head"]
    figures = {
        "first token": (layers * cycles["block_0"] + cycles.get("embedding", 0.0) + head) / 1e3,
        "tokens/s": 1e3 / (layers * cycles["block_cache_0"] + cycles.get("embedding_cache", 0.0) + head),
    }
    print(f"  first token, any prompt: {figures['first token']:.3f} s")
    print(f"  tokens/s: {figures['tokens/s']:.2f}")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, add up, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=["chatglm3"])
    parser.add_argument("--quant", nargs="+", choices=["int8", "int4", "f16", "bf16"], default=["int8"])
    parser.add_argument("--seq-length", type=int, default=NetPlan().seq_length)
    parser.add_argument("--vendor", type=Path, metavar="ENVIRONMENT", help="also by llm_convert.py of this environment")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    told: dict[str, dict[str, dict[str, float]]] = {}
    for family in options.family:
        layers = int(str(FAMILIES[family]["num_layers"]))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "one_layer"
            write_checkpoint(checkpoint, family, layers=1)
            for quant in options.quant:
                costs = costs_of(compile_model(checkpoint, options, family, quant), layers)
                mine = show(f"{family} {quant}, sequence length {options.seq_length}", costs, quant, family)
                told[f"{family} {quant}"] = {"tpudeploy": mine}
                if options.vendor:
                    work = Path(folder) / quant
                    work.mkdir()
                    cycles = vendor_cycles(options.vendor.absolute(), checkpoint, quant, options.seq_length, work)
                    told[f"{family} {quant}"]["llm_convert"] = show_vendor(cycles, layers)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
