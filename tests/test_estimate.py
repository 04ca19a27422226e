"""The model of a chip: the passes that the engine takes, their nets' times added up, and what follows from that."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_session import TorchSession, make_manifest, random_decoder, tiny_config
from tpudeploy.compile.plan import model_patches
from tpudeploy.contracts.bundle import CompilerInfo, NetProfile
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind, NetSet, Split, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.patch import apply_patches
from tpudeploy.contracts.quant import QuantMode, QuantScheme, resolve_quant
from tpudeploy.errors import SequenceTooLongError, UsageError
from tpudeploy.estimate.bars import Bar, draw_bars
from tpudeploy.estimate.chart import draw_chart
from tpudeploy.estimate.chip import BM1684X
from tpudeploy.estimate.costs import Source, net_costs
from tpudeploy.estimate.model import estimate
from tpudeploy.estimate.passes import Passes, Times
from tpudeploy.estimate.report import Estimate, EstimateOptions
from tpudeploy.estimate.work import net_work
from tpudeploy.launch.requirement import model_requirement
from tpudeploy.plugins import registry
from tpudeploy.runtime.engine import Engine

torch.set_num_threads(1)
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "estimate_tables.py"
SEQ = 320
MODES = [QuantMode.F16, QuantMode.INT8, QuantMode.INT4]


def stages(*pairs: tuple[int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(new_tokens=new, cache_length=cache) for new, cache in pairs)


PLAIN = NetPlan(prefill=stages((128, 512)), verify=())
CHECKING = NetPlan(prefill=stages((128, 512)), verify=stages((8, 512)))


def wide(
    model: str = "chatglm3",
    mode: QuantMode = QuantMode.INT8,
    plan: NetPlan | None = None,
    *,
    chips: int = 1,
    split: Split = Split.TENSOR,
) -> tuple[NetSet, QuantScheme]:
    """The published model at full width, as it would be compiled."""
    adapter = registry().model(model)
    config = adapter.variants()[0].config
    plan = plan or PLAIN
    patched = apply_patches(config, model_patches(adapter, config, plan.seq_length, registry()))
    scheme = resolve_quant(mode, adapter.half)
    return split_nets(adapter.slices(patched, plan, scheme.activation), chips, split), scheme


def of(nets: NetSet, scheme: QuantScheme, compiler: CompilerInfo | None = None, **options: object) -> Estimate:
    return estimate("model", nets, scheme, EstimateOptions.model_validate(options), compiler=compiler)


def test_the_tables_of_the_docs_are_what_the_model_says() -> None:
    """And the roofline is within ten percent of the compiler's cycles in every row."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


