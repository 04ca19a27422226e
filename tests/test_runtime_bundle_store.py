"""Opening bundles: what is accepted, and one clear refusal for everything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.torch_session import make_manifest, tiny_config

from tpudeploy.contracts.bundle import FORMAT_VERSION, MANIFEST_NAME, Manifest
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.errors import BundleError, StorageError
from tpudeploy.runtime.bundle_store import describe_file, open_bundle, read_manifest, write_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A whole bundle of three files, one of them larger than a block that is read at once."""
    folder = tmp_path / "bundle"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "nets.bin").write_bytes(os.urandom(3_000_001))
    (folder / "empty.bin").touch()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"words")
    paths = ("nets.bin", "empty.bin", "tokenizer/tokenizer.model")
    manifest = make_manifest(plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F32)).model_copy(
        update={
            "files": tuple(describe_file(folder, path) for path in paths),
            "tokenizer_files": ("tokenizer/tokenizer.model",),
        }
    )
    write_manifest(folder, manifest)
    return folder


def edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_whole_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(bundle)
    assert opened.folder == bundle and opened.tokenizer_folder == bundle / "tokenizer"
    assert isinstance(opened.manifest, Manifest) and opened.manifest.nets.seq_length == 64
    assert read_manifest(bundle) == opened.manifest
    monkeypatch.chdir(bundle.parent)
    assert open_bundle(Path("bundle")).folder == bundle


def test_the_folder_itself_may_be_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert open_bundle(tmp_path / "link").folder == bundle


def test_writing_leaves_nothing_half_done(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle / MANIFEST_NAME).read_bytes()
    manifest = read_manifest(bundle)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_manifest(bundle, manifest.model_copy(update={"variant": "other"}))
    assert (bundle / MANIFEST_NAME).read_bytes() == before
    assert open_bundle(bundle).manifest == manifest


def test_no_bundle(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match="no bundle folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="no bundle folder"):
        open_bundle(bundle / "nets.bin")
    with pytest.raises(BundleError, match=f"no bundle: it has no {MANIFEST_NAME}"):
        open_bundle(tmp_path)


def damage_truncate(folder: Path) -> None:
    with (folder / "nets.bin").open("r+b") as stream:
        stream.truncate(3_000_000)


def damage_flip(folder: Path) -> None:
    with (folder / "nets.bin").open("r+b") as stream:
        stream.seek(2_500_000)
        byte = stream.read(1)[0]
        stream.seek(2_500_000)
        stream.write(bytes([byte ^ 1]))


def damage_link_inside(folder: Path) -> None:
    (folder / "empty.bin").unlink()
    (folder / "empty.bin").symlink_to("nets.bin")


def damage_link_outside(folder: Path) -> None:
    (folder.parent / "outside").write_bytes(b"words")
    (folder / "tokenizer" / "tokenizer.model").unlink()
    (folder / "tokenizer" / "tokenizer.model").symlink_to(folder.parent / "outside")


def damage_linked_folder(folder: Path) -> None:
    (folder / "tokenizer").rename(folder.parent / "moved")
    (folder / "tokenizer").symlink_to(folder.parent / "moved")


def damage_dangling(folder: Path) -> None:
    (folder / "more").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "nets.bin").unlink(), "lacks the file nets.bin"),
        (
            lambda folder: (folder / "tokenizer" / "tokenizer.model").unlink(),
            "lacks the file tokenizer/tokenizer.model",
        ),
        (lambda folder: (folder / "tokenizer" / "more.txt").touch(), "holds tokenizer/more.txt, .* not list"),
        (damage_truncate, "has 3000000 bytes, its manifest says 3000001"),
        (damage_flip, "nets.bin is corrupt: its SHA-256"),
        (damage_link_inside, "empty.bin, which is a link"),
        (damage_link_outside, "tokenizer/tokenizer.model, which is a link"),
        (damage_linked_folder, "tokenizer, which is a link"),
        (damage_dangling, "more, which is a link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe, which is a link or no file"),
    ],
)
def test_damaged_files(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "format version"),
        (b"{}", "format version"),
        (b'{"format_version": "1"}', "format version"),
        (b'{"format_version": true}', "format version"),
        (b'{"format_version": 0}', "format version"),
        (b'{"format_version": 1}', "not a valid manifest: model"),
        (b'{"format_version": %d, "new": 1}' % (FORMAT_VERSION + 1), f"version {FORMAT_VERSION + 1}, .* up to"),
    ],
)
def test_manifests_that_are_none(bundle: Path, text: bytes, message: str) -> None:
    (bundle / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_a_linked_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).rename(bundle.parent / "elsewhere.json")
    (bundle / MANIFEST_NAME).symlink_to(bundle.parent / "elsewhere.json")
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(bundle)


def set_path(path: str) -> Callable[[dict[str, object]], None]:
    def change(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, list)
        files[0]["path"] = path

    return change


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\\b", "a\0b", "./nets.bin"]
)
def test_paths_that_lead_outside(bundle: Path, path: str) -> None:
    edit(bundle, set_path(path))
    with pytest.raises(BundleError, match=r"files\.0\.path"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"].append(m["files"][0]), "must not list nets.bin"),
        (lambda m: m["files"].append({**m["files"][0], "path": MANIFEST_NAME}), f"must not list {MANIFEST_NAME}"),
        (lambda m: m["net_files"].pop("lm_head"), "no file for the net lm_head"),
        (lambda m: m["net_files"].update(lm_head="other.bin"), "no file for the net lm_head"),
        (lambda m: m.update(tokenizer_files=["tokenizer/other"]), "tokenizer file tokenizer/other"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["files"][0].update(sha256="0" * 63), "sha256"),
        (lambda m: m["files"][0].update(size_bytes=-1), "size_bytes"),
    ],
)
def test_manifests_that_contradict_themselves(
    bundle: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_an_unreadable_file(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def guarded(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == "nets.bin":
            raise PermissionError(13, "Permission denied")
        return original(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(BundleError, match=r"cannot read .*nets\.bin: Permission denied"):
        open_bundle(bundle)
