"""``estimate``: from a bundle, or a model's name and options, to its modelled speed; nothing is fetched or built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tpudeploy.checkpoint.reader import read_config
from tpudeploy.compile.plan import model_patches
from tpudeploy.compile.source import parse_model
from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import BundleFormat, Manifest
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetSet, NetSpec, Split, TensorSpec
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.patch import apply_patches
from tpudeploy.contracts.quant import QuantScheme, parse_quant_mode, resolve_quant
from tpudeploy.errors import SequenceTooLongError
from tpudeploy.estimate.model import estimate
from tpudeploy.estimate.report import Estimate, EstimateOptions
from tpudeploy.launch.fit_report import bundle_readers, open_manifest
from tpudeploy.launch.requirement import Requirement, bundle_requirement, model_requirement
from tpudeploy.launch.usage import check_agreement, check_is_no_bmodel
from tpudeploy.plugins import PluginRegistry
from tpudeploy.settings import Settings

CPU_NOTE = "this bundle is for the CPU: told is what the same nets would take on a chip, by the roofline"
OLD_NOTE = "this bundle does not hold the compiler's cycles: told is what the roofline says"
MODEL_NOTE = "nothing is compiled: told is what the roofline says; compile the model for the compiler's own figures"


class ModelQuestion(Value):
    """A model that is not compiled, in the user's words.

    :param model: family with or without a variant.
    :param model_dir: a checkpoint folder; only its config.json is read.
    :param quant: name of a mode; empty takes what suits the model.
    """

    model: str
    model_dir: Path | None = None
    quant: str = ""
    chips: int = 1
    split: Split = Split.TENSOR


def estimate_model(
    question: ModelQuestion,
    plan: Callable[[int], NetPlan],
    options: EstimateOptions,
    registry: PluginRegistry,
) -> Estimate:
    """Estimate a model by the roofline, from what its plugin knows of it or from a config.json.

    :param plan: from the tokens that the model was made for to the nets that are wanted.
    :raises UnknownNameError: no such model, variant or mode.
    :raises CheckpointError: ``model_dir`` holds no config.json of this family.
    :raises SequenceTooLongError: longer than the model was made for, or a prompt or context longer than its nets hold.
    :raises UsageError: options that do not fit the model.
    """
    adapter, variant = parse_model(question.model, registry)
    title, config = f"{adapter.name}:{variant.name}", variant.config
    if question.model_dir is not None:
        title, config = adapter.name, adapter.read_config(read_config(question.model_dir))
    mode = parse_quant_mode(question.quant) if question.quant else adapter.default_quant
    scheme = resolve_quant(mode, adapter.half)
    nets = _nets(adapter, config, plan(config.seq_length), scheme, registry)
    nets = split_nets(nets, question.chips, question.split)
    needed = model_requirement(title, nets, scheme)
    return estimate(title, nets, scheme, options, memory_bytes=_memory(needed), note=MODEL_NOTE)


def estimate_bundle(
    path: Path,
    options: EstimateOptions,
    settings: Settings,
    registry: PluginRegistry,
    *,
    quant: str = "",
    seq_length: int | None = None,
) -> Estimate:
    """Estimate a bundle, folder or file, from what its compiler said; nothing of it is unpacked or loaded.

    :param quant: what it must be quantized as, and ``seq_length`` how long its conversations must be; empty: anything.
    :raises BundleError: there is none, it is damaged, or it cannot run.
    :raises UsageError: it is something else than was asked for, or a number that cannot be.
    :raises SequenceTooLongError: a prompt or context that it does not hold.
    """
    check_is_no_bmodel(path)
    folder, manifest = open_manifest(path, settings)
    check_agreement(path, manifest, quant=quant, seq_length=seq_length)
    if manifest.format is BundleFormat.ONNX:
        return _cpu_bundle(manifest, options)
    reader = next(iter(bundle_readers(registry, manifest.format)), None)
    needed = bundle_requirement(folder, manifest, reader)
    told = all(manifest.compiler.cycles.get(net.name) for net in manifest.nets.nets)
    return estimate(
        needed.title,
        manifest.nets,
        manifest.quant,
        options,
        compiler=manifest.compiler,
        memory_bytes=_memory(needed),
        note="" if told else OLD_NOTE,
    )


def _nets(
    adapter: ModelAdapter, config: DecoderConfig, plan: NetPlan, scheme: QuantScheme, registry: PluginRegistry
) -> NetSet:
    if plan.seq_length > config.seq_length:
        raise SequenceTooLongError(
            f"sequence length {plan.seq_length} is over this model's {config.seq_length} tokens.",
            hint=f"Choose --seq-length {config.seq_length} or less.",
        )
    patched = apply_patches(config, model_patches(adapter, config, plan.seq_length, registry))
    return adapter.slices(patched, plan, scheme.activation)


def _cpu_bundle(manifest: Manifest, options: EstimateOptions) -> Estimate:
    title = f"{manifest.model}:{manifest.variant}" if manifest.variant else manifest.model
    nets = _for_chip(manifest.nets, manifest.quant)
    needed = model_requirement(title, nets, manifest.quant)
    return estimate(title, nets, manifest.quant, options, memory_bytes=_memory(needed), note=CPU_NOTE)


def _for_chip(nets: NetSet, scheme: QuantScheme) -> NetSet:
    """The nets with activations and caches as a chip stores them; onnxruntime's are float32."""

    def stored(spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"dtype": scheme.activation}) if spec.dtype is DType.F32 else spec

    def changed(net: NetSpec) -> NetSpec:
        inputs, outputs = tuple(map(stored, net.inputs)), tuple(map(stored, net.outputs))
        return net.model_copy(update={"inputs": inputs, "outputs": outputs})

    return nets.model_copy(update={"activation": scheme.activation, "nets": tuple(map(changed, nets.nets))})


def _memory(needed: Requirement) -> tuple[int, ...]:
    return tuple(chip.total_bytes for chip in needed.chips)
