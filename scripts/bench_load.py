"""How many bytes a bundle's start reads, beside the size of the bundle, and how long that takes.

Usage, from the repository's root, with the package installed::

    python scripts/bench_load.py [--size-mb 2000] [--folder DIR]
    python scripts/bench_load.py --bundle DIR --libraries DIR

Bytes are those that the process asks the kernel for (``rchar`` of ``/proc/self/io``), whether or not they were cached.
Without ``--bundle``, a bundle of random bytes is made in ``--folder``, and a runtime library that reads its file once,
from beginning to end, is taken for granted. With it, a real bundle is loaded by libbmrt in this process, its libraries
from ``--libraries`` (those of a simulator will do: a folder as ``TPUDEPLOY_LIBSOPHON`` takes it); then what the library
itself reads is among the figures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tpudeploy.contracts.bundle import BundleFormat, CompilerInfo, Manifest
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.quant import QuantMode, resolve_quant
from tpudeploy.pack import pack_file, unpack
from tpudeploy.runtime.bundle_store import describe_file, open_bundle, write_manifest
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings

NETS = "model.bmodel"
LIBRARIES_VARIABLE = "TPUDEPLOY_LIBSOPHON"
BLOCK_BYTES = 1 << 20


def bytes_read() -> int:
    """What this process has read so far."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


def show(what: str, size_bytes: int, work: Callable[[], object]) -> None:
    """Do something, and print what it read."""
    before, started = bytes_read(), time.perf_counter()
    work()
    elapsed_s, count = time.perf_counter() - started, bytes_read() - before
    print(f"{what:60} {count / 1e6:10.1f} MB {count / size_bytes:6.2f} x bundle {elapsed_s:8.2f} s")


def make_bundle(folder: Path, size_bytes: int) -> Path:
    """A bundle whose nets are random bytes."""
    folder.mkdir(parents=True)
    with (folder / NETS).open("wb") as stream:
        for start in range(0, size_bytes, BLOCK_BYTES):
            stream.write(os.urandom(min(BLOCK_BYTES, size_bytes - start)))
    config = DecoderConfig(
        num_layers=1,
        hidden_size=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        ffn_size=64,
        vocab_size=100,
        seq_length=64,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rotary_dim=16,
    )
    nets = plan_nets(config, NetPlan(seq_length=64), DType.F16)
    manifest = Manifest(
        model="random",
        variant="",
        checkpoint_digest="",
        format=BundleFormat.BMODEL,
        quant=resolve_quant(QuantMode.INT8, DType.F16),
        nets=nets,
        net_files={net.name: NETS for net in nets.nets},
        compiler=CompilerInfo(name="none", version="0"),
        tpudeploy_version="0",
        files=(describe_file(folder, NETS),),
    )
    write_manifest(folder, manifest)
    return folder


def read_once(path: Path) -> None:
    """What a runtime library does at the least."""
    block = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(block):
            pass


def bench_random(folder: Path, size_bytes: int) -> None:
    """Every way in which a bundle comes to its first start, and the starts after."""
    bundle, settings = make_bundle(folder / "bundle", size_bytes), Settings(home=folder / "home")
    time.sleep(0.05)  # a file that was written just now is not recorded

    def start(place: Path, verified: VerifiedFiles | None) -> None:
        read_once(open_bundle(place, verified=verified).folder / NETS)

    verified = VerifiedFiles(settings.home)
    show("the runtime alone", size_bytes, lambda: read_once(bundle / NETS))
    show("folder, every start without records (as it was)", size_bytes, lambda: start(bundle, None))
    show("folder, first start", size_bytes, lambda: start(bundle, verified))
    show("folder, every later start", size_bytes, lambda: start(bundle, verified))
    opened = open_bundle(bundle, contents=False)
    packed = pack_file(opened, opened.manifest, folder / "bundle.tpubundle").path
    another = Settings(home=folder / "another")
    show("file, first start without records (as it was)", size_bytes, lambda: start(unpack(packed, settings), None))
    show(
        "file, first start: unpack, load",
        size_bytes,
        lambda: start(unpack(packed, another), VerifiedFiles(another.home)),
    )
    show("file, every later start", size_bytes, lambda: start(unpack(packed, another), VerifiedFiles(another.home)))


def bench_real(bundle: Path, libraries: Path) -> None:
    """A bundle through libbmrt in this process."""
    os.environ[LIBRARIES_VARIABLE] = str(libraries)
    from tpudeploy.plugins import registry
    from tpudeploy.runtime.engine import open_engine

    backend = registry().backend("bmrt")
    size_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as home:
        verified = VerifiedFiles(Path(home))

        def start(known: VerifiedFiles | None) -> None:
            open_engine(open_bundle(bundle, verified=known), backend).close()

        start(None)  # libraries and their own files
        show("every start without records (as it was)", size_bytes, lambda: start(None))
        show("first start", size_bytes, lambda: start(verified))
        show("every later start", size_bytes, lambda: start(verified))


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=2000, help="size of the bundle that is made")
    parser.add_argument("--folder", type=Path, help="where to make it; needs three times its size")
    parser.add_argument("--bundle", type=Path, help="a real bundle of bmodels instead")
    parser.add_argument("--libraries", type=Path, help="libbmrt and libbmlib for it")
    options = parser.parse_args()
    if options.bundle is not None:
        if options.libraries is None:
            parser.error("--bundle needs --libraries")
        bench_real(options.bundle, options.libraries)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench_random(Path(folder), options.size_mb * 1_000_000)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
