"""What the first token of each turn costs in a long conversation, and what it would cost without the KV prefix.

Usage, from the repository's root, with the package installed::

    python scripts/bench_conversation.py [--turns 20] [--seq-length 512] [--model chatglm3] [--quant int8]

The demo model of a family answers on the CPU, so tokens, reuse and trimming are real. For each turn the tokens that had
to be computed are put through the passes that the published model would take on the chip, and their modelled time is
printed; then the same for the whole prompt, as a runtime without prefix reuse would compute it.
"""

from __future__ import annotations

import argparse

from tpudeploy.compile.plan import model_patches
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.patch import apply_patches
from tpudeploy.contracts.quant import parse_quant_mode, resolve_quant
from tpudeploy.estimate.costs import net_costs
from tpudeploy.estimate.passes import Passes
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.plugins import PluginRegistry, registry
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.settings import load_settings

QUESTIONS = (
    "你好",
    "What is tpudeploy?",
    "请详细介绍一下你能做什么，并且举一个例子。",
    "Explain in a few sentences how a conversation is kept in memory, and what happens when it grows too long.",
    "继续",
)


def chip_passes(model: str, quant: str, seq_length: int, plugins: PluginRegistry) -> Passes:
    """The passes of the family's first published model on the chip, timed by the roofline."""
    adapter = plugins.model(model)
    config = adapter.variants()[0].config
    config = apply_patches(config, model_patches(adapter, config, seq_length, plugins))
    scheme = resolve_quant(parse_quant_mode(quant), adapter.half)
    nets = adapter.slices(config, NetPlan(seq_length=seq_length), scheme.activation)
    return Passes.of(nets, net_costs(nets, scheme))


def first_token_s(passes: Passes, cached: int, count: int) -> float:
    """Modelled seconds from the question to the first token."""
    stages = list(passes.plan(cached, count))
    return sum(passes.time(stage, rows=int(index + 1 == len(stages))).total_s for index, stage in enumerate(stages))


def main() -> int:
    """Print a line a turn, and sums; 1 where a turn whose history was kept computed the whole prompt again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--model", default="chatglm3")
    parser.add_argument("--quant", default="int8")
    options = parser.parse_args()
    plugins = registry()
    passes = chip_passes(options.model, options.quant, options.seq_length, plugins)
    request = LaunchRequest(
        model=f"{options.model}:demo", quant=options.quant, backend="cpu", seq_length=options.seq_length
    )
    print(f"{'turn':>4} {'prompt':>7} {'reused':>7} {'computed':>9} {'left out':>9} {'first token':>12} {'without':>9}")
    spent = whole = 0.0
    lost = False
    with open_target(request, load_settings(), plugins).load() as model:
        chat = model.conversation(options=GenerationOptions(max_new_tokens=options.max_new_tokens))
        for turn in range(options.turns):
            reply = chat.ask(QUESTIONS[turn % len(QUESTIONS)])
            for _ in reply:
                pass
            result = reply.result
            computed = result.prompt_tokens - result.reused_tokens
            lost |= turn > 0 and not reply.trimmed_turns and computed > result.prompt_tokens // 2
            now = first_token_s(passes, result.reused_tokens, computed)
            without = first_token_s(passes, 0, result.prompt_tokens)
            spent, whole = spent + now, whole + without
            print(
                f"{turn + 1:4} {result.prompt_tokens:7} {result.reused_tokens:7} {computed:9} {reply.trimmed_turns:9} "
                f"{now:10.3f} s {without:7.3f} s"
            )
    print(f"all  {spent:.2f} s instead of {whole:.2f} s ({spent / whole:.2f})")
    return int(lost)


if __name__ == "__main__":
    raise SystemExit(main())
