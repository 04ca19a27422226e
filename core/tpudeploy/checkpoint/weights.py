"""Canonical weights of a model, read from a checkpoint through an adapter's weight table, each one checked."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tpudeploy.checkpoint.reader import FETCH_HINT, Checkpoint
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.weights import WeightRef, WeightTable, weight_shapes
from tpudeploy.errors import CheckpointError, PluginError

if TYPE_CHECKING:
    import torch


class ModelWeights:
    """Reads canonical weights (see contracts.weights) one at a time, as published.

    :raises CheckpointError: a tensor that the model needs is missing from the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, config: DecoderConfig, table: WeightTable) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self._table = table
        self._shapes = dict(weight_shapes(config))
        self._rows_of = _used_rows(table)
        unknown = [name for name in self._shapes if name not in table]
        if unknown:
            raise PluginError(f"the adapter's weight table lacks {unknown[0]!r}.")
        missing = sorted({table[name].tensor for name in self._shapes} - checkpoint.tensor_names)
        if missing:
            raise CheckpointError(
                f"{checkpoint.folder} lacks {len(missing)} tensors that the model needs, first {missing[0]!r}.",
                hint=FETCH_HINT,
            )

    def read(self, name: str) -> torch.Tensor:
        """One canonical weight in its published element type.

        :raises CheckpointError: wrong shape, or numbers that are not finite.
        """
        return self._check(name, self._rows(name, self._table[name]))

    def read_f32(self, name: str) -> torch.Tensor:
        """One canonical weight as float32."""
        return self.read(name).float()

    def held(self) -> HeldWeights:
        """The same weights, each read once and then kept: for work that needs those of one slice several times."""
        return HeldWeights(self)

    def layer_names(self, layer: int) -> list[str]:
        """Canonical names of one layer's weights, whole."""
        prefix = f"layers.{layer}."
        return [name for name in self._shapes if name.startswith(prefix)]

    def digest(self, names: list[str]) -> str:
        """SHA-256 (hex) over names, element types and numbers: the content that a stage is keyed by."""
        import torch

        sha = hashlib.sha256()
        for name in names:
            tensor = self.read(name).contiguous()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def _rows(self, name: str, ref: WeightRef) -> torch.Tensor:
        tensor = self.checkpoint.read(ref.tensor)
        if ref.rows is None:
            return tensor
        rows = tensor.shape[0] if tensor.ndim else 0
        used = self._rows_of[ref.tensor]
        if rows != used:  # more rows than used are as wrong as fewer: the parts would begin elsewhere
            raise CheckpointError(
                f"tensor {ref.tensor!r} has {rows} rows, but {name} and its like need {used}: "
                "the weights do not fit config.json.",
                hint=FETCH_HINT,
            )
        return tensor[slice(*ref.rows)]

    def _check(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        expected = self._shapes[name]
        where = f"tensor {self._table[name].tensor!r} ({name})"
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{where} has the shape {list(tensor.shape)}, but config.json asks for {list(expected)}.",
                hint=FETCH_HINT,
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{where} holds {tensor.dtype}, not floating point numbers.",
                hint="Quantized checkpoints are not supported; use the original one.",
            )
        # Any number that is not finite is the smallest or the largest; 30 times as fast as looking at each.
        if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
            raise CheckpointError(f"{where} holds numbers that are not finite.", hint=FETCH_HINT)
        return tensor


class HeldWeights(ModelWeights):
    """Weights that stay in memory once they were read, in one form: in float32 as soon as that was asked for."""

    def __init__(self, source: ModelWeights) -> None:
        self.__dict__.update(source.__dict__)
        self._source = source
        self._held: dict[str, torch.Tensor] = {}

    def read(self, name: str) -> torch.Tensor:
        """One canonical weight; raises as the source's does."""
        if name not in self._held:
            self._held[name] = self._source.read(name)
        return self._held[name]

    def read_f32(self, name: str) -> torch.Tensor:
        """One canonical weight as float32: the kept tensor itself, not to be changed."""
        self._held[name] = self.read(name).float()
        return self._held[name]


def _used_rows(table: WeightTable) -> dict[str, int]:
    """How many rows the parts of each fused tensor have together."""
    used: dict[str, int] = {}
    for ref in table.values():
        if ref.rows is not None:
            used[ref.tensor] = max(used.get(ref.tensor, 0), ref.rows[1])
    return used
