"""Bundles as one file: what is packed comes out again, and everything else is refused before it does harm."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.torch_session import make_manifest, tiny_config

from tpudeploy.contracts.bundle import MANIFEST_NAME, Verification, VerificationOutcome
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.errors import BundleError, StorageError, TpuDeployError, UsageError
from tpudeploy.launch.bundles import find_bundle
from tpudeploy.launch.packing import pack, target_path
from tpudeploy.pack import archive, bundle_name, open_archive, pack_file, unpack
from tpudeploy.pack.archive import read_files
from tpudeploy.runtime import manifest_limits
from tpudeploy.runtime.bundle_store import Bundle, describe_file, encode_manifest, open_bundle, write_manifest
from tpudeploy.settings import Settings

PATHS = ("nets.bin", "empty.bin", "tokenizer/tokenizer.model")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Three files: one larger than a block that is read at once, one empty, one in a folder."""
    folder = tmp_path / "made"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "nets.bin").write_bytes(os.urandom(3_000_001))
    (folder / "empty.bin").touch()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"words")
    manifest = make_manifest(plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F32)).model_copy(
        update={
            "files": tuple(describe_file(folder, path) for path in PATHS),
            "tokenizer_files": ("tokenizer/tokenizer.model",),
        }
    )
    write_manifest(folder, manifest)
    return open_bundle(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPacking:
    def test_what_goes_in_comes_out(self, bundle: Bundle, tmp_path: Path, settings: Settings) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        assert packed.size_bytes == packed.path.stat().st_size
        assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).hexdigest()
        folder = unpack(packed.path, settings)
        assert content(folder) == content(bundle.folder)
        assert open_bundle(folder).manifest == bundle.manifest
        assert folder.parent == settings.bundles_dir
        digest = hashlib.sha256((bundle.folder / MANIFEST_NAME).read_bytes()).hexdigest()
        assert folder.name == f"{bundle_name(bundle.manifest)}-{digest[:10]}"

    def test_tar_reads_it_too(self, bundle: Bundle, tmp_path: Path) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        with tarfile.open(packed.path) as tar:
            assert tar.getnames() == [MANIFEST_NAME, *PATHS]
            stream = tar.extractfile("nets.bin")
            assert stream is not None
            assert stream.read() == (bundle.folder / "nets.bin").read_bytes()

    def test_equal_bundles_make_equal_files(self, bundle: Bundle, tmp_path: Path) -> None:
        first = pack(bundle, tmp_path / "a.tpubundle")
        os.utime(bundle.folder / "nets.bin", (1, 1))
        (bundle.folder / "nets.bin").chmod(0o600)
        assert pack(bundle, tmp_path / "b.tpubundle").sha256 == first.sha256

    def test_names_come_from_the_manifest(self, bundle: Bundle) -> None:
        manifest = bundle.manifest.model_copy(update={"model": "glm4", "variant": "9b"})
        stem = f"glm4-9b_{manifest.quant.mode.value}_seq64"
        assert bundle_name(manifest) == f"{stem}_cpu"
        two = manifest.model_copy(update={"nets": manifest.nets.model_copy(update={"chips": 2})})
        assert bundle_name(two) == f"{stem}_2dev_cpu"
        evil = manifest.model_copy(update={"model": "../../etc/\x1b[2J", "variant": ""})
        assert "/" not in bundle_name(evil)
        assert bundle_name(evil).isprintable()
        assert not bundle_name(evil).startswith(".")

    def test_where_it_goes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert target_path(None, "x") == tmp_path / "x.tpubundle"
        assert target_path(tmp_path, "x") == tmp_path / "x.tpubundle"
        assert target_path(Path("new"), "x") == tmp_path / "new"
        assert target_path(Path("new.tpubundle"), "x") == tmp_path / "new.tpubundle"

    def test_into_a_folder_with_its_verification(self, bundle: Bundle, tmp_path: Path) -> None:
        verification = Verification(outcome=VerificationOutcome.OK, backend="cpu", nets=7, worst_net_cosine=0.9999)
        before = (bundle.folder / MANIFEST_NAME).read_bytes()
        packed = pack(bundle, tmp_path / "folder", verification=verification)
        assert open_bundle(packed.path).manifest.verification == verification
        assert (bundle.folder / MANIFEST_NAME).read_bytes() == before  # files are linked, the manifest is not
        again = pack(open_bundle(packed.path), tmp_path / "x.tpubundle")
        assert open_archive(again.path).manifest.verification == verification

    def test_nothing_is_overwritten_unasked(self, bundle: Bundle, tmp_path: Path) -> None:
        target = tmp_path / "x.tpubundle"
        target.write_bytes(b"mine")
        with pytest.raises(UsageError, match="exists"):
            pack(bundle, target)
        assert target.read_bytes() == b"mine"
        pack(bundle, target, force=True)
        assert open_archive(target).manifest == bundle.manifest
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "letter").touch()
        with pytest.raises(UsageError, match="not empty"):
            pack_folder_over(bundle, folder)
        assert (folder / "letter").is_file()

    def test_a_folder_that_is_a_bundle_stays_one(self, bundle: Bundle, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        pack(bundle, folder)
        before = content(folder)
        with pytest.raises(UsageError, match="exists and is not empty") as caught:
            pack(bundle, folder)
        assert "--force" in caught.value.hint
        assert content(folder) == before
        (folder / "nets.bin").unlink()
        pack(bundle, folder, force=True)
        assert content(folder) == before
        assert open_bundle(folder).manifest == bundle.manifest

    def test_a_damaged_bundle_is_not_packed(self, bundle: Bundle, tmp_path: Path) -> None:
        data = bytearray((bundle.folder / "nets.bin").read_bytes())
        data[2_000_000] ^= 1
        (bundle.folder / "nets.bin").write_bytes(data)
        for target in (tmp_path / "out" / "x.tpubundle", tmp_path / "out" / "folder"):
            with pytest.raises(BundleError, match="corrupt"):
                pack(bundle, target)
        assert content(tmp_path / "out") == {}

    def test_a_full_disk_is_told_before_and_during(
        self, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="are free"):
            patch.setattr("tpudeploy.pack.pack.free_bytes", lambda folder: 1000)
            pack(bundle, tmp_path / "out" / "x.tpubundle")
        monkeypatch.setattr(archive, "COPY_BYTES", 1 << 16)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            with pytest.raises(StorageError, match="grows larger"):
                pack(bundle, tmp_path / "out" / "x.tpubundle")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert content(tmp_path / "out") == {}


def pack_folder_over(bundle: Bundle, folder: Path) -> None:
    from tpudeploy.pack import pack_folder

    pack_folder(bundle, bundle.manifest, folder, force=True)


class TestUnpacking:
    def test_only_once(self, bundle: Bundle, tmp_path: Path, settings: Settings) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        told: list[int] = []
        first = unpack(packed.path, settings, progress=lambda done, total: told.append(done))
        assert told[-1] == sum(file.size_bytes for file in bundle.manifest.files)
        stamp = first.stat().st_mtime_ns
        second = unpack(packed.path, settings, progress=lambda done, total: pytest.fail("unpacked again"))
        assert (second, second.stat().st_mtime_ns) == (first, stamp)

    def test_a_damaged_copy_is_told_and_made_again_by_force(
        self, bundle: Bundle, tmp_path: Path, settings: Settings
    ) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        folder = unpack(packed.path, settings)
        (folder / "nets.bin").write_bytes(bytes(3_000_001))
        with pytest.raises(BundleError, match="corrupt") as caught:
            open_bundle(unpack(packed.path, settings))
        assert "--force" in caught.value.hint
        (folder / MANIFEST_NAME).write_text("{}")
        with pytest.raises(BundleError, match="does not hold") as caught:
            unpack(packed.path, settings)
        assert "--force" in caught.value.hint
        assert content(unpack(packed.path, settings, force=True)) == content(bundle.folder)

    def test_a_full_disk_is_told_before_anything_is_written(
        self, bundle: Bundle, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        monkeypatch.setattr(unpack_module_free(), "free_bytes", lambda folder: 1 << 20)
        with pytest.raises(StorageError, match=r"GB are free"):
            unpack(packed.path, settings)
        assert list(settings.bundles_dir.glob("*")) == []

    @pytest.mark.parametrize("how", ["interrupt", "kill"])
    def test_interrupted_it_leaves_nothing_that_looks_whole(
        self, bundle: Bundle, tmp_path: Path, settings: Settings, how: str
    ) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        code = (
            "import sys, time, pathlib\n"
            "from tpudeploy.pack import archive, unpack\n"
            "from tpudeploy.settings import Settings\n"
            "archive.COPY_BYTES = 1 << 16\n"
            "def slow(done, total):\n"
            "    print(done, flush=True)\n"
            "    time.sleep(0.05)\n"
            f"unpack(pathlib.Path({str(packed.path)!r}), Settings(home={str(settings.home)!r}), progress=slow)\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            for _ in range(5):
                child.stdout.readline()
            child.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
            child.wait(timeout=30)
        visible = [path for path in settings.bundles_dir.glob("*") if not path.name.startswith(".")]
        assert visible == []
        assert content(unpack(packed.path, settings)) == content(bundle.folder)
        assert [path for path in settings.bundles_dir.iterdir() if path.name.startswith(".")] == []

    def test_two_at_once_unpack_one(self, bundle: Bundle, tmp_path: Path, settings: Settings) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        code = (
            "import pathlib, sys\n"
            "from tpudeploy.pack import unpack\n"
            "from tpudeploy.settings import Settings\n"
            f"print(unpack(pathlib.Path({str(packed.path)!r}), Settings(home={str(settings.home)!r})))\n"
        )
        children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        said = [child.communicate(timeout=60)[0].strip() for child in children]
        assert len(set(said)) == 1
        assert content(Path(said[0])) == content(bundle.folder)
        assert len(list(settings.bundles_dir.iterdir())) == 1

    def test_the_same_bundle_is_not_unpacked_beside_itself(
        self, bundle: Bundle, tmp_path: Path, settings: Settings
    ) -> None:
        packed = pack(bundle, tmp_path / "x.tpubundle")
        compiled = settings.bundles_dir / "compiled"
        pack(bundle, compiled)
        assert unpack(packed.path, settings) == compiled
        nets = compiled / "nets.bin"
        nets.unlink()
        assert unpack(packed.path, settings, force=True) == compiled
        assert content(compiled) == content(bundle.folder)
        assert list(settings.bundles_dir.iterdir()) == [compiled]

    def test_by_name_from_the_local_store(self, bundle: Bundle, tmp_path: Path, settings: Settings) -> None:
        pack_file(bundle, bundle.manifest, settings.pulled_dir / "mine.tpubundle")
        folder = find_bundle(Path("mine"), settings)
        assert content(folder) == content(bundle.folder)
        assert find_bundle(Path("mine.tpubundle"), settings) == folder
        assert find_bundle(Path(folder.name), settings) == folder
        assert find_bundle(Path(folder.name[:-4]), settings) == folder
        assert find_bundle(folder, settings) == folder
        with pytest.raises(BundleError, match="no bundle other") as caught:
            find_bundle(Path("other"), settings)
        assert "mine.tpubundle" in caught.value.hint
        pack_file(bundle, bundle.manifest, settings.pulled_dir / "minute.tpubundle")
        assert content(find_bundle(Path("min"), settings)) == content(bundle.folder)  # the same bundle twice is one
        verification = Verification(outcome=VerificationOutcome.OK, backend="cpu")
        pack(bundle, settings.pulled_dir / "mint.tpubundle", verification=verification)
        with pytest.raises(BundleError, match="more than one") as caught:
            find_bundle(Path("min"), settings)
        assert "mine.tpubundle (not verified)" in caught.value.hint
        assert "mint.tpubundle (verified: ok)" in caught.value.hint
        with pytest.raises(BundleError, match="no bundle"):
            find_bundle(tmp_path / "mine", settings)
        with pytest.raises(BundleError, match="an address") as caught:
            find_bundle(Path("https://host/mine.tpubundle"), settings)
        assert "tpudeploy pull" in caught.value.hint


def unpack_module_free() -> Any:
    """The module, which the package's function of the same name hides."""
    return sys.modules["tpudeploy.pack.unpack"]


# --- hostile files -------------------------------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, data: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def members_of(bundle: Bundle) -> Members:
    names = [MANIFEST_NAME, *(file.path for file in bundle.manifest.files)]
    return [member(name, (bundle.folder / name).read_bytes()) for name in names]


def written(path: Path, members: Members, end: bytes = bytes(1024)) -> Path:
    out = io.BytesIO()
    for info, data in members:
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    path.write_bytes(out.getvalue() + end)
    return path


def with_manifest(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Members:
    """A bundle whose manifest was edited."""
    made = json.loads((bundle.folder / MANIFEST_NAME).read_text())
    change(made)
    return [member(MANIFEST_NAME, json.dumps(made).encode()), *members_of(bundle)[1:]]


def renamed(name: str) -> Callable[[Bundle], Members]:
    """Both manifest and member call a file otherwise."""

    def make(bundle: Bundle) -> Members:
        members = with_manifest(bundle, lambda m: m["files"][1].update(path=name))
        members[2] = member(name, b"")
        return members

    return make


def replaced(index: int, **fields: Any) -> Callable[[Bundle], Members]:
    """A member of another kind."""

    def make(bundle: Bundle) -> Members:
        members = members_of(bundle)
        info, data = members[index]
        members[index] = member(info.name, b"" if fields.get("type") else data, **fields)
        return members

    return make


def flipped(bundle: Bundle) -> Members:
    members = members_of(bundle)
    data = bytearray(members[1][1])
    data[1_500_000] ^= 0x10
    members[1] = member("nets.bin", bytes(data))
    return members


def listed(count: int) -> Callable[[Bundle], Members]:
    """A manifest of that many files."""

    def change(made: dict[str, Any]) -> None:
        made["files"] += [{"path": f"f{i}", "size_bytes": 0, "sha256": "0" * 64} for i in range(count)]

    return lambda bundle: with_manifest(bundle, change)


def net_of(**fields: Any) -> Callable[[Bundle], Members]:
    return lambda bundle: with_manifest(bundle, lambda m: m["nets"]["nets"][0].update(fields))


def shaped(shape: list[int]) -> Callable[[Bundle], Members]:
    return lambda bundle: with_manifest(bundle, lambda m: m["nets"]["nets"][0]["inputs"][0].update(shape=shape))


def nets_of(**fields: Any) -> Callable[[Bundle], Members]:
    return lambda bundle: with_manifest(bundle, lambda m: m["nets"].update(fields))


def config_of(**fields: Any) -> Callable[[Bundle], Members]:
    return lambda bundle: with_manifest(bundle, lambda m: m["nets"]["config"].update(fields))


HOSTILE: dict[str, tuple[Callable[[Bundle], Members], str]] = {
    "traversal": (renamed("../escaped"), r"files\.1\.path"),
    "traversal inside": (renamed("tokenizer/../../escaped"), r"files\.1\.path"),
    "absolute": (renamed("/etc/escaped"), r"files\.1\.path"),
    "backslash": (renamed("..\\escaped"), r"files\.1\.path"),
    "escape sequence": (renamed("\x1b[2Jevil"), "control characters"),
    "line end": (renamed("evil\nerror: all is well"), "control characters"),
    "long name": (renamed("x" * 300), "too long"),
    "file below a file": (renamed("nets.bin/x"), "must not list nets.bin/x"),
    "file below the manifest": (renamed(f"{MANIFEST_NAME}/x"), "must not list"),
    "second manifest": (renamed(MANIFEST_NAME), "must not list"),
    "listed twice": (lambda b: with_manifest(b, lambda m: m["files"].append(m["files"][0])), "must not list nets.bin"),
    "member moved outside": (lambda b: [*members_of(b)[:2], member("../escaped", b"")], "holds '../escaped'"),
    "symbolic link": (replaced(2, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (replaced(2, type=tarfile.LNKTYPE, linkname="nets.bin"), "is a link"),
    "device": (replaced(2, type=tarfile.CHRTYPE, devmajor=1, devminor=5), "a device"),
    "pipe": (replaced(2, type=tarfile.FIFOTYPE), "a device"),
    "folder": (replaced(2, type=tarfile.DIRTYPE), "something else"),
    "sparse": (replaced(2, type=tarfile.GNUTYPE_SPARSE), "something else|no bundle"),
    "long-name extension": (replaced(2, type=tarfile.GNUTYPE_LONGNAME), "something else"),
    "pax extension": (replaced(2, type=tarfile.XHDTYPE), "something else"),
    "linked manifest": (replaced(0, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "repeated member": (lambda b: [*members_of(b), members_of(b)[1]], "that its manifest does not list"),
    "small further member": (lambda b: [*members_of(b), member("more", b"x")], "goes on after the last"),
    "other order": (lambda b: [members_of(b)[i] for i in (0, 2, 1, 3)], "holds 'empty.bin' of 0 bytes where"),
    "missing member": (lambda b: members_of(b)[:-1], "damaged: end of file header"),
    "member too small": (
        lambda b: [*members_of(b)[:1], member("nets.bin", bytes(3_000_000)), *members_of(b)[2:]],
        "3000000 bytes where",
    ),
    "wrong content": (flipped, r"nets\.bin in .* is corrupt"),
    "wrong digest": (lambda b: with_manifest(b, lambda m: m["files"][0].update(sha256="0" * 64)), "is corrupt"),
    "claims terabytes": (lambda b: with_manifest(b, lambda m: m["files"][0].update(size_bytes=10**12)), "truncated"),
    "claims a number of 4000 digits": (
        lambda b: with_manifest(b, lambda m: m["files"][0].update(size_bytes=10**4000)),
        "claims more than|size_bytes",
    ),
    "100,000 files": (listed(100_000), "over 16 MiB|claims more than 20000 files"),
    "30,000 files": (listed(30_000), "claims more than 20000 files"),
    "no manifest": (lambda b: members_of(b)[1:], "does not begin with manifest.json"),
    "deep JSON": (lambda b: [member(MANIFEST_NAME, b'{"a":' * 50_000)], "not JSON"),
    "not JSON": (lambda b: [member(MANIFEST_NAME, b"\xff\xfe")], "not JSON"),
    "large manifest": (lambda b: [member(MANIFEST_NAME, b" " * (17 << 20))], "manifest claims 17825792 bytes"),
    "field with an escape sequence": (
        lambda b: with_manifest(b, lambda m: m.update({"\x1b[2J" * 999: 1})),
        "not a valid",
    ),
    "unknown field": (lambda b: with_manifest(b, lambda m: m.update(surprise=1)), "surprise"),
    "huge shape": (shaped([1, 2**40, 2**40]), "shape that no tensor has"),
    "negative shape": (shaped([-1, 4]), "shape that no tensor has"),
    "many dimensions": (shaped([1] * 100), "shape that no tensor has"),
    "huge tensor": (shaped([2**20, 2**20]), "GB"),
    "huge sequence": (nets_of(seq_length=10**15), "claims more than .* tokens of sequence"),
    "many chips": (nets_of(chips=10**9), "claims more than 64 chips"),
    "many layers": (config_of(num_layers=10**12), "claims more than 2000 layers"),
    "endless base": (config_of(rope_theta=1e999), "not finite"),
    "other chip": (net_of(chip=3), "none of its 1 chips"),
    "other layer": (net_of(layer=77), "none of its"),
    "net's name": (net_of(name="\x1b[31m"), "control characters|names no file"),
    "long stage": (net_of(stage={"new_tokens": 10**18, "cache_length": 0}), "more tokens than any model"),
    "model's name": (lambda b: with_manifest(b, lambda m: m.update(model="\x1b[2J")), "control characters"),
    "no net set": (lambda b: with_manifest(b, lambda m: m.update(nets=None)), "nets"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(bundle: Bundle, tmp_path: Path, settings: Settings, case: str) -> None:
    make, message = HOSTILE[case]
    path = written(tmp_path / "evil.tpubundle", make(bundle))
    before = sorted(tmp_path.rglob("*"))
    start = time.monotonic()
    with pytest.raises(BundleError, match=message) as caught:
        unpack(path, settings)
    assert time.monotonic() - start < 60  # refused, not worked through
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 2000
    assert caught.value.hint
    outside = [found for found in sorted(tmp_path.rglob("*")) if settings.home not in (found, *found.parents)]
    assert outside == [found for found in before if settings.home not in (found, *found.parents)]
    assert list(settings.bundles_dir.glob("*")) == []
    with pytest.raises(BundleError):
        read_files(open_archive(path), None)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3000)


def within_header(path: Path) -> None:
    os.truncate(path, 300)


def sparse_tail(path: Path) -> None:
    os.truncate(path, 1 << 40)


def damaged_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def gzipped(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


def negative_size(path: Path) -> None:
    with path.open("r+b") as stream:
        header = bytearray(stream.read(512))
        header[124:136] = b"\xff" * 12
        header[148:156] = b"        "
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        stream.seek(0)
        stream.write(header)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "truncated"),
        (within_header, "truncated"),
        (sparse_tail, "that its manifest does not list"),
        (damaged_checksum, "no bundle, or damaged"),
        (gzipped, "no bundle, or damaged"),
        (negative_size, "manifest claims -1 bytes"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: path.write_bytes(bytes(20_000)), "no bundle"),
        (lambda path: path.write_text("<!DOCTYPE html>" + "x" * 1000), "no bundle, or damaged"),
        (lambda path: path.unlink(), "no file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "no file"),
    ],
)
def test_damaged_files_are_refused(
    bundle: Bundle, tmp_path: Path, settings: Settings, damage: Callable[[Path], object], message: str
) -> None:
    packed = pack(bundle, tmp_path / "x.tpubundle")
    damage(packed.path)
    with pytest.raises(BundleError, match=message):
        unpack(packed.path, settings)
    assert list(settings.bundles_dir.glob("*")) == []


def test_every_shorter_file_is_refused(bundle: Bundle, tmp_path: Path, settings: Settings) -> None:
    packed = pack(bundle, tmp_path / "x.tpubundle")
    whole = packed.path.read_bytes()
    for length in [*range(0, 20_000, 997), *range(20_000, len(whole) - 1024, 300_007)]:
        packed.path.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            unpack(packed.path, settings)


def test_a_huge_manifest_is_not_read(tmp_path: Path, settings: Settings) -> None:
    """A gigabyte of manifest, as a header claims it and as a sparse file of that size brings it."""
    path = tmp_path / "x.tpubundle"
    info = tarfile.TarInfo(MANIFEST_NAME)
    info.size = 1 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, (1 << 30) + 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match="claims 1073741824 bytes"):
        unpack(path, settings)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / MANIFEST_NAME).touch()
    os.truncate(folder / MANIFEST_NAME, 1 << 30)
    with pytest.raises(BundleError, match="over 16 MiB"):
        open_bundle(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB


def test_random_damage_never_ends_in_a_defect(bundle: Bundle, tmp_path: Path, settings: Settings) -> None:
    """Bytes of headers and manifest, changed at random: refused by one clear error, or harmless."""
    import random

    packed = pack(bundle, tmp_path / "x.tpubundle")
    whole = packed.path.read_bytes()
    head = 512 + len(encode_manifest(bundle.manifest)) + 1024
    randomly = random.Random(1)  # noqa: S311 - repeatable on purpose
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(randomly.randint(1, 4)):
            data[randomly.randrange(head)] = randomly.randrange(256)
        packed.path.write_bytes(data)
        try:
            read_files(open_archive(packed.path), None)
        except TpuDeployError as error:
            refused += 1
            assert error.message.isprintable()
    assert refused > 200


def test_real_models_are_within_the_limits() -> None:
    """A model far larger than any that fits on a chip, with more stages than anybody compiles."""
    config = tiny_config().model_copy(
        update={"num_layers": 200, "seq_length": 1 << 20, "hidden_size": 16384, "vocab_size": 300_000}
    )
    made = make_manifest(
        plan_nets(config, NetPlan(seq_length=131072, decode_cache_lengths=(512, 4096, 131072)), DType.F16)
    )
    assert manifest_limits.find_absurdity(made) == ""
    assert len(encode_manifest(made)) < manifest_limits.MANIFEST_LIMIT_BYTES / 2
