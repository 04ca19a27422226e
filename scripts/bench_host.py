"""How much of a token's time the host takes: the real runtime over a device that does nothing.

Usage, from the repository's root, with the package installed::

    python scripts/bench_host.py [--tokens 200] [--seq-length 512,8192] [--flat]

Nets are not run. What is left is what the runtime adds to each token on any backend: choosing a pass, writing its
inputs, moving where present keys and values go, launching, reading and converting logits, sampling, and text. Lines
"libbmrt" go through the real binding of the vendor's library, with C functions behind it that do nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from idle_device import IdleBmrtSession, IdleSession
from tpudeploy.contracts.bundle import BundleFormat, CompilerInfo, Manifest
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import Split, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.quant import QuantMode, resolve_quant
from tpudeploy.launch.text import TextTools, load_text
from tpudeploy.plugins import registry
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.reply import Reply
from tpudeploy.runtime.sampling import SamplingOptions

TARGET_MS = 2.0
VERIFIED = 8
MODELS = {
    "ChatGLM3-6B": (28, 65024, DType.F16),
    "GLM-4-9B": (40, 151552, DType.BF16),
}
SAMPLING = {
    "greedy": SamplingOptions(),
    "top-p 0.8": SamplingOptions(temperature=0.8, top_p=0.8, seed=1),
    "top-k 50, top-p 0.8": SamplingOptions(temperature=0.8, top_k=50, top_p=0.8, seed=1),
    "all options": SamplingOptions(temperature=0.8, top_k=50, top_p=0.8, repetition_penalty=1.1, seed=1),
    "temperature only": SamplingOptions(temperature=0.8, seed=1),
}
TEXTS = {
    "prose and code": "冒泡排序：\n```cpp\nfor (int i = 0; i < n; ++i) { swap(a[i], a[j]); }\n```\nIn n² steps. 😀\n",
    "one line without end": "All of it is held back until it is known to be no tool's name. ",
}


@dataclass
class Table:
    """Prints what was timed, and remembers whether anything missed the target."""

    missed: bool = False

    def head(self, title: str) -> None:
        """Begin a part."""
        print(f"\n{title}")
        print(f"{'model':12} {'what':44} {'median ms':>10} {'p95 ms':>8} {'of target':>10}   (target {TARGET_MS} ms)")

    def add(self, model: str, what: str, times: Sequence[float]) -> None:
        """One line; times in milliseconds."""
        median, p95 = statistics.median(times), sorted(times)[int(len(times) * 0.95)]
        self.missed |= median >= TARGET_MS
        print(f"{model:12} {what:44} {median:10.3f} {p95:8.3f} {median / TARGET_MS:10.1%}", flush=True)


def full_config(name: str, seq_length: int) -> DecoderConfig:
    """The shapes of a model at full width."""
    layers, vocab_size, _ = MODELS[name]
    return DecoderConfig(
        num_layers=layers,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=2,
        head_dim=128,
        ffn_size=13696,
        vocab_size=vocab_size,
        seq_length=seq_length,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rotary_dim=64,
    )


def new_engine(
    name: str, seq_length: int, *, flat: bool = False, chips: int = 1, bmrt: bool = False, verify: bool = False
) -> Engine:
    """An engine over an idle device whose logits look like a language model's, or are flat."""
    activation, config = MODELS[name][2], full_config(name, seq_length)
    stages = (Stage(new_tokens=VERIFIED, cache_length=seq_length),) if verify else ()
    nets = plan_nets(config, NetPlan(seq_length=seq_length, verify=stages), activation)
    manifest = Manifest(
        model="idle",
        variant="",
        checkpoint_digest="",
        format=BundleFormat.BMODEL,
        quant=resolve_quant(QuantMode.INT8, activation),
        nets=split_nets(nets, chips, Split.TENSOR),
        net_files={},
        compiler=CompilerInfo(name="none", version="0"),
        tpudeploy_version="0",
        files=(),
    )
    logits = _logits(config.vocab_size, flat=flat)
    return Engine(IdleBmrtSession(manifest, logits) if bmrt else IdleSession(manifest, logits))


def _logits(vocab_size: int, *, flat: bool) -> Array:
    random = np.random.default_rng(0)
    logits: Array = random.normal(0, 2.5, vocab_size).astype(np.float32)
    if not flat:
        # A few tokens stand out, as in a language model's output; the other thousands share little.
        logits[random.integers(0, vocab_size, 20)] = np.linspace(10, 20, 20)
    return logits


