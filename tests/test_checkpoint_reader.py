"""Reading checkpoints: every format they come in, everything that may be wrong with one, and nothing that runs."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tpudeploy.checkpoint.reader import Checkpoint
from tpudeploy.errors import CheckpointError

Writer = Callable[[dict[str, torch.Tensor], Path], None]

TENSORS = {
    "embedding": torch.arange(24, dtype=torch.float16).reshape(6, 4),
    "layer.weight": torch.linspace(-1, 1, 12, dtype=torch.float32).reshape(3, 4),
    "layer.bias": torch.tensor([1.5, -2.25, 0.125], dtype=torch.bfloat16),
    "head": torch.ones(2, 4, dtype=torch.float16),
}


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)


def write_bin(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


def write_old_bin(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


FORMATS = [
    pytest.param("model.safetensors", write_safetensors, id="safetensors"),
    pytest.param("pytorch_model.bin", write_bin, id="bin"),
    pytest.param("pytorch_model.bin", write_old_bin, id="old-bin"),
]


def write_single(folder: Path, name: str, write: Writer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "test"}')
    write(TENSORS, folder / name)
    return folder


def write_sharded(folder: Path, name: str, write: Writer) -> Path:
    """Two shards and an index, as large checkpoints are published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "test"}')
    stem, _, ending = name.partition(".")
    weight_map = {}
    for number, names in ((1, ("embedding", "layer.weight")), (2, ("layer.bias", "head"))):
        shard = f"{stem}-0000{number}-of-00002.{ending}"
        write({key: TENSORS[key] for key in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in sorted(checkpoint.tensor_names)}


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestFormats:
    @pytest.mark.parametrize("arrange", [write_single, write_sharded])
    @pytest.mark.parametrize(("name", "write"), FORMATS)
    def test_numbers_and_types_come_back(
        self, tmp_path: Path, arrange: Callable[..., Path], name: str, write: Writer
    ) -> None:
        found = read_all(arrange(tmp_path, name, write))
        assert found.keys() == TENSORS.keys()
        for key, tensor in TENSORS.items():
            assert found[key].dtype is tensor.dtype
            assert torch.equal(found[key], tensor)

    @pytest.mark.parametrize("arrange", [write_single, write_sharded])
    @pytest.mark.parametrize(("name", "write"), FORMATS)
    def test_folder_is_never_written_to(
        self, tmp_path: Path, arrange: Callable[..., Path], name: str, write: Writer
    ) -> None:
        folder = arrange(tmp_path / "checkpoint", name, write)
        before, changed = snapshot(folder), folder.stat().st_mtime_ns
        checkpoint = Checkpoint(folder)
        checkpoint.fingerprint()
        read_all(folder)
        assert snapshot(folder) == before
        assert folder.stat().st_mtime_ns == changed

    @pytest.mark.parametrize(("name", "write"), FORMATS[1:])
    def test_shards_in_any_order(self, tmp_path: Path, name: str, write: Writer) -> None:
        checkpoint = Checkpoint(write_sharded(tmp_path, name, write))
        for key in ("head", "embedding", "layer.bias", "layer.weight", "head"):
            assert torch.equal(checkpoint.read(key), TENSORS[key])

    def test_shards_that_are_links_as_in_the_hub_cache(self, tmp_path: Path) -> None:
        origin = write_sharded(tmp_path / "blobs", "model.safetensors", write_safetensors)
        folder = tmp_path / "snapshot"
        folder.mkdir()
        for path in origin.iterdir():
            (folder / path.name).symlink_to(path)
        assert read_all(folder).keys() == TENSORS.keys()

    def test_safetensors_win_over_bin(self, tmp_path: Path) -> None:
        write_single(tmp_path, "pytorch_model.bin", write_bin)
        write_safetensors({"only": torch.ones(1)}, tmp_path / "model.safetensors")
        assert Checkpoint(tmp_path).tensor_names == {"only"}

    @pytest.mark.parametrize("write", [write_bin, write_old_bin])
    def test_parameters_are_numbers_like_others(self, tmp_path: Path, write: Writer) -> None:
        (tmp_path / "config.json").write_text("{}")
        write({"a": torch.nn.Parameter(torch.ones(3))}, tmp_path / "pytorch_model.bin")
        tensor = Checkpoint(tmp_path).read("a")
        assert not tensor.requires_grad
        assert tensor.numpy().tolist() == [1, 1, 1]

    def test_weight_files_are_named(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(write_sharded(tmp_path, "model.safetensors", write_safetensors))
        assert [path.name for path in checkpoint.weight_files] == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]


class TestFingerprint:
    def test_same_files_same_fingerprint(self, tmp_path: Path) -> None:
        folder = write_sharded(tmp_path, "model.safetensors", write_safetensors)
        assert Checkpoint(folder).fingerprint() == Checkpoint(folder).fingerprint()

    def test_what_changes_it(self, tmp_path: Path) -> None:
        folder = write_single(tmp_path, "model.safetensors", write_safetensors)
        seen = [Checkpoint(folder).fingerprint()]
        (folder / "config.json").write_text('{"model_type": "other"}')
        seen.append(Checkpoint(folder).fingerprint())
        os.utime(folder / "model.safetensors", (1, 1))
        seen.append(Checkpoint(folder).fingerprint())
        write_safetensors({"a": torch.ones(1)}, folder / "model.safetensors")
        os.utime(folder / "model.safetensors", (1, 1))
        seen.append(Checkpoint(folder).fingerprint())
        assert len(set(seen)) == 4


class TestMissing:
    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no checkpoint folder .*absent.*--model-dir"):
            Checkpoint(tmp_path / "absent")

    def test_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="no checkpoint folder"):
            Checkpoint(tmp_path / "file")

    def test_config(self, tmp_path: Path) -> None:
        write_safetensors(TENSORS, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            Checkpoint(tmp_path)

    def test_weights(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
            Checkpoint(tmp_path)

    @pytest.mark.parametrize(("name", "write"), FORMATS)
    def test_shard(self, tmp_path: Path, name: str, write: Writer) -> None:
        folder = write_sharded(tmp_path, name, write)
        shard = next(folder.glob("*-00002-of-00002.*"))
        shard.unlink()
        with pytest.raises(CheckpointError, match=rf"lacks 1 of 2 weight files: {shard.name}\."):
            Checkpoint(folder)

    def test_many_shards_are_not_all_named(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        weight_map = {str(number): f"model-{number}.safetensors" for number in range(9)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"lacks 9 of 9 weight files: (\S+, ){3}\.\.\.\."):
            Checkpoint(tmp_path)

    @pytest.mark.parametrize(("name", "write"), FORMATS)
    def test_tensor(self, tmp_path: Path, name: str, write: Writer) -> None:
        checkpoint = Checkpoint(write_single(tmp_path, name, write))
        with pytest.raises(CheckpointError, match=r"has no tensor 'absent'"):
            checkpoint.read("absent")

    @pytest.mark.parametrize(("name", "write"), FORMATS)
    def test_tensor_that_only_the_index_knows(self, tmp_path: Path, name: str, write: Writer) -> None:
        folder = write_sharded(tmp_path, name, write)
        index = folder / f"{name}.index.json"
        content = json.loads(index.read_text())
        content["weight_map"]["ghost"] = content["weight_map"]["head"]
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="ghost"):
            Checkpoint(folder).read("ghost")


class TestCorrupt:
    @pytest.mark.parametrize("text", ["", "{", "[]", "1", '"text"', "\xff\xfe", "[" * 100_000])
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
    def test_json(self, tmp_path: Path, name: str, text: str) -> None:
        folder = write_sharded(tmp_path, "model.safetensors", write_safetensors)
        (folder / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            Checkpoint(folder)

    @pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}, {"a": ["model.safetensors"]}])
    def test_index_without_a_map(self, tmp_path: Path, weight_map: object) -> None:
        folder = write_sharded(tmp_path, "model.safetensors", write_safetensors)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match="no weight_map of tensor names to files"):
            Checkpoint(folder)

    @pytest.mark.parametrize("arrange", [write_single, write_sharded])
    @pytest.mark.parametrize(("name", "write"), FORMATS)
    @pytest.mark.parametrize("kept", [0.0, 0.2, 0.6, 0.99])
    def test_truncated(
        self, tmp_path: Path, arrange: Callable[..., Path], name: str, write: Writer, kept: float
    ) -> None:
        folder = arrange(tmp_path, name, write)
        path = max(folder.glob(f"*{Path(name).suffix}"))
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read: .*Fetch the checkpoint again"):
            read_all(folder)

    @pytest.mark.parametrize(("name", "write"), FORMATS)
    def test_damaged_anywhere(self, tmp_path: Path, name: str, write: Writer) -> None:
        """Whatever a byte is changed to, either numbers come back or a CheckpointError does."""
        path = write_single(tmp_path, name, write) / name
        data, dice, failures = path.read_bytes(), random.Random(0), 0  # noqa: S311
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(dice.randrange(1, 5)):
                damaged[dice.randrange(min(len(data), 700))] = dice.randrange(256)
            path.write_bytes(damaged)
            try:
                read_all(tmp_path)
            except CheckpointError:
                failures += 1
            except Warning:  # torch's remark on an odd pickle protocol; an error in tests only
                pass
        assert failures > 50

    def test_git_lfs_pointer(self, tmp_path: Path) -> None:
        folder = write_sharded(tmp_path, "model.safetensors", write_safetensors)
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 1\n"
        (folder / "model-00001-of-00002.safetensors").write_text(pointer)
        with pytest.raises(CheckpointError, match=r"00001-of-00002\.\w+ is only a Git LFS pointer.*git lfs pull"):
            read_all(folder)

    @pytest.mark.parametrize(
        "content",
        [
            [torch.ones(1)],
            {"model": {"a": torch.ones(1)}},
            {"a": torch.ones(1), "step": 5},
            torch.ones(1),
            {"a": torch.ones(2, 2).to_sparse()},
            {"a": torch.ones(2, device="meta")},
        ],
        ids=["list", "nested", "number", "tensor", "sparse", "meta"],
    )
    def test_bin_that_is_no_table_of_tensors(self, tmp_path: Path, content: object) -> None:
        (tmp_path / "config.json").write_text("{}")
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="does not hold a table of tensors"):
            Checkpoint(tmp_path)


