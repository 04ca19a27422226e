"""From a user's words to a loaded model: lengths, backends, targets, memory, catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pluggy
import pytest

from third_party.tpudeploy_acme.adapter import Acme
from third_party.tpudeploy_acme.backend import AcmeChip
from tiny import write_checkpoint
from tpudeploy.compile.plan import model_patches
from tpudeploy.contracts.adapter import ModelVariant
from tpudeploy.contracts.backend import Availability, Backend
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.patch import Patch
from tpudeploy.contracts.quant import QuantMode, resolve_quant
from tpudeploy.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    CompileError,
    PluginError,
    SequenceTooLongError,
    StorageError,
    TokenizerError,
    UnknownNameError,
    UsageError,
)
from tpudeploy.hookspecs import hookimpl
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.launch.backends import bundle_format, choose_backend
from tpudeploy.launch.building import require_export_packages
from tpudeploy.launch.catalogue import read_catalogue
from tpudeploy.launch.delivery import check_output, copy_bundle
from tpudeploy.launch.description import describe_model, group_nets
from tpudeploy.launch.generation import generation_options
from tpudeploy.launch.lengths import choose_seq_length
from tpudeploy.launch.memory import estimate_memory
from tpudeploy.launch.weights import missing_weights, require_weights
from tpudeploy.plugins import PluginRegistry, registry
from tpudeploy.settings import Settings


class StubBackend(AcmeChip):
    """A backend that only says whether it can run."""

    def __init__(self, name: str, forms: Sequence[BundleFormat], priority: int, *, available: bool = True) -> None:
        self.name = name
        self.formats = frozenset(forms)
        self.priority = priority
        self._available = available

    def availability(self) -> Availability:
        return Availability(available=self._available, reason="" if self._available else "no such chip.", remedy="Buy.")


class BrokenBackend(AcmeChip):
    """A backend that breaks its promise never to raise."""

    name = "broken"

    def availability(self) -> Availability:
        raise OSError("libbroken.so")


def backends(*offered: Backend) -> PluginRegistry:
    found = PluginRegistry(pluggy.PluginManager("tpudeploy"))
    found.backends.update((backend.name, backend) for backend in offered)
    found.models["acme"] = Acme()
    return found


ONNX, BMODEL = BundleFormat.ONNX, BundleFormat.BMODEL


@pytest.mark.parametrize(
    ("asked", "model", "prompt", "new", "expected"),
    [
        (None, 8192, 0, None, 512),
        (None, 8192, 257, None, 512),
        (None, 8192, 258, None, 1024),
        (None, 8192, 100, 413, 512),
        (None, 8192, 100, 414, 1024),
        (None, 8192, 5000, 100, 8192),
        (None, 6000, 5000, 5000, 6000),
        (None, 256, 10, 1000, 256),
        (None, 512, 512, None, 512),
        (64, 8192, 64, 1000, 64),
        (8192, 8192, 1, None, 8192),
    ],
)
def test_sequence_length(asked: int | None, model: int, prompt: int, new: int | None, expected: int) -> None:
    assert choose_seq_length(asked, model, prompt_tokens=prompt, max_new_tokens=new) == expected


@pytest.mark.parametrize(
    ("asked", "model", "prompt", "kind", "message"),
    [
        (None, 512, 513, SequenceTooLongError, "this model holds 512"),
        (64, 512, 65, SequenceTooLongError, "--seq-length is 64"),
        (513, 512, 1, SequenceTooLongError, "over this model's 512"),
        (0, 512, 1, UsageError, "must be 1 or more"),
    ],
)
def test_sequence_length_refused(
    asked: int | None, model: int, prompt: int, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        choose_seq_length(asked, model, prompt_tokens=prompt, max_new_tokens=None)


def test_auto_takes_the_available_backend_of_the_highest_priority() -> None:
    found = backends(
        StubBackend("slow", [ONNX], 1),
        StubBackend("fast", [ONNX, BMODEL], 5),
        StubBackend("absent", [BMODEL], 9, available=False),
        BrokenBackend(),
    )
    assert choose_backend(found, "auto").name == "fast"
    assert choose_backend(found, "auto", BMODEL).name == "fast"
    assert choose_backend(found, "slow").name == "slow"
    assert bundle_format(choose_backend(found, "fast")) is BMODEL
    assert bundle_format(choose_backend(found, "slow")) is ONNX


def test_a_backend_that_does_not_fit_says_why() -> None:
    found = backends(StubBackend("cpu", [ONNX], 1), StubBackend("chip", [BMODEL], 9, available=False), BrokenBackend())
    with pytest.raises(UnknownNameError, match="known: broken, chip, cpu"):
        choose_backend(found, "gpu")
    with pytest.raises(BackendError, match="chip cannot run on this machine: no such chip") as caught:
        choose_backend(found, "chip")
    assert caught.value.hint == "Buy."
    with pytest.raises(BackendError, match=r"broken cannot run on this machine: .*libbroken"):
        choose_backend(found, "broken")
    with pytest.raises(BundleError, match="cpu does not run bmodel bundles") as wrong:
        choose_backend(found, "cpu", BMODEL)
    assert "broken, chip" in wrong.value.hint
    with pytest.raises(BackendError, match=r"for bmodel bundles.*libbroken.*chip: no such chip"):
        choose_backend(found, "auto", BMODEL)
    with pytest.raises(BackendError, match="no backend can run"):
        choose_backend(backends(), "auto")


def test_names_are_looked_up_before_weights_are_missed(settings: Settings) -> None:
    found = backends(StubBackend("cpu", [ONNX], 1))

    def opened(**words: object) -> None:
        open_target(LaunchRequest.model_validate(words), settings, found)

    with pytest.raises(UnknownNameError, match="quantization mode 'int1'"):
        opened(model="acme", quant="int1")
    with pytest.raises(UnknownNameError, match="backend 'gpu'"):
        opened(model="acme", backend="gpu")
    with pytest.raises(UnknownNameError, match="variant of acme 'tera'"):
        opened(model="acme:tera")
    with pytest.raises(UsageError, match="no model was named"):
        opened()
    with pytest.raises(UnknownNameError, match="backend 'gpu'"):
        opened(bundle=Path("nowhere"), backend="gpu")
    with pytest.raises(CheckpointError, match="weights of acme:nano are not on this machine"):
        opened(model="acme")


def test_missing_weights_name_every_way_out(settings: Settings) -> None:
    adapter = registry().model("chatglm3")
    variants = {variant.name: variant for variant in adapter.variants()}
    with pytest.raises(CheckpointError) as caught:
        require_weights(adapter, variants["6b"], settings)
    assert "chatglm3:6b" in caught.value.message
    for way in ("--yes", "--model-dir", "chatglm3:demo"):
        assert way in caught.value.hint
    require_weights(adapter, variants["demo"], settings)
    require_weights(adapter, variants["6b"], settings, model_dir=Path("anywhere"))
    unpublished = missing_weights(
        adapter, ModelVariant(name="x", config=variants["6b"].config, note="Never published.")
    )
    assert "Never published." in unpublished.message
    assert "--yes" not in unpublished.hint
    assert "demo" not in missing_weights(Acme(), Acme().variants()[0]).hint


def test_a_checkpoint_without_a_tokenizer_takes_ids_only(settings: Settings, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    request = LaunchRequest(model="chatglm3", model_dir=folder, backend="cpu")
    target = open_target(request, settings, registry())
    assert target.text() is None
    with pytest.raises(TokenizerError, match="no tokenizer"):
        target.require_text()
    (folder / "tokenizer.model").write_bytes(b"not a tokenizer")
    with pytest.raises(TokenizerError):
        target.text()


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "greedy": True}, 0.0),
        ({"top_p": 0.9}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"top_k": 5, "temperature": 0.0}, 0.0),
        ({"top_k": 5, "greedy": True}, 0.0),
        ({"seed": 3}, 0.0),
    ],
)
def test_what_is_said_of_sampling(given: dict[str, object], temperature: float) -> None:
    options = generation_options(**given)  # type: ignore[arg-type]
    assert options.sampling.temperature == temperature


def test_memory_is_counted_weight_by_weight() -> None:
    config = registry().model("chatglm3").variants()[0].config
    half = Acme().half
    memory = {mode: estimate_memory(config, resolve_quant(mode, half), 512) for mode in QuantMode}
    assert memory[QuantMode.NONE].weights_bytes == 4 * config.parameters
    assert memory[QuantMode.F16].weights_bytes == 2 * config.parameters
    assert memory[QuantMode.BF16] == memory[QuantMode.F16]
    embedding = config.vocab_size * config.hidden_size
    layers = config.parameters - 2 * embedding  # the output layer is as large, and has 8 bits in INT4 as well
    for mode, bytes_each in ((QuantMode.INT8, 1.046875), (QuantMode.INT4, 0.5390625)):
        expected = (2 + 1.046875) * embedding + bytes_each * layers
        assert memory[mode].weights_bytes == pytest.approx(expected, rel=1e-3)
    # Two caches of 28 layers, 512 tokens and a chunk of 512, 2 heads of 128, 2 bytes.
    assert memory[QuantMode.INT8].kv_bytes == 2 * 28 * 1024 * 2 * 128 * 2
    assert memory[QuantMode.NONE].kv_bytes == 2 * memory[QuantMode.INT8].kv_bytes
    long = estimate_memory(config, resolve_quant(QuantMode.INT8, half), 8192)
    assert long.kv_bytes > 8 * memory[QuantMode.INT8].kv_bytes
    assert long.total_bytes == long.weights_bytes + long.kv_bytes + long.runtime_bytes


def test_the_catalogue_of_an_empty_home(settings: Settings) -> None:
    catalogue = read_catalogue(backends(), settings)
    (entry,) = catalogue.models
    assert (entry.name, entry.default, entry.fetchable, entry.checkpoint, entry.bundles) == (
        "acme:nano",
        True,
        True,
        None,
        (),
    )
    assert entry.estimate_tokens == 256  # the model has no more
    assert not settings.home.exists()


def test_nets_are_grouped_by_layer() -> None:
    adapter = Acme()
    config = adapter.variants()[0].config
    plan = NetPlan.model_validate({"seq_length": 256, "decode_cache_lengths": [128, 256], "verify": []})
    groups = {group.name: group for group in group_nets(plan_nets(config, plan, adapter.half))}
    assert {name: group.count for name, group in groups.items()} == {
        "embedding_cache": 1,
        "embedding": 1,
        "embedding_s64": 1,
        "embedding_s256": 1,
        "block_i": 2,
        "block_kv_i": 2,
        "block_kv_i_s64_c256": 2,
        "block_cache_i": 2,
        "block_cache_i_c256": 2,
        "lm_head": 1,
    }
    assert groups["block_cache_i_c256"].stage == "1x256"


def test_patches_of_other_plugins_come_after_the_adapters_own(settings: Settings) -> None:
    class Patching:
        @hookimpl
        def tpudeploy_patches(self, model: str) -> list[Patch]:
            change = {"field": "norm_eps", "before": 1e-6, "after": 1e-5}
            return [Patch(name=f"for-{model}", reason="r", changes="c", undo="u", **change)]

    class Wrong:
        @hookimpl
        def tpudeploy_patches(self) -> list[str]:
            return ["no patch"]

    from tpudeploy import hookspecs

    found = backends(StubBackend("cpu", [ONNX], 1))
    found.manager.add_hookspecs(hookspecs)
    found.manager.register(Patching())
    described = describe_model("acme", found, settings)
    assert described.patches[-1].name == "for-acme"
    assert len(described.patches) == 5
    found.manager.register(Wrong())
    with pytest.raises(PluginError, match="did not return a list of patches"):
        model_patches(Acme(), Acme().variants()[0].config, 128, found)


def test_a_bundle_is_delivered_whole(tmp_path: Path) -> None:
    origin = tmp_path / "bundle"
    (origin / "nets").mkdir(parents=True)
    (origin / "manifest.json").write_text("{}")
    (origin / "nets" / "a").write_text("a")
    (tmp_path / "out").mkdir()
    copied = copy_bundle(origin, tmp_path / "out")
    assert {path.name for path in copied.rglob("*")} == {"manifest.json", "nets", "a"}
    copy_bundle(origin, tmp_path / "deep" / "er")
    with pytest.raises(UsageError, match="not empty"):
        copy_bundle(origin, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        check_output(tmp_path / "file")
    assert list(tmp_path.glob(".*")) == []


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("shutil.copytree", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        copy_bundle(tmp_path, tmp_path / "out")


def test_a_device_install_says_that_it_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(CompileError, match="not installed: torch") as caught:
        require_export_packages()
    assert "tpudeploy[export]" in caught.value.hint
