"""What turns of several conversations on one device cost, with and without keeping their prefixes on the host.

Usage, from the repository's root, with the package installed::

    python scripts/bench_sessions.py [--sessions 3] [--turns 5] [--seq-length 1024] [--model chatglm3] [--quant int8]

The demo model of a family answers on the CPU, so that tokens, reuse and times of this machine are real. The tokens that
each turn has to compute are also put through the passes that the published model would take on the chip, as
``bench_conversation.py`` does. Then the host's part of the copies is timed at full width, over a device that does
nothing but hold memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field

from bench_conversation import QUESTIONS, chip_passes, first_token_s
from bench_host import MODELS, new_engine
from tpudeploy.estimate.passes import Passes
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.plugins import registry
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.runtime.kv_rows import Piece, all_finite, row_bytes
from tpudeploy.runtime.prefix_store import PrefixStore
from tpudeploy.settings import load_settings


@dataclass
class Figures:
    """Sums over all turns of all conversations.

    :param first_token_s: of each turn, on this machine.
    """

    prompt_tokens: int = 0
    computed: int = 0
    modelled_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


def take_turns(model: LoadedModel, passes: Passes, options: argparse.Namespace) -> Figures:
    """Every conversation says something, then every one again, and so on."""
    figures = Figures()
    generation = GenerationOptions(max_new_tokens=options.max_new_tokens)
    chats = [model.conversation(system=options.system, options=generation) for _ in range(options.sessions)]
    for turn in range(options.turns):
        for number, chat in enumerate(chats):
            reply = chat.ask(f"{QUESTIONS[(turn + number) % len(QUESTIONS)]} {number}")
            figures.answers.append("".join(reply))
            result = reply.result
            computed = result.prompt_tokens - result.reused_tokens
            figures.prompt_tokens += result.prompt_tokens
            figures.computed += computed
            figures.modelled_s += first_token_s(passes, result.reused_tokens, computed)
            figures.first_token_s.append(result.first_token_s or 0.0)
    return figures


def show(what: str, figures: Figures) -> None:
    """One line."""
    median = statistics.median(figures.first_token_s)
    print(
        f"{what:14} {figures.prompt_tokens:8} {figures.computed:9} {median * 1e3:11.1f} ms "
        f"{max(figures.first_token_s) * 1e3:8.1f} ms {figures.modelled_s:9.3f} s"
    )


def bench_copies(tokens: int) -> None:
    """The host's part of a copy: memory that a device's driver would fill or read."""
    print(f"\nCopy of {tokens} tokens at full width, host's part")
    for name in MODELS:
        cache = new_engine(name, tokens).cache
        cache.extend(range(tokens))
        times: dict[str, list[float]] = {"save": [], "look for NaN": [], "restore": []}
        for _ in range(9):
            state = cache.state
            started = time.perf_counter()
            rows = cache.read_rows(0)
            times["save"].append(time.perf_counter() - started)
            started = time.perf_counter()
            all_finite(rows, cache.dtype)
            times["look for NaN"].append(time.perf_counter() - started)
            started = time.perf_counter()
            cache.restore(state, [Piece(0, rows)])
            times["restore"].append(time.perf_counter() - started)
        medians = ", ".join(f"{what} {statistics.median(values) * 1e3:.1f} ms" for what, values in times.items())
        print(f"{name:14} {row_bytes(rows) / 1e6:6.1f} MB: {medians}")


def main() -> int:
    """Print both ways and what the store did; 1 where an answer differs, or nothing was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seq-length", type=int, default=1024)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--system", default="You are a helpful assistant. Answer in the language of the question.")
    parser.add_argument("--model", default="chatglm3")
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--limit-mb", type=float, default=None, help="memory of the store; default: as the runtime's")
    options = parser.parse_args()
    plugins = registry()
    passes = chip_passes(options.model, options.quant, options.seq_length, plugins)
    request = LaunchRequest(
        model=f"{options.model}:demo", quant=options.quant, backend="cpu", seq_length=options.seq_length
    )
    store = PrefixStore(None if options.limit_mb is None else int(options.limit_mb * 1e6))
    found = {}
    print(f"{options.sessions} conversations, {options.turns} turns each, by turns")
    print(f"{'':14} {'prompts':>8} {'computed':>9} {'first token':>14} {'largest':>11} {'modelled':>11}")
    for what, kept in (("without store", None), ("with store", store)):
        with open_target(request, load_settings(), plugins).load() as model:
            model.engine.keep_prefixes(kept)
            found[what] = take_turns(model, passes, options)
        show(what, found[what])
    one, other = found.values()
    counts = store.counts
    print(
        f"store: {counts.hits} of {counts.lookups} lookups restored {counts.restored_tokens} tokens; "
        f"{counts.saved_tokens} saved, {counts.evicted_tokens} evicted, {counts.refused} refused; "
        f"{counts.prefixes} prefixes in {counts.bytes / 1e6:.1f} of {counts.limit_bytes / 1e6:.0f} MB"
    )
    print(
        f"computed {other.computed / one.computed:.2f}, modelled time {other.modelled_s / one.modelled_s:.2f} of before"
    )
    if one.answers != other.answers:
        print("ANSWERS DIFFER")
    bench_copies(512)
    return int(one.answers != other.answers or other.computed >= one.computed)


if __name__ == "__main__":
    sys.exit(main())
