"""The weight file of CPU nets: arrays of any type one after another, which ONNX files point into by offset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from typing_extensions import Self

from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.errors import StorageError

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class StoredArray:
    """Where one array lies in the file."""

    dtype: DType
    shape: tuple[int, ...]
    offset_bytes: int
    length_bytes: int


@dataclass
class StoredWeights:
    """A weight file that is being written; a context manager.

    :param path: the file; an existing one is replaced.
    """

    path: Path
    arrays: dict[str, StoredArray] = field(default_factory=dict)

    def __enter__(self) -> Self:
        try:
            self._stream = self.path.open("wb")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
        except OSError as failure:
            if error is None:
                raise StorageError(f"cannot write {self.path}: {failure.strerror}.") from failure

    def add(self, name: str, dtype: DType, shape: tuple[int, ...], parts: Iterable[Array]) -> None:
        """Write an array, part by part, and remember where it lies.

        :param dtype: its element type; the parts are of ``dtype.numpy``.
        :param shape: of the whole.
        :raises StorageError: the disk is full or fails.
        """
        try:
            offset = self._align()
            for part in parts:
                self._stream.write(np.ascontiguousarray(part).data)
            length = self._stream.tell() - offset
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}.", hint="Free some disk space.") from error
        self.arrays[name] = StoredArray(dtype, shape, offset, length)

    def _align(self) -> int:
        start = self._stream.tell()
        padding = -start % _ALIGNMENT_BYTES
        self._stream.write(bytes(padding))
        return start + padding
