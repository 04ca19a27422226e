"""The torch reference against the original's vectors; the exported slices against the torch reference."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from shared_data import shared_path
from tiny import write_checkpoint
from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.compile.export_model import export_model
from tpudeploy.compile.plan import BuildOptions, BuildPlan, plan_build
from tpudeploy.compile.source import ModelSource, open_source, parse_model
from tpudeploy.contracts.adapter import Tolerance
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.decoder import AttentionForm, DecoderConfig, GraphForm, MaskForm, RopeLayout
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.contracts.slices import ModelExport, slices_of
from tpudeploy.contracts.weights import weight_shapes
from tpudeploy.errors import CheckpointError, CompileError, SequenceTooLongError, UsageError
from tpudeploy.graph.decoder import Decoder, parameter_name
from tpudeploy.graph.export import check_slice, write_slice_graphs, write_slice_weights
from tpudeploy.graph.onnx_decoder import build_graph
from tpudeploy.graph.reference import StreamedReference, greedy, load_decoder
from tpudeploy.graph.rope import to_half_split, to_interleaved
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings
from tpudeploy.testing.tiny_decoder import CONFIG as TINY

EVERY_KIND = NetPlan(
    seq_length=64,
    prefill=(Stage(new_tokens=16, cache_length=64), Stage(new_tokens=32, cache_length=0)),
    decode_cache_lengths=(64, 24),
    verify=(Stage(new_tokens=4, cache_length=64),),
)


def source_of(folder: Path) -> ModelSource:
    adapter, variant = parse_model("chatglm3", registry())
    return open_source(adapter, variant, Settings(home=folder / "home"), model_dir=folder)


def plan_of(folder: Path, nets: NetPlan) -> BuildPlan:
    options = BuildOptions(quant=QuantMode.NONE, format=BundleFormat.ONNX, nets=nets)
    return plan_build(source_of(folder), options, registry())


def test_reference_logits_match_the_original_code() -> None:
    folder = shared_path("golden/tiny-chatglm3")
    vectors = np.load(folder / "golden.npz")
    reference = StreamedReference(source_of(folder).weights())
    for name in ("rand1", "rand2", "rand5", "rand16"):
        logits = reference.logits(vectors[f"{name}_ids"].ravel().tolist()).numpy()
        assert np.abs(logits - vectors[f"{name}_logits"].reshape(logits.shape)).max() < 2e-5
    for name in ("rand33", "rand100"):
        logits = reference.logits(vectors[f"{name}_ids"].ravel().tolist()).numpy()
        assert np.abs(logits[-4:] - vectors[f"{name}_logits_last4"].reshape(4, -1)).max() < 2e-5
        assert (logits.argmax(-1) == vectors[f"{name}_logits_argmax"].ravel()).all()


def test_reference_continues_greedily_as_the_original_code() -> None:
    folder = shared_path("golden/tiny-chatglm3")
    golden = json.loads((folder / "golden.json").read_text())
    decoder = load_decoder(source_of(folder).weights())
    for name, prompt in golden["prompts"].items():
        assert greedy(decoder, prompt, 32) == golden["greedy"][name]["new_tokens"], name


def test_every_form_of_the_graph_is_the_same_function(tmp_path: Path) -> None:
    weights = source_of(write_checkpoint(tmp_path)).weights()
    published = load_decoder(weights)
    ids = torch.randint(320, (2, 33), generator=torch.Generator().manual_seed(1))
    expected = published(ids)
    for rope, mask, attention in product(RopeLayout, MaskForm, AttentionForm):
        form = GraphForm(rope_layout=rope, mask=mask, attention=attention)
        config = weights.config.model_copy(update={"form": form})
        decoder = Decoder(config).eval()
        decoder.load_state_dict(published.state_dict())
        if rope is RopeLayout.HALF_SPLIT:
            _permute(decoder)
        assert (decoder(ids) - expected).abs().max() < 2e-5, form


def _permute(decoder: Decoder) -> None:
    config = decoder.config
    state = decoder.state_dict()
    for layer, name, kind in product(range(config.num_layers), ("q", "k"), ("weight", "bias")):
        key = parameter_name(f"layers.{layer}.{name}.{kind}")
        state[key] = to_half_split(state[key], config.head_dim, config.rotary_dim)
    decoder.load_state_dict(state)


def test_half_split_is_undone_by_interleaving() -> None:
    rows = torch.randn(6 * 32, 5)
    permuted = to_half_split(rows, 32, 16)
    assert not torch.equal(permuted, rows)
    assert torch.equal(to_interleaved(permuted, 32, 16), rows)
    # Elements 0, 2, 4, ... of a head come first; what is not rotated stays.
    assert torch.equal(permuted[:3], rows[[0, 2, 4]])
    assert torch.equal(permuted[16:32], rows[16:32])


def test_every_kind_of_slice_matches_the_reference(tmp_path: Path) -> None:
    plan = plan_of(write_checkpoint(tmp_path / "model"), EVERY_KIND)
    checks = export_model(plan, tmp_path / "out")
    assert {check.net for check in checks} == {net.name for net in plan.net_set.nets}
    assert {net.kind for net in plan.net_set.nets} == set(NetKind) - {NetKind.OTHER}
    assert max(check.max_error for check in checks) < 2e-6
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"block_0.onnx", "block_kv_1.onnx", "block_cache_1_c24.onnx", "embedding.onnx", "lm_head_s4.onnx"} <= files
    assert {"layer_000.npz", "embedding.npz", "lm_head.npz", "nets.json"} <= files


def node_kinds(stage: Stage) -> list[str]:
    """The operators of a layer's net, in order."""
    plan = NetPlan(seq_length=4096, prefill=(stage, Stage(new_tokens=16, cache_length=4096)), verify=())
    nets = plan_nets(TINY.model_copy(update={"seq_length": 4096}), plan, DType.F32)
    net = next(net for net in nets.nets if net.kind.is_block and net.stage == stage)
    model = build_graph(nets.config, net, nets.seq_length).model_with_inputs(net.inputs, net.outputs)
    return [node.op_type for node in model.graph.node]