class Malice:
    """Creates a file when it is unpickled by whoever runs what a pickle says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


class TestHostile:
    @pytest.mark.parametrize("old", [False, True])
    def test_pickle_that_runs_code(self, tmp_path: Path, old: bool) -> None:
        folder, proof = tmp_path / "checkpoint", tmp_path / "executed"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        content = {"a": torch.ones(1), "b": Malice(proof)}
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
            Checkpoint(folder)
        assert not proof.exists()

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
    def test_bare_pickle(self, tmp_path: Path, name: str) -> None:
        folder, proof = tmp_path / "checkpoint", tmp_path / "executed"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / name).write_bytes(pickle.dumps({"a": Malice(proof)}))
        with pytest.raises(CheckpointError, match="cannot be read"):
            Checkpoint(folder)
        assert not proof.exists()

    def test_shard_with_a_pickle(self, tmp_path: Path) -> None:
        folder, proof = write_sharded(tmp_path / "checkpoint", "pytorch_model.bin", write_bin), tmp_path / "executed"
        torch.save({"head": Malice(proof)}, folder / "pytorch_model-00002-of-00002.bin")
        checkpoint = Checkpoint(folder)
        assert torch.equal(checkpoint.read("embedding"), TENSORS["embedding"])
        with pytest.raises(CheckpointError, match="00002-of-00002"):
            checkpoint.read("head")
        assert not proof.exists()

    def test_code_beside_the_weights_is_not_run(self, tmp_path: Path) -> None:
        folder, proof = write_single(tmp_path / "checkpoint", "model.safetensors", write_safetensors), tmp_path / "ran"
        for name in ("modeling_chatglm.py", "configuration_chatglm.py", "__init__.py"):
            (folder / name).write_text(f"import os; os.mkdir({str(proof)!r})\n")
        (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_chatglm.X"}}')
        read_all(folder)
        assert not proof.exists()

    @pytest.mark.parametrize("shard", ["../secret.safetensors", "{outside}", "a/../../b", "..", ".", "", "a\0b"])
    def test_index_that_leaves_the_folder(self, tmp_path: Path, shard: str) -> None:
        folder = write_single(tmp_path / "checkpoint", "model.safetensors", write_safetensors)
        outside = tmp_path / "secret.safetensors"
        write_safetensors({"secret": torch.ones(1)}, outside)
        weight_map = {"secret": shard.format(outside=outside)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"not a file of the folder|lacks 1 of 1"):
            Checkpoint(folder)

    def test_index_that_names_another_kind_of_file(self, tmp_path: Path) -> None:
        folder = write_single(tmp_path, "model.safetensors", write_safetensors)
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "config.json"}}')
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
            Checkpoint(folder).read("a")