def time_each(work: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each of ``count`` calls."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return times


def time_tokens(engine: Engine, sampling: SamplingOptions, tokens: int) -> list[float]:
    """Host milliseconds of each decoded token, at the far end of the cache."""
    prompt = [position % 1000 for position in range(engine.seq_length - tokens)]
    generation = generate(engine, prompt, GenerationOptions(sampling=sampling, drafter=None))
    next(generation)
    return time_each(lambda: next(generation), tokens - 1)


def time_verification(engine: Engine, count: int) -> list[float]:
    """Host milliseconds of a pass of several drafted tokens with the logits of each, then taken back."""
    prompt = [position % 1000 for position in range(engine.seq_length - VERIFIED)]
    engine.forward(prompt[engine.reuse(prompt) :], rows=0)

    def verify() -> None:
        logits = engine.forward(list(range(VERIFIED)), rows=VERIFIED)
        logits.argmax(axis=1)
        engine.cache.rollback(VERIFIED)

    return time_each(verify, count)


def bench_tokens(table: Table, seq_lengths: Sequence[int], tokens: int, *, flat: bool) -> None:
    """Everything from a token to the next but text."""
    table.head("One token: pass, launches, logits, sampling")
    for name in MODELS:
        for length in seq_lengths:
            engine = new_engine(name, length, flat=flat)
            for what, sampling in SAMPLING.items():
                table.add(name, f"{length} tokens, {what}", time_tokens(engine, sampling, tokens))
        length, greedy = seq_lengths[0], SamplingOptions()
        engine = new_engine(name, length, flat=flat, bmrt=True)
        table.add(name, f"{length} tokens, greedy, libbmrt", time_tokens(engine, greedy, tokens))
        for bmrt in (False, True):
            engine = new_engine(name, length, flat=flat, chips=2, bmrt=bmrt)
            what = f"{length} tokens, greedy, two chips{', libbmrt' if bmrt else ''}"
            table.add(name, what, time_tokens(engine, greedy, tokens))
    table.head(f"One pass of {VERIFIED} drafted tokens with the logits of each")
    for name in MODELS:
        for bmrt in (False, True):
            engine = new_engine(name, seq_lengths[0], verify=True, bmrt=bmrt)
            what = f"{seq_lengths[0]} tokens{', libbmrt' if bmrt else ''}"
            table.add(name, what, time_verification(engine, max(20, tokens // 4)))


def bench_text(table: Table, tokens: int) -> None:
    """From token ids to visible text, by the tokenizers that ship with the demo models; early and late in an answer."""
    table.head("Text of one token")
    for family, adapter in sorted(registry().models.items()):
        folder = next((variant.bundled for variant in adapter.variants() if variant.bundled is not None), None)
        if folder is None:
            continue
        tools = load_text(adapter, folder)
        for what, text in TEXTS.items():
            ids = answer_ids(tools, text, tokens)
            stream, parser = tools.tokenizer.stream(), tools.template.answer_stream()
            feed = iter(ids)
            times = time_each(lambda: parser.push(stream.push(next(feed))), len(ids))  # noqa: B023 - called here
            tenth = len(ids) // 10
            table.add(family, f"{what}, tokens 1 to {tenth}", times[:tenth])
            table.add(family, f"{what}, tokens {len(ids) - tenth} to {len(ids)}", times[-tenth:])


def answer_ids(tools: TextTools, text: str, count: int) -> list[int]:
    """A long answer: an empty first line where the text has lines, then the text again and again."""
    once = tools.tokenizer.encode(text)
    head = tools.tokenizer.encode("\n") if "\n" in text else []
    return (head + once * (count // len(once) + 1))[:count]


def bench_growth(tokens: int) -> None:
    """Memory that a long answer leaves behind, quarter by quarter of its tokens."""
    print(f"\nMemory of a reply of {tokens} tokens, in bytes a token, by quarters of it")
    for family, adapter in sorted(registry().models.items()):
        folder = next((variant.bundled for variant in adapter.variants() if variant.bundled is not None), None)
        if folder is None:
            continue
        tools = load_text(adapter, folder)
        engine = new_engine("GLM-4-9B", tokens + 1)
        reply = Reply(generate(engine, [5], GenerationOptions(max_new_tokens=tokens)), tools.tokenizer, tools.template)
        generation = reply._generation
        next(generation)
        tracemalloc.start()
        held, peaks = [tracemalloc.get_traced_memory()[0]], []
        for _ in range(4):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            for event in (next(generation) for _ in range((tokens - 2) // 4)):
                reply._shown.append(reply._parser.push(reply._tokens.push(event.token_id)))
            held.append(tracemalloc.get_traced_memory()[0])
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
        grown = [f"{(late - early) / (tokens // 4):8.1f}" for early, late in pairwise(held)]
        print(f"{family:12} kept {' '.join(grown)}   most at once, kB {' '.join(f'{p / 1e3:8.0f}' for p in peaks)}")


def main() -> int:
    """Print tables; 1 where a median misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="tokens to time in each case")
    parser.add_argument("--seq-length", default="512,8192", help="tokens that the cache holds, with commas")
    parser.add_argument(
        "--long-answer", type=int, default=4000, help="tokens of the answer whose text and memory count"
    )
    parser.add_argument("--flat", action="store_true", help="logits in which nothing stands out: top-p's worst case")
    options = parser.parse_args()
    table = Table()
    lengths = [int(length) for length in options.seq_length.split(",")]
    bench_tokens(table, lengths, options.tokens, flat=options.flat)
    bench_text(table, options.long_answer)
    bench_growth(options.long_answer)
    print(f"\n{'MISSED' if table.missed else 'all'} under {TARGET_MS} ms")
    return int(table.missed)


if __name__ == "__main__":
    sys.exit(main())