def test_long_passes_attend_in_chunks_of_queries(tmp_path: Path) -> None:
    stages = (Stage(new_tokens=256, cache_length=256), Stage(new_tokens=200, cache_length=0))
    plan = plan_of(write_checkpoint(tmp_path / "model"), NetPlan(seq_length=256, prefill=stages, verify=()))
    checks = export_model(plan, tmp_path / "out")
    assert max(check.max_error for check in checks) < 2e-6
    for new, cache, chunks in ((128, 0, 1), (200, 0, 2), (512, 512, 4), (512, 2048, 4), (256, 2048, 1)):
        kinds = node_kinds(Stage(new_tokens=new, cache_length=cache))
        assert kinds.count("Softmax") == chunks, (new, cache)
        # Cut at the very beginning, the mask does not change the order in which weights are laid out.
        assert kinds[: 1 if chunks == 1 else chunks] == (["Pow"] if chunks == 1 else ["Slice"] * chunks)


def test_an_interleaved_graph_matches_too(tmp_path: Path) -> None:
    """The form that was measured to be slow on the chip is still right: the patch is for speed alone."""
    source = source_of(write_checkpoint(tmp_path / "model"))
    plan = plan_of(tmp_path / "model", EVERY_KIND)
    form = plan.config.form.model_copy(update={"rope_layout": RopeLayout.INTERLEAVED})
    config = plan.config.model_copy(update={"form": form})
    nets = plan.net_set.model_copy(update={"config": config})
    checks = export_model(BuildPlan(source, plan.options, plan.scheme, (), nets), tmp_path / "out")
    assert max(check.max_error for check in checks) < 2e-6


def test_a_decoder_with_norms_after_its_sublayers_is_exported_too(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"post_norms": True, "form": GraphForm()})
    weights = RandomWeights(config)
    form = GraphForm(rope_layout=RopeLayout.HALF_SPLIT, mask=MaskForm.ADDITIVE, attention=AttentionForm.MATMUL)
    patched = config.model_copy(update={"form": form})
    export = ModelExport(config=patched, seq_length=32, tolerance=Tolerance())
    part = slices_of(plan_nets(patched, NetPlan(seq_length=32), DType.F32))[1]
    stored = write_slice_weights(part, weights, export, tmp_path)
    assert {"post_attention_norm.weight", "post_ffn_norm.weight"} <= stored.entries.keys()
    write_slice_graphs(part, export, stored, tmp_path)
    checks = check_slice(part, weights, export, tmp_path)
    assert len(checks) == len(part.nets)
    assert max(check.max_error for check in checks) < 2e-6


