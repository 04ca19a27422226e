"""Turn a model and a user's options into exact values: patched decoder, net set, quantization scheme, keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from tpudeploy.compile.source import ModelSource
from tpudeploy.compile.store import stage_key
from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import BundleFormat, bundle_title
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetSet, Split
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.patch import Patch, apply_patches
from tpudeploy.contracts.quant import QuantMode, QuantScheme, resolve_quant
from tpudeploy.contracts.slices import ModelExport
from tpudeploy.errors import PluginError, SequenceTooLongError
from tpudeploy.plugins import PluginRegistry, call_hook

EXPORT_CODE = ("contracts", "checkpoint", "graph")
COMPILE_CODE = (*EXPORT_CODE, "compile")


class BuildOptions(Value):
    """What a user chooses about a build.

    :param jobs: slices worked on at once; None takes what cores and memory allow.
    :param keep_intermediate: keep the pieces that a bundle was made of.
    :param chips: how many chips the model is divided over, and ``split`` how.
    """

    quant: QuantMode
    format: BundleFormat
    nets: NetPlan = NetPlan()
    chips: int = Field(default=1, ge=1)
    split: Split = Split.TENSOR
    jobs: int | None = Field(default=None, gt=0)
    keep_intermediate: bool = False


@dataclass(frozen=True)
class BuildPlan:
    """A build with nothing left to decide."""

    source: ModelSource
    options: BuildOptions
    scheme: QuantScheme
    patches: tuple[Patch, ...]
    net_set: NetSet

    @property
    def config(self) -> DecoderConfig:
        """The decoder with its patches applied."""
        return self.net_set.config

    @property
    def export(self) -> ModelExport:
        """What the graph room needs to know."""
        return ModelExport(
            config=self.config,
            seq_length=self.net_set.seq_length,
            tolerance=self.source.adapter.tolerance,
        )

    def key(self, tool_version: str) -> str:
        """What the bundle as a whole depends on, without reading the weights' contents."""
        return stage_key(
            "bundle",
            {
                "checkpoint": self.source.checkpoint.fingerprint(),
                "nets": self.net_set.digest(),
                "scheme": self.scheme.digest(),
                "format": self.options.format.value,
                "tools": tool_version,
            },
            code=COMPILE_CODE,
        )

    @property
    def title(self) -> str:
        """Name of the bundle, for example ``chatglm3-6b_int8_seq512``."""
        return bundle_title(self.source.title, self.scheme.mode, self.net_set, self.options.format)


def plan_build(source: ModelSource, options: BuildOptions, registry: PluginRegistry) -> BuildPlan:
    """Apply the patches and lay out the nets.

    :raises SequenceTooLongError: longer than the model allows.
    :raises UsageError: the options do not fit the model.
    :raises PluginError: a patch does not fit the model.
    """
    wanted = options.nets.seq_length
    if wanted > source.config.seq_length:
        raise SequenceTooLongError(
            f"sequence length {wanted} is over the {source.config.seq_length} tokens of {source.title}.",
            hint=f"Choose --seq-length {source.config.seq_length} or less.",
        )
    scheme = resolve_quant(options.quant, source.adapter.half)
    patches = model_patches(source.adapter, source.config, wanted, registry)
    patched = apply_patches(source.config, patches)
    # onnxruntime computes in float32 whatever the weights are; the chip's nets take their own type.
    activation = DType.F32 if options.format is BundleFormat.ONNX else scheme.activation
    nets = options.nets.simplest() if options.format is BundleFormat.ONNX else options.nets
    net_set = split_nets(source.adapter.slices(patched, nets, activation), options.chips, options.split)
    return BuildPlan(source, options, scheme, patches, net_set)


def model_patches(
    adapter: ModelAdapter, config: DecoderConfig, seq_length: int, registry: PluginRegistry
) -> tuple[Patch, ...]:
    """The adapter's patches, then those that other plugins add.

    :raises PluginError: a plugin offers something else.
    """
    own = list(adapter.patches(config, seq_length=seq_length))
    patched = apply_patches(config, own)
    for offered in call_hook(registry, "tpudeploy_patches", model=adapter.name, config=patched):
        own.extend(_checked(offered))
    return tuple(own)


def _checked(offered: object) -> Sequence[Patch]:
    if not isinstance(offered, list | tuple) or not all(isinstance(patch, Patch) for patch in offered):
        raise PluginError(
            "a plugin's tpudeploy_patches did not return a list of patches.", hint="See `tpudeploy plugins`."
        )
    return offered
