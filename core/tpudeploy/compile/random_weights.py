"""Random numbers in place of a layer's weights, to compile a net's shape with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tpudeploy.contracts.base import digest_json
from tpudeploy.contracts.dtypes import Array
from tpudeploy.graph.onnx_builder import OnnxBuilder
from tpudeploy.graph.weight_file import write_weight_file

_GROUP = 64
_SMALLEST_EXPONENT = -3.0


class RandomWeights:
    """Weight files of random numbers in a folder; graphs over weights of the same names and shapes share one.

    Nothing in them is folded away and no two parts are alike: no zeros, no ones, and every group of 64 inputs has a
    middle and a width of its own, from numbers that 16 bits hold only roughly up to ones near one.

    :param folder: where they lie; belongs to one process, and is removed by whoever made it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, dict[str, tuple[int, int]]]] = {}
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()
        self._writing: dict[str, threading.Lock] = {}  # one a file: a layer's need not wait for a vocabulary's

    def expect(self, graph: OnnxBuilder) -> None:
        """Say that a graph will be :meth:`done` with its file one day."""
        key = _key(graph)
        self._users[key] = self._users.get(key, 0) + 1

    def done(self, graph: OnnxBuilder) -> None:
        """A graph needs its file no more; the last one's is removed: it is four times what it is compiled to."""
        with self._lock:
            key = _key(graph)
            self._users[key] -= 1
            if not self._users[key] and key in self._files:
                self._files.pop(key)[0].unlink()

    def file(self, graph: OnnxBuilder) -> tuple[Path, dict[str, tuple[int, int]]]:
        """The weight file for a graph, and where in it each array lies."""
        key = _key(graph)
        with self._lock:
            writing = self._writing.setdefault(key, threading.Lock())
        with writing:
            if key not in self._files:
                path = self.folder / f"random_{key[:16]}.npz"
                self._files[key] = (path, write_weight_file(path, _arrays(graph)).entries)
            return self._files[key]


def _key(graph: OnnxBuilder) -> str:
    return digest_json(sorted(graph.weights.items()))


def _arrays(graph: OnnxBuilder) -> Iterator[tuple[str, Array]]:
    random = np.random.default_rng(0)
    for name, shape in graph.weights.items():
        numbers = random.random(shape, dtype=np.float32)
        if len(shape) < 2:
            yield name, numbers + np.float32(0.5)
            continue
        groups = -(-shape[0] // _GROUP)
        middle = random.random((groups, 1, shape[1]), dtype=np.float32)
        width = np.float32(10) ** (random.random((groups, 1, shape[1]), dtype=np.float32) * _SMALLEST_EXPONENT)
        for group in range(groups):
            rows = numbers[group * _GROUP : (group + 1) * _GROUP]
            rows -= middle[group]
            rows *= width[group]
        yield name, numbers