MANY = NetPlan(
    seq_length=SEQ,
    prefill=stages((32, 0), (SEQ, 0), (16, 64), (16, SEQ), (64, SEQ), (2, 40)),
    decode_cache_lengths=(32, 96, SEQ),
    verify=stages((4, SEQ), (8, 64)),
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Of a bundle that tells its cycles, which decide over the passes of both."""
    decoder = random_decoder(tiny_config(seq_length=SEQ))
    nets = plan_nets(decoder.config, MANY, DType.F32)
    cycles = {net.name: 100_000 + 977 * net.stage.new_tokens + 89 * net.stage.cache_length for net in nets.nets}
    compiler = CompilerInfo(name="torch", version="0", cycles=cycles)
    return Engine(TorchSession(make_manifest(nets).model_copy(update={"compiler": compiler}), decoder))


@settings(max_examples=15, deadline=None)
@given(cached=st.integers(0, SEQ - 1), data=st.data())
def test_the_nets_that_are_counted_are_those_that_the_engine_launches(
    engine: Engine, cached: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, SEQ - cached))
    session = engine.session
    assert isinstance(session, TorchSession)
    engine.forget()
    if cached:
        engine.forward([1] * cached, rows=0)
    session.launched.clear()
    engine.forward([2] * count)
    scheme = resolve_quant(QuantMode.INT8, DType.F16)
    passes = Passes.of(engine.nets, net_costs(engine.nets, scheme, session.manifest.compiler))
    taken = list(passes.plan(cached, count))
    counted = [passes.launched(stage, rows=int(stage is taken[-1])) for stage in taken[:-1]]
    counted.append(passes.launched(taken[-1], rows=1))
    without_heads = [net for nets in counted[:-1] for net in nets if net.kind is not NetKind.LM_HEAD]
    assert session.launched == [net.name for net in (*without_heads, *counted[-1])]


def test_a_bundle_is_as_fast_as_its_cycles_say() -> None:
    nets, scheme = wide(plan=CHECKING)
    each = {
        NetKind.EMBEDDING: 20_000,
        NetKind.EMBEDDING_ONE: 100,
        NetKind.PREFILL: 5_244_282,
        NetKind.DECODE: 4_015_141,
        NetKind.VERIFY: 4_439_000,
        NetKind.LM_HEAD: 5_172_632,
    }
    cycles = {net.name: each[net.kind] for net in nets.nets}
    found = of(nets, scheme, CompilerInfo(name="tpu-mlir", version="1", cycles=cycles), host_s=0.0, prompts=(128,))
    assert found.source is Source.CYCLES
    assert found.compiler == "tpu-mlir 1"
    assert found.tokens_per_s == pytest.approx(1e9 / (28 * 4_015_141 + 5_172_632 + 100))
    assert found.first_token_s == pytest.approx((28 * 5_244_282 + 5_172_632 + 20_000) / 1e9)
    (check,) = found.speculation
    assert check.pass_s == pytest.approx((28 * 4_439_000 + 5_172_632 + 20_000) / 1e9)
    assert check.cost == pytest.approx(check.pass_s * found.tokens_per_s)


def test_a_profile_tells_both_engines_and_the_traffic() -> None:
    nets, scheme = wide()
    profile = NetProfile(
        total_cycles=5_000_000,
        dma_cycles=4_000_000,
        arithmetic_cycles=3_000_000,
        read_bytes=100,
        written_bytes=20,
        copied_bytes=3,
        operations=7,
    )
    compiler = CompilerInfo(name="tpu-mlir", version="1", profiles={"block_cache_i": profile})
    found = of(nets, scheme, compiler)
    (net,) = (net for net in found.nets if net.net == "block_cache_i")
    assert (net.source, net.count, net.moved_bytes) == (Source.PROFILE, 28, 126)
    assert (net.seconds, net.dma_s, net.arithmetic_s) == (5e-3, 4e-3, 3e-3)
    assert found.source is Source.ROOFLINE  # the other nets: what is told is only as good as the worst


def test_cycles_of_zero_are_none() -> None:
    """A net that takes no time would be infinitely fast; bundles come from elsewhere."""
    nets, scheme = wide()
    names, patterns = {net.name for net in nets.nets}, {net.pattern for net in nets.nets}
    zero = NetProfile.model_validate(dict.fromkeys(NetProfile.model_fields, 0))
    compiler = CompilerInfo(
        name="tpu-mlir", version="1", cycles=dict.fromkeys(names, 0), profiles=dict.fromkeys(patterns, zero)
    )
    assert of(nets, scheme, compiler, host_s=0.0) == of(nets, scheme, host_s=0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", ["chatglm3", "glm4"])
def test_a_token_reads_every_weight_but_the_embedding_once(model: str, mode: QuantMode) -> None:
    nets, scheme = wide(model, mode)
    config = nets.config
    table = config.vocab_size * config.hidden_size * 2
    cache = 2 * config.num_layers * 512 * config.kv_size * 2
    row = config.hidden_size * 2
    held = model_requirement("model", nets, scheme).chips[0].weights_bytes
    # The norm of the output layer is the one weight that is left out.
    assert of(nets, scheme).bytes_per_token == pytest.approx(held - table + cache + row, abs=10_000)


@pytest.mark.parametrize("mode", MODES)
def test_two_chips_divide_the_work_and_pay_for_exchanges(mode: QuantMode) -> None:
    one, two = of(*wide(mode=mode)), of(*wide(mode=mode, chips=2))
    each = 4 * (BM1684X.copy_s + 4096 * 2 / BM1684X.link)
    assert two.contexts[0].times.exchanges_s == pytest.approx(57 * each)
    assert one.contexts[0].times.exchanges_s == 0
    assert two.contexts[0].times.layers_s == pytest.approx(one.contexts[0].times.layers_s / 2, rel=0.03)
    assert two.limit_tokens_per_s == pytest.approx(2 * one.limit_tokens_per_s, rel=0.01)
    assert one.tokens_per_s < two.tokens_per_s < 2 * one.tokens_per_s


def test_layers_on_two_chips_take_as_long_as_on_one() -> None:
    one, two = of(*wide()), of(*wide(chips=2, split=Split.PIPELINE))
    assert two.contexts[0].times.layers_s == pytest.approx(one.contexts[0].times.layers_s)
    assert two.contexts[0].times.exchanges_s == pytest.approx(2 * (BM1684X.copy_s + 4096 * 2 / BM1684X.link))
    assert two.limit_tokens_per_s == pytest.approx(one.limit_tokens_per_s)


@pytest.mark.parametrize("mode", [QuantMode.INT8, QuantMode.INT4])
def test_parts_of_a_layer_are_a_layer(mode: QuantMode) -> None:
    nets, scheme = wide(mode=mode)
    parts, _ = wide(mode=mode, chips=2)
    whole = net_work(nets.net("block_cache_0"), nets, scheme)
    halves = [net_work(net, parts, scheme) for net in parts.of_kind(NetKind.DECODE, layer=0)]
    assert len(halves) == 4
    for field in ("scale_bytes", "history_bytes", "operations"):
        assert sum(getattr(half, field) for half in halves) == getattr(whole, field)
    # Norms are on both chips.
    assert sum(half.weight_bytes for half in halves) == whole.weight_bytes + 2 * 4096 * 2


def test_speculation_breaks_even_where_a_pass_gives_what_it_costs() -> None:
    nets, scheme = wide(plan=NetPlan(prefill=stages((128, 512)), verify=stages((8, 512), (16, 512))))
    plain = of(nets, scheme)
    assert [(check.drafted_tokens, check.tokens_per_s) for check in plain.speculation] == [(7, None), (15, None)]
    cost = plain.speculation[0].cost
    assert 1 < cost < 1.2
    assert plain.speculation[0].break_even_acceptance == pytest.approx((cost - 1) / 7)
    even = of(nets, scheme, tokens_per_pass=cost).speculation[0]
    assert even.speed_up == pytest.approx(1)
    assert even.tokens_per_s == pytest.approx(plain.tokens_per_s)
    most = of(nets, scheme, tokens_per_pass=10).speculation
    assert most[0].tokens_per_s is None  # a pass of eight gives no ten
    assert most[1].speed_up == pytest.approx(10 / most[1].cost)


def test_longer_conversations_take_the_stage_that_holds_them() -> None:
    plan = NetPlan(seq_length=2048, prefill=stages((128, 2048)), decode_cache_lengths=(512, 2048), verify=())
    nets, scheme = wide(plan=plan)
    found = of(nets, scheme, contexts=(1, 513, 514, 2048), prompts=(1, 2048))
    assert [token.stage for token in found.contexts] == ["1x512", "1x512", "1x2048", "1x2048"]
    assert found.contexts[1].token_s < found.contexts[2].token_s
    assert found.contexts[1].bytes_per_token < found.contexts[2].bytes_per_token
    assert found.prompts[1].passes == ("128x2048",) * 16
    assert [token.context_tokens for token in of(nets, scheme).contexts] == [512, 2048]


def test_times_add_up() -> None:
    found = of(*wide(plan=CHECKING), host_s=0.002)
    for seconds, times in (
        (found.first_token_s, found.prompts[0].times),
        (found.contexts[0].token_s, found.contexts[0].times),
        (found.speculation[0].pass_s, found.speculation[0].times),
    ):
        parts = [getattr(times, name) for name in Times.model_fields]
        assert seconds == pytest.approx(sum(parts))
        assert times.host_s == pytest.approx(0.002)
    assert found.prompts[1].times.host_s == pytest.approx(0.002 * len(found.prompts[1].passes))
    assert found.limit_share == pytest.approx(found.tokens_per_s / found.limit_tokens_per_s)
    assert Estimate.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": (513,)}, SequenceTooLongError, "a prompt of 513 tokens is over the sequence length 512"),
        ({"contexts": (4096,)}, SequenceTooLongError, "a context of 4096 tokens"),
        ({"prompts": (0,)}, UsageError, "1 token or more, not 0"),
        ({"contexts": (-1,)}, UsageError, "1 token or more, not -1"),
        ({"tokens_per_pass": 0.5}, UsageError, "between 1 and 8 tokens, not 0.5"),
        ({"tokens_per_pass": 9}, UsageError, "between 1 and 8"),
        ({"tokens_per_pass": float("nan")}, UsageError, "between 1 and 8"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, object], error: type[UsageError], message: str) -> None:
    nets, scheme = wide(plan=CHECKING)
    with pytest.raises(error, match=message):
        of(nets, scheme, **options)


def test_drafts_need_a_net_that_checks_them() -> None:
    nets, scheme = wide()
    without = [net for net in nets.nets if net.kind is not NetKind.LM_HEAD or net.stage.new_tokens == 1]
    with pytest.raises(UsageError, match="check no drafted tokens"):
        of(nets.model_copy(update={"nets": tuple(without)}), scheme, tokens_per_pass=2)


class Page(HTMLParser):
    """Collects elements, and refuses what is not closed as it was opened."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_the_chart_shows_all_and_loads_nothing() -> None:
    found = of(*wide(chips=2, plan=CHECKING), prompts=(20, 512))
    html = draw_chart(found.model_copy(update={"title": "<script>x</script>"}))
    page = read(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    assert not {name for _, attributes in page.elements for name in attributes} & {"src", "href", "onload", "style"}
    assert "url(" not in html
    assert "http" not in html
    assert "<script>x</script> in int8" in page.text
    for text in ("prompt of 20", "prompt of 512", "context of 512", "check of 7 drafts", "exchanges between chips"):
        assert text in page.text
    assert f"{found.tokens_per_s:.2f} tokens/s" in page.text
    assert all(net.net in page.text for net in found.nets)


def test_one_chip_has_no_exchanges_in_its_legend() -> None:
    assert "exchanges" not in read(draw_chart(of(*wide()))).text


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), min_size=1, max_size=5),
    limit=st.none() | st.floats(1e-3, 1e6),
)
def test_bars_are_as_long_as_what_they_show(lengths: list[list[float]], limit: float | None) -> None:
    bars = [Bar("a & b", [("layers", "layers", ms) for ms in parts], limit) for parts in lengths]
    page = read(draw_bars(bars, what="times"))
    rects = [attributes for tag, attributes in page.elements if tag == "rect"]
    shown = [ms for bar in bars for _, _, ms in bar.parts if ms > 0]
    widths = [float(str(rect["width"]).rstrip("%")) for rect in rects]
    assert len(widths) == len(shown)
    if shown:
        scale = widths[shown.index(max(shown))] / max(shown)
        assert all(width == pytest.approx(ms * scale, abs=1e-2) for width, ms in zip(widths, shown, strict=True))
    ends = [float(str(rect["x"]).rstrip("%")) + width for rect, width in zip(rects, widths, strict=True)]
    assert all(0 <= end <= 100.01 for end in ends)
