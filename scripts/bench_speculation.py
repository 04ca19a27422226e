"""Tokens a pass and the modelled speed-up of speculation, on the dialogues of a demo model.

Usage, from the repository's root, with the package's ``export`` extra installed::

    python scripts/bench_speculation.py                          # ChatGLM3-6B in INT8, by its measured cycles
    python scripts/bench_speculation.py --cost int4 --family glm4
    python scripts/bench_speculation.py --cycles FOLDER          # by the cycles in a compiled bundle's manifest

The demo runs on the CPU, so that the answers are real; what a pass costs is that of a full-width model on the chip.
Dialogues whose answers repeat their input are counted apart from the others. Only passes after the first token count:
prefill is the same with and without drafts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, plan_build
from tpudeploy.compile.source import open_source, parse_model
from tpudeploy.contracts.backend import Session
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.chat import Message
from tpudeploy.contracts.drafter import Drafter
from tpudeploy.contracts.net import NetKind, Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, GenerationResult, generate
from tpudeploy.runtime.pass_cycles import stage_cycles
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.settings import Settings

GROUNDED = ("summarize", "quote", "list-zh", "list-en", "repeat", "edit-code", "annotate", "fix-code", "show-function")
"""Names of dialogues whose answers repeat long stretches of the input begin so."""
LAYERS = 28


@dataclass(frozen=True)
class Cost:
    """What passes take, in milliseconds."""

    decode_ms: float
    verify_ms: float

    @property
    def extra(self) -> float:
        """Of a verify pass, in decode passes."""
        return self.verify_ms / self.decode_ms - 1


COSTS = {
    "int8": Cost(LAYERS * 4.015 + 5.173, LAYERS * 4.337 + 5.228),
    "int4": Cost(LAYERS * 2.133 + 5.173, LAYERS * 2.463 + 5.228),
}
"""ChatGLM3-6B, sequence length 512, 16 tokens a verify pass: docs/explanation/performance.md."""


class PricedEngine(Engine):
    """An engine that is told what a verify pass costs."""

    def __init__(self, session: Session, cost: Cost) -> None:
        super().__init__(session)
        self._cost = cost

    def verify_extra(self) -> float:
        """See :class:`TokenEngine`."""
        return self._cost.extra


@dataclass
class Sum:
    """Sums over answers."""

    name: str
    tokens: int = 0
    passes: int = 0
    verify_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    recomputed: int = 0
    plain_ms: float = 0.0
    drafted_ms: float = 0.0

    def add(self, result: GenerationResult, cost: Cost) -> None:
        """Add an answer."""
        counts = result.drafts
        tokens = round(result.tokens_per_pass * counts.passes)
        self.tokens += tokens
        for name in ("passes", "verify_passes", "drafted", "accepted", "recomputed"):
            setattr(self, name, getattr(self, name) + getattr(counts, name))
        self.plain_ms += tokens * cost.decode_ms
        self.drafted_ms += (counts.passes - counts.verify_passes) * cost.decode_ms
        self.drafted_ms += counts.verify_passes * cost.verify_ms

    def as_dict(self) -> dict[str, float | str]:
        """For JSON and tables."""
        return {
            **vars(self),
            "tokens_per_pass": self.tokens / max(self.passes, 1),
            "speed_up": self.plain_ms / self.drafted_ms if self.drafted_ms else 1.0,
        }


def main() -> int:
    """Run every dialogue; return 1 where an answer is not the same without drafts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="chatglm3", help="whose demo")
    parser.add_argument("--quant", default="int8", help="quantization mode of the demo")
    parser.add_argument("--cost", choices=COSTS, default="int8", help="which measured cycles to count by")
    parser.add_argument("--cycles", type=Path, help="count by the cycles in this bundle's manifest")
    parser.add_argument("--decode-ms", type=float, help="count by this; with --verify-ms")
    parser.add_argument("--verify-ms", type=float)
    parser.add_argument("--width", type=int, default=16, help="tokens of a verify pass")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cost = _cost(options)
    with tempfile.TemporaryDirectory() as home:
        rows, same = _run(options, cost, Settings(home=Path(home)))
    if options.json:
        print(json.dumps({"cost": {**vars(cost), "extra": cost.extra}, "rows": [row.as_dict() for row in rows]}))
    else:
        print(f"decode pass {cost.decode_ms:.1f} ms, verify pass {cost.verify_ms:.1f} ms ({cost.extra:+.1%})")
        for row in rows:
            print(_line(row))
    return 0 if same else 1


def _cost(options: argparse.Namespace) -> Cost:
    if options.decode_ms and options.verify_ms:
        return Cost(options.decode_ms, options.verify_ms)
    if options.cycles is None:
        return COSTS[options.cost]
    manifest = open_bundle(options.cycles).manifest
    stages = [next(iter(manifest.nets.stages(kind))) for kind in (NetKind.DECODE, NetKind.VERIFY)]
    decode, verify = (stage_cycles(manifest, stage) for stage in stages)
    if not decode or not verify:
        sys.exit("this bundle's manifest does not tell the cycles of its nets.")
    return Cost(decode / 1e6, verify / 1e6)


def _run(options: argparse.Namespace, cost: Cost, home: Settings) -> tuple[list[Sum], bool]:
    adapter, variant = parse_model(f"{options.family}:demo", registry())
    plan = NetPlan(seq_length=1024, verify=(Stage(new_tokens=options.width, cache_length=1024),))
    build = BuildOptions(quant=QuantMode(options.quant), format=BundleFormat.ONNX, nets=plan)
    bundle = open_bundle(build_bundle(plan_build(open_source(adapter, variant, home), build, registry()), home).folder)
    backend = registry().backend("cpu")
    session = backend.open(bundle.folder, bundle.manifest, devices=backend.default_devices(1))
    template = adapter.chat_template(adapter.load_tokenizer(bundle.tokenizer_folder, bundle.manifest.nets.config))
    assert variant.bundled is not None
    rows = [Sum("grounded"), Sum("ordinary")]
    single: list[Sum] = []
    same = True
    with PricedEngine(session, cost) as engine:
        stops = frozenset(bundle.manifest.stop_ids)
        for dialogue in json.loads((variant.bundled.parent / "dialogues.json").read_text(encoding="utf-8")):
            grounded = dialogue["name"].startswith(GROUNDED)
            messages = [Message.model_validate(item) for item in dialogue["messages"]]
            for index, message in enumerate(messages):
                if message.role != "assistant" or (grounded and index < len(messages) - 1):
                    continue  # of a grounded dialogue, the answer that repeats is the last
                prompt = template.encode(messages[:index])
                plain, drafted = (_answer(engine, prompt, stops, by) for by in (None, PromptLookup()))
                same &= plain.token_ids == drafted.token_ids
                rows[0 if grounded else 1].add(drafted, cost)
                if grounded:
                    single.append(Sum(dialogue["name"]))
                    single[-1].add(drafted, cost)
    return [*single, *rows], same


def _answer(engine: Engine, prompt: Sequence[int], stops: frozenset[int], drafter: Drafter | None) -> GenerationResult:
    engine.forget()
    generation = generate(engine, prompt, GenerationOptions(stop_ids=stops, drafter=drafter))
    for _ in generation:
        pass
    return generation.result


def _line(row: Sum) -> str:
    values = row.as_dict()
    return (
        f"{row.name:18} {row.tokens:5} tokens in {row.passes:5} passes ({row.verify_passes:4} verify): "
        f"{values['tokens_per_pass']:.2f} tokens a pass, {row.accepted}/{row.drafted} drafted tokens right, "
        f"{row.recomputed} recomputed; speed-up {values['speed_up']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
