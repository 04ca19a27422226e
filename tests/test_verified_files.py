"""A bundle's files are read in full once; later starts look at them, and nothing that changed passes for known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.torch_session import make_manifest, tiny_config

from cli_support import environment, run_cli
from tpudeploy.contracts.bundle import MANIFEST_NAME
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.errors import BundleError
from tpudeploy.pack import pack_file, unpack
from tpudeploy.runtime import bundle_store
from tpudeploy.runtime.bundle_store import describe_file, open_bundle, read_manifest, write_manifest
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings

NETS, WORDS = "nets.bin", "tokenizer/tokenizer.model"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A whole bundle whose files are old enough to be recorded."""
    folder = tmp_path / "bundle"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / NETS).write_bytes(os.urandom(2_000_001))
    (folder / WORDS).write_bytes(b"words")
    manifest = make_manifest(plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F32)).model_copy(
        update={"files": tuple(describe_file(folder, path) for path in (NETS, WORDS)), "tokenizer_files": (WORDS,)}
    )
    write_manifest(folder, manifest)
    time.sleep(0.03)
    return folder


@pytest.fixture
def verified(tmp_path: Path) -> VerifiedFiles:
    return VerifiedFiles(tmp_path / "home")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that were read in full."""
    names: list[str] = []
    original = bundle_store._digest

    def noting(path: Path) -> tuple[int, str]:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(bundle_store, "_digest", noting)
    yield names


def record_of(verified: VerifiedFiles) -> Path:
    (path,) = verified._root.glob("*.json")
    return path


def flip(path: Path) -> None:
    """Another byte in the middle, in place: as large as before."""
    with path.open("r+b") as stream:
        stream.seek(1_000_000)
        byte = stream.read(1)[0]
        stream.seek(1_000_000)
        stream.write(bytes([byte ^ 1]))


def test_files_are_read_once(bundle: Path, verified: VerifiedFiles, read: list[str]) -> None:
    open_bundle(bundle, verified=verified)
    assert sorted(read) == ["nets.bin", "tokenizer.model"]
    open_bundle(bundle, verified=verified)
    open_bundle(bundle, verified=VerifiedFiles(verified._root.parent))  # another process
    assert len(read) == 2
    open_bundle(bundle)  # who brings no records reads all
    assert len(read) == 4


def test_without_contents_nothing_is_read_or_recorded(bundle: Path, verified: VerifiedFiles, read: list[str]) -> None:
    open_bundle(bundle, contents=False, verified=verified)
    assert not read
    assert not verified.known(bundle)


def test_reading_again_on_demand_finds_what_the_disk_lost(
    bundle: Path, verified: VerifiedFiles, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_bundle(bundle, verified=verified)
    forced = VerifiedFiles(verified._root.parent, reread=True)
    open_bundle(bundle, verified=forced)
    assert len(read) == 4
    # A disk that returns other bytes, with nothing written: only reading tells.
    monkeypatch.setattr(bundle_store, "_digest", lambda path: (0, "0" * 64))
    open_bundle(bundle, verified=verified)
    with pytest.raises(BundleError, match="corrupt"):
        open_bundle(bundle, verified=forced)
    with pytest.raises(BundleError, match="corrupt"):  # and from then on it is not trusted
        open_bundle(bundle, verified=verified)


def corrupt_in_place(path: Path) -> None:
    flip(path)


def corrupt_and_restore_mtime(path: Path) -> None:
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(os.urandom(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [corrupt_in_place, corrupt_and_restore_mtime, replace_by_another])
def test_a_file_that_was_changed_is_read_again(
    bundle: Path, verified: VerifiedFiles, change: Callable[[Path], None]
) -> None:
    open_bundle(bundle, verified=verified)
    size = (bundle / NETS).stat().st_size
    change(bundle / NETS)
    assert (bundle / NETS).stat().st_size == size
    with pytest.raises(BundleError, match=r"nets\.bin is corrupt"):
        open_bundle(bundle, verified=verified)


def test_a_file_that_is_cut_short_is_told_by_its_size(bundle: Path, verified: VerifiedFiles, read: list[str]) -> None:
    open_bundle(bundle, verified=verified)
    os.truncate(bundle / NETS, 5)
    with pytest.raises(BundleError, match="has 5 bytes, its manifest says 2000001"):
        open_bundle(bundle, verified=verified)
    assert len(read) == 2


def test_the_same_content_in_another_file_is_read_once(bundle: Path, verified: VerifiedFiles, read: list[str]) -> None:
    open_bundle(bundle, verified=verified)
    copy = bundle / "copy"
    shutil.copyfile(bundle / NETS, copy)
    copy.replace(bundle / NETS)
    time.sleep(0.03)
    open_bundle(bundle, verified=verified)
    open_bundle(bundle, verified=verified)
    assert read == ["nets.bin", "tokenizer.model", "nets.bin"]


def test_another_manifest_over_the_same_files(bundle: Path, verified: VerifiedFiles) -> None:
    open_bundle(bundle, verified=verified)
    content = json.loads((bundle / MANIFEST_NAME).read_text())
    content["files"][0]["sha256"] = "0" * 64
    (bundle / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="corrupt"):
        open_bundle(bundle, verified=verified)


def test_a_change_right_after_a_change_is_not_missed(bundle: Path, verified: VerifiedFiles) -> None:
    """Both may leave the same time stamps: so what was written just now is not recorded."""
    data = (bundle / NETS).read_bytes()
    for _ in range(20):
        (bundle / NETS).write_bytes(data)
        open_bundle(bundle, verified=verified)
        flip(bundle / NETS)
        with pytest.raises(BundleError, match="corrupt"):
            open_bundle(bundle, verified=verified)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"version": 2, "folder": "", "files": {}}',
        b'{"version": 1, "folder": "/elsewhere", "files": {}}',
        b'{"version": 1, "folder": "", "files": {"nets.bin": {"size_bytes": 1}}}',
    ],
)
def test_a_record_that_is_none(bundle: Path, verified: VerifiedFiles, read: list[str], text: bytes) -> None:
    open_bundle(bundle, verified=verified)
    record_of(verified).write_bytes(text)
    open_bundle(bundle, verified=verified)
    assert len(read) == 4  # read again,
    open_bundle(bundle, verified=verified)
    assert len(read) == 4  # and recorded anew


def test_a_home_that_cannot_be_written_only_verifies(bundle: Path, tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", Path("/proc/nowhere")):
        verified = VerifiedFiles(home)
        open_bundle(bundle, verified=verified)
        open_bundle(bundle, verified=verified)
        verified.forget(bundle)
    assert len(read) == 8
    flip(bundle / NETS)
    with pytest.raises(BundleError, match="corrupt"):
        open_bundle(bundle, verified=VerifiedFiles(Path("/proc/nowhere")))


def test_a_home_on_a_full_disk(
    bundle: Path, verified: VerifiedFiles, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(VerifiedFiles, "_write", staticmethod(full))
        open_bundle(bundle, verified=verified)
    open_bundle(bundle, verified=verified)
    assert len(read) == 4
    assert list(verified._root.iterdir()) == [record_of(verified)]


def test_two_processes_at_once(bundle: Path, verified: VerifiedFiles, read: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tpudeploy.runtime.bundle_store import open_bundle\n"
        "from tpudeploy.runtime.verified_files import VerifiedFiles\n"
        "for _ in range(30):\n"
        "    open_bundle(Path(sys.argv[1]), verified=VerifiedFiles(Path(sys.argv[2]), reread=True))\n"
    )
    command = [sys.executable, "-c", code, str(bundle), str(verified._root.parent)]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    open_bundle(bundle, verified=verified)
    assert not read
    assert list(verified._root.iterdir()) == [record_of(verified)]  # nothing half written is left


def test_records_of_bundles_that_are_gone_are_removed(bundle: Path, verified: VerifiedFiles) -> None:
    other = bundle.with_name("other")
    shutil.copytree(bundle, other)
    time.sleep(0.03)
    open_bundle(other, verified=verified)
    shutil.rmtree(other)
    open_bundle(bundle, verified=verified)
    assert verified.known(bundle)
    assert record_of(verified)


def test_a_packed_bundle_is_read_once(bundle: Path, tmp_path: Path, read: list[str]) -> None:
    opened = open_bundle(bundle, contents=False)
    packed = pack_file(opened, opened.manifest, tmp_path / "x.tpubundle")
    settings = Settings(home=tmp_path / "home")
    folder = unpack(packed.path, settings)
    assert open_bundle(folder, verified=VerifiedFiles(settings.home)).manifest == opened.manifest
    assert not read  # the file was read while it was unpacked, what came of it was not read at all
    flip(folder / NETS)
    with pytest.raises(BundleError, match="corrupt"):
        open_bundle(folder, verified=VerifiedFiles(settings.home))
    assert unpack(packed.path, settings, force=True) == folder
    open_bundle(folder, verified=VerifiedFiles(settings.home))
    assert read == ["nets.bin"]


def test_what_was_built_here_is_not_read_again_and_damage_is_told(tmp_path: Path, read: list[str]) -> None:
    env = environment(tmp_path / "home")
    command = ["run", "chatglm3:demo", "--quant", "int8", "--backend", "cpu", "--max-new-tokens", "2", "Hello"]
    for _ in range(2):
        done = run_cli(*command, env=env)
        assert done.returncode == 0, done.stderr
    built = set(read)
    (folder,) = (tmp_path / "home" / "bundles").iterdir()
    files = [Path(file.path).name for file in read_manifest(folder).files]
    assert sorted(read) == sorted(files)  # each once, when the manifest was written
    assert run_cli(*command, "--verify-files", env=env).returncode == 0
    assert sorted(read) == sorted([*files, *files])
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    assert largest.name in built
    with largest.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xa5\x5a\xa5")
    done = run_cli(*command, env=env)
    assert done.returncode == 6
    assert f"{largest.name} is corrupt" in done.stderr
    assert "--force" in done.stderr
