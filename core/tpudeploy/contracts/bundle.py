"""The bundle: all that travels to a device. A folder with a manifest that names every file with its digest."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, field_validator

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.net import NetSet, Split
from tpudeploy.contracts.patch import Patch
from tpudeploy.contracts.quant import QuantMode, QuantScheme

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 3
"""2 added ``verification``, 3 ``compiler.profiles``; bundles of older versions are read as well."""
_LONGEST_PATH = 255
_LARGEST_COUNT = 1 << 53
"""Far above any count of a compiler, and still exact in JSON and as a float."""


class BundleFormat(str, Enum):
    """What the nets are stored as."""

    ONNX = "onnx"
    BMODEL = "bmodel"


class BundleFile(Value):
    """One file of a bundle.

    :param path: relative to the bundle's folder, with ``/``; never absolute, never upwards, printable.
    :param size_bytes: its size.
    :param sha256: its digest (hex).
    """

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = path.split("/")
        if not path or path.startswith("/") or "\\" in path or "\0" in path or any(p in {"", ".", ".."} for p in parts):
            raise ValueError(f"path {path[:_LONGEST_PATH]!r} does not stay inside the bundle")
        if not path.isprintable() or len(path.encode(errors="replace")) > _LONGEST_PATH:
            raise ValueError(f"path {path[:_LONGEST_PATH]!r} is too long or holds control characters")
        return path


Count = Annotated[int, Field(ge=0, le=_LARGEST_COUNT)]


class NetProfile(Value):
    """What the compiler's model of the chip says of one net. 1e6 cycles are 1 ms.

    :param total_cycles: from the first command to the last.
    :param dma_cycles: in which the DMA engine is busy.
    :param arithmetic_cycles: in which the arithmetic engine is busy; the two overlap.
    :param read_bytes: from device memory into the chip's own.
    :param written_bytes: back to device memory.
    :param copied_bytes: from device memory to device memory.
    :param operations: arithmetic operations; a multiplication with its addition counts as two.
    """

    total_cycles: Count
    dma_cycles: Count
    arithmetic_cycles: Count
    read_bytes: Count
    written_bytes: Count
    copied_bytes: Count
    operations: Count

    @property
    def moved_bytes(self) -> int:
        """All traffic of device memory: a copy reads and writes."""
        return self.read_bytes + self.written_bytes + 2 * self.copied_bytes


class CompilerInfo(Value):
    """What made the nets.

    :param name: ``"tpu-mlir"`` or ``"onnx"``.
    :param version: its version.
    :param cycles: modelled chip cycles of each net (1e6 = 1 ms), where the compiler reports them.
    :param profiles: more of the same, one for all layers: by :attr:`~tpudeploy.contracts.net.NetSpec.pattern`.
    """

    name: str
    version: str
    cycles: dict[str, Count] = Field(default_factory=dict)
    profiles: dict[str, NetProfile] = Field(default_factory=dict)


class VerificationOutcome(str, Enum):
    """What is known of how close a bundle is to the published model."""

    OK = "ok"
    WORSE = "worse than expected"
    NOT_VERIFIED = "not verified"


class Verification(Value):
    """How the bundle compared with the torch reference when it was packed: see ``tpudeploy verify``.

    :param reason: why it was not verified; empty where it was.
    :param backend: what ran it.
    :param nets: how many nets were compared, each on its own.
    :param worst_net_cosine: the smallest cosine similarity of any of them.
    :param prompts: how many prompts were answered.
    :param worst_logits_cosine: the smallest cosine similarity of logits of any token.
    :param agreement: share of the answers' tokens that the reference would have chosen.
    """

    outcome: VerificationOutcome
    reason: str = ""
    backend: str = ""
    nets: int = Field(default=0, ge=0)
    worst_net_cosine: float | None = None
    prompts: int = Field(default=0, ge=0)
    worst_logits_cosine: float | None = None
    agreement: float | None = None


class Manifest(Value):
    """What a bundle holds and where it came from.

    :param model: the adapter's name.
    :param variant: the variant's name; empty for a checkpoint that is no known variant.
    :param checkpoint_digest: SHA-256 over the checkpoint's config and tensor files.
    :param net_files: net name -> file that holds it (a bmodel holds many).
    :param tokenizer_files: paths of the tokenizer's files, below ``tokenizer/``; empty when it ships none.
    :param stop_ids: ids that end an answer, for use without the adapter's tokenizer.
    :param patches: the patches that were applied, in order.
    :param verification: None where nobody asked for it, which means: not verified.
    """

    format_version: int = FORMAT_VERSION
    model: str
    variant: str
    checkpoint_digest: str
    format: BundleFormat
    quant: QuantScheme
    nets: NetSet
    net_files: dict[str, str]
    tokenizer_files: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    patches: tuple[Patch, ...] = ()
    compiler: CompilerInfo
    tpudeploy_version: str
    files: tuple[BundleFile, ...]
    verification: Verification | None = None


def bundle_title(model: str, mode: QuantMode, nets: NetSet, form: BundleFormat) -> str:
    """Name of a bundle, for example ``chatglm3-6b_int8_seq512_2dev``.

    :param model: family and variant, for example ``chatglm3-6b``.
    """
    chips = f"_{nets.chips}dev" if nets.chips > 1 else ""
    way = "-pipeline" if nets.split is Split.PIPELINE else ""
    suffix = "_cpu" if form is BundleFormat.ONNX else ""
    return f"{model}_{mode.value}_seq{nets.seq_length}{chips}{way}{suffix}"
