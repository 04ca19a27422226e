"""One interface over the two formats in which checkpoints are published: safetensors and torch ``.bin`` shards.

Tensors are read one at a time, on demand. ``.bin`` files go through torch's ``weights_only`` unpickler, memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpudeploy.contracts.base import digest_json
from tpudeploy.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_LFS_POINTER = b"version https://git-lfs"
FETCH_HINT = "Fetch the checkpoint again, or point --model-dir at a complete one."


class Checkpoint:
    """A checkpoint folder: its config and its tensors.

    :param folder: the folder; it is only ever read.
    :raises CheckpointError: no such folder, no readable config.json, no weights, or a missing shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self._files = _tensor_files(folder)
        self._bin_shard: tuple[Path, Mapping[str, torch.Tensor]] | None = None

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._files)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold weights, sorted."""
        return tuple(sorted(set(self._files.values())))

    def fingerprint(self) -> str:
        """SHA-256 (hex) that changes when config or weight files change: names, sizes and times, not contents.

        Reading 12 GB before each run only to learn that nothing changed is no option; compile stages are
        keyed by contents.
        """
        stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.weight_files]
        return digest_json({"config": self.config, "files": stats})

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the element type in which it is stored.

        :raises CheckpointError: it does not exist, or its file is truncated or corrupt.
        """
        if name not in self._files:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}.", hint=FETCH_HINT)
        path = self._files[name]
        return self._read_safetensors(path, name) if path.suffix == ".safetensors" else self._read_bin(path, name)

    def _read_safetensors(self, path: Path, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with _readable(path), safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def _read_bin(self, path: Path, name: str) -> torch.Tensor:
        if self._bin_shard is None or self._bin_shard[0] != path:
            self._bin_shard = (path, _load_bin(path))
        if name not in self._bin_shard[1]:
            raise CheckpointError(f"{path} has no tensor {name!r}, although the index says so.", hint=FETCH_HINT)
        return self._bin_shard[1][name]


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder, whose weights need not be there.

    :raises CheckpointError: no such folder, or no readable config.json.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}.", hint="Give --model-dir an existing one.")
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}.", hint=FETCH_HINT) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", hint=FETCH_HINT) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.", hint=FETCH_HINT)
    return value


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index where there is one, from the file itself otherwise."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _from_index(folder, index)
        if (folder / stem).is_file():
            return _from_single(folder / stem)
    raise CheckpointError(
        f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of shards.",
        hint=FETCH_HINT,
    )


def _from_index(folder: Path, index: Path) -> dict[str, Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files.", hint=FETCH_HINT)
    shards = sorted(set(weight_map.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index} names the shard {outside[0]!r}, which is not a file of the folder.")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}.",
            hint=FETCH_HINT,
        )
    return {name: folder / shard for name, shard in weight_map.items()}


def _from_single(path: Path) -> dict[str, Path]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with _readable(path), safe_open(path, framework="np") as file:
            return dict.fromkeys(file.keys(), path)
    return dict.fromkeys(_load_bin(path), path)


def _load_bin(path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    with _readable(path):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # an old, non-zip file
    if not isinstance(content, dict) or not all(_is_plain(value) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a table of tensors.", hint=FETCH_HINT)
    return {name: tensor.detach() for name, tensor in content.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with numbers in it: not sparse, not one of which only the shape was stored."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever the libraries raise on a bad file into one error that names the file."""
    try:
        yield
    except Exception as error:  # unpickling garbage raises nearly everything there is
        if _is_lfs_pointer(path):
            hint = "Run `git lfs pull` in that folder."
            raise CheckpointError(f"{path} is only a Git LFS pointer.", hint=hint) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason[:200]}.", hint=FETCH_HINT) from error


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False