class RandomWeights(ModelWeights):
    """Weights by their canonical names, out of no checkpoint."""

    def __init__(self, config: DecoderConfig) -> None:
        random = torch.Generator().manual_seed(0)
        self.config = config
        self._shapes = dict(weight_shapes(config))
        self.tensors = {
            name: torch.randn(shape, generator=random) * shape[-1] ** -0.5 + (len(shape) == 1)
            for name, shape in self._shapes.items()
        }
        assert sum(tensor.numel() for tensor in self.tensors.values()) == config.parameters

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def test_a_wrong_slice_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must notice a graph that forgot to rotate its queries."""
    import tpudeploy.graph.slice_weights as module

    monkeypatch.setattr(module, "to_half_split", lambda rows, head_dim, rotary_dim: rows)
    plan = plan_of(write_checkpoint(tmp_path / "model"), NetPlan(seq_length=64))
    with pytest.raises(CompileError, match=r"block_kv_0 differs from the torch reference"):
        export_model(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".*incomplete")) == []


def test_graphs_of_all_layers_are_one_description(tmp_path: Path) -> None:
    plan = plan_of(write_checkpoint(tmp_path), NetPlan(seq_length=64))
    digests = [build_graph(plan.config, net, 64).nodes_digest() for net in plan.net_set.of_kind(NetKind.DECODE)]
    assert len(digests) == 2
    assert len(set(digests)) == 1


def test_fused_attention_cannot_be_exported(tmp_path: Path) -> None:
    plan = plan_of(write_checkpoint(tmp_path), NetPlan(seq_length=64))
    with pytest.raises(CompileError, match="must patch"):
        build_graph(plan.source.config, plan.net_set.nets[-2], 64)


@pytest.mark.parametrize(
    ("nets", "error"),
    [
        (NetPlan(seq_length=257), SequenceTooLongError),
        (NetPlan(seq_length=64, prefill=(Stage(new_tokens=128, cache_length=64),)), UsageError),
        (NetPlan(seq_length=64, prefill=(Stage(new_tokens=16, cache_length=0),)), UsageError),
        (NetPlan(seq_length=64, decode_cache_lengths=(32,)), UsageError),
    ],
)
def test_plans_that_do_not_fit_are_refused(tmp_path: Path, nets: NetPlan, error: type[UsageError]) -> None:
    with pytest.raises(error):
        plan_of(write_checkpoint(tmp_path), nets)


def test_an_output_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    plan = plan_of(write_checkpoint(tmp_path / "model"), NetPlan(seq_length=64))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        export_model(plan, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    from tiny import CONFIG, chatglm_tensors

    tensors = chatglm_tensors(CONFIG)
    tensors["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"][3, 5] = float("nan")
    plan = plan_of(write_checkpoint(tmp_path / "model", tensors=tensors), NetPlan(seq_length=64))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.dense_4h_to_h.*not finite"):
        export_model(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_slices_cover_every_net_once(tmp_path: Path) -> None:
    plan = plan_of(write_checkpoint(tmp_path), EVERY_KIND)
    parts = slices_of(plan.net_set)
    names = [net.name for part in parts for net in part.nets]
    assert sorted(names) == sorted(net.name for net in plan.net_set.nets)


PEAK = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_graph import plan_of
from tpudeploy.compile.export_model import export_model
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export_model(plan_of(Path({folder!r}), NetPlan(seq_length=64)), Path({out!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""


def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """Twelve layers of 20 MB must not take 160 MB more than four."""
    peaks = []
    for layers in (4, 12):
        folder = write_checkpoint(
            tmp_path / str(layers),
            num_layers=layers,
            hidden_size=1024,
            num_attention_heads=8,
            kv_channels=128,
            ffn_hidden_size=1024,
        )
        code = PEAK.format(path=sys.path, folder=str(folder), out=str(tmp_path / f"out{layers}"))
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    assert peaks[1] < peaks[0] + 80_000_000
