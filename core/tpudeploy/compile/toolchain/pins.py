"""What the private TPU-MLIR environment consists of: which wheels, and which of their files.

The table holds everything that ``model_transform``, ``model_deploy``, ``model_tool`` and ``model_runner`` read
on the way from ONNX to a BM1684X bmodel and its simulation, established by tracing system calls (with an empty
kernel cache), and nothing else. TPU-MLIR declares some thirty packages more; none of them is used on this way
(``inside/launcher.py``). Footprint: 393 MB on disk, where all that TPU-MLIR declares takes 6.4 GB; 355 MB of
downloads; 0.84 GB of disk at the worst moment of an installation.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

# The vendor's libraries are built on Ubuntu 22.04: older systems cannot load them.
GLIBC_NEEDED = (2, 34)
PYTHON_NEEDED = (3, 10)


class Pin(NamedTuple):
    """One wheel of the private environment.

    :param project: the project's name in a package index.
    :param version: the exact version.
    :param why: why this package, and why this version of it.
    :param size_bytes: the wheel's size.
    :param sha256: the wheel's digest, hex.
    :param kept_bytes: what the kept files take when unpacked.
    :param keep: file name patterns of what is unpacked (``*`` matches ``/`` too).
    :param drop: patterns of what is not, though ``keep`` matches it.
    :param also: patterns of what is, whatever ``drop`` says.
    """

    project: str
    version: str
    why: str
    size_bytes: int
    sha256: str
    kept_bytes: int
    keep: tuple[str, ...]
    drop: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """The requirement, as pip reads it."""
        return f"{self.project}=={self.version}"

    def keeps(self, name: str) -> bool:
        """Whether the wheel's file ``name`` (posix path in the wheel) is unpacked."""
        if any(fnmatchcase(name, p) for p in self.also):
            return True
        return any(fnmatchcase(name, p) for p in self.keep) and not any(fnmatchcase(name, p) for p in self.drop)


NOT_RUN = ("*/tests/*", "*/test/*", "*.pyi", "*.h", "*.hpp", "*.cc", "*.cpp", "*.a", "*.proto", "*.td")

PINS = (
    Pin(
        project="tpu_mlir",
        version="1.30.2",
        why="the compiler and the simulator; other versions have other traps, see inside/lite.py",
        size_bytes=311_886_106,
        sha256="542807361c9eeb0777a7bd35e501d8c71cce767e4bce021a3cb3a7c25c35f909",
        kept_bytes=336_110_584,
        keep=(
            "tpu_mlir-*.dist-info/*",
            "tpu_mlir/__init__.py",
            "tpu_mlir/bin/tpuc-opt",
            "tpu_mlir/bin/model_tool",
            "tpu_mlir/lib/libbackend_bm1684x.so",
            "tpu_mlir/lib/libbm1684x_kernel_module.so",  # goes into every bmodel
            "tpu_mlir/lib/libbmlib_bm1684x.so.0",
            "tpu_mlir/lib/libbmrt.so.1.0",
            "tpu_mlir/lib/libcmodel_bm1684x.so",
            "tpu_mlir/lib/libcpuop.so",
            "tpu_mlir/lib/libcpuop.so.1.0.0",
            "tpu_mlir/lib/libortools.so.9",  # the same file is there three times
            "tpu_mlir/lib/libppl_host.so",
            "tpu_mlir/lib/libppl_dyn_host_bm1684x.so",  # --dynamic
            "tpu_mlir/lib/third_party/libdnnl.so.3",
            "tpu_mlir/lib/third_party/libomp.so.5",
            "tpu_mlir/lib/third_party/libstdc++.so.6",  # set apart: see SPARE
            "tpu_mlir/lib/third_party/libgcc_s.so.1",
            "tpu_mlir/lib/third_party/libz.so.1",
            "tpu_mlir/python/pyruntime_bm.*.so",
            "tpu_mlir/python/mlir/*",
            "tpu_mlir/python/numpy_helper/*.py",
            "tpu_mlir/python/utils/*.py",
            "tpu_mlir/python/tools/deploy_qat.py",
            "tpu_mlir/python/tools/gen_layer_group_config.py",
            "tpu_mlir/python/tools/gen_rewriter_config.py",
            "tpu_mlir/python/tools/model_deploy.py",
            "tpu_mlir/python/tools/model_runner.py",
            "tpu_mlir/python/tools/model_transform.py",
            "tpu_mlir/python/transform/BaseConverter.py",
            "tpu_mlir/python/transform/MLIRImporter.py",
            "tpu_mlir/python/transform/Onnx*.py",
        ),
        drop=NOT_RUN,
        also=(  # what builds attention kernels: see kernels.py
            "tpu_mlir/cross_toolchains/ppl_compile/bin/ppl-compile",
            "tpu_mlir/cross_toolchains/ppl_compile/inc/*",
            "tpu_mlir/cross_toolchains/ppl_compile/deps/common/*",
            "tpu_mlir/cross_toolchains/ppl_compile/deps/chip/tpu_6_0/*",
        ),
    ),
    Pin(
        project="numpy",
        version="1.24.3",
        why="TPU-MLIR's pin; onnx 1.16 is built against numpy 1",
        size_bytes=17_281_879,
        sha256="2d926b52ba1367f9acb76b0df6ed21f0b16a1ad87c6720a1121674e5cf63e2b6",
        kept_bytes=51_877_355,
        keep=("*",),
        drop=(*NOT_RUN, "numpy/f2py/*", "numpy/distutils/*", "numpy/doc/*", "numpy/core/_simd.*", "*/_examples/*"),
    ),
    Pin(
        project="protobuf",
        version="3.20.3",
        why="TPU-MLIR's pin; has the C++ parser, which onnx 1.16 accepts",
        size_bytes=1_051_042,
        sha256="9aae4406ea63d825636cc11ffb34ad3379335803216ee3a856787bcf5ccc751e",
        kept_bytes=3_183_483,
        keep=("*",),
        drop=NOT_RUN,
    ),
    Pin(
        project="onnx",
        version="1.16.2",
        why="reads opset 21 and needs no newer protobuf; TPU-MLIR names 1.14.1, both give the same bmodels",
        size_bytes=15_924_158,
        sha256="ec6a425e59291fff430da4a884aa07a1d0cbb5dcd22cc78f6cf4ba5adb9f3367",
        kept_bytes=6_751_023,
        keep=("*",),
        drop=(*NOT_RUN, "onnx/backend/*", "onnx/reference/*", "onnx/bin/*", "onnx/tools/*"),
    ),
    Pin(
        project="onnxruntime",
        version="1.16.3",
        why="TPU-MLIR's pin; folds the constants of a graph",
        size_bytes=6_411_215,
        sha256="ef2b1fc269cabd27f129fb9058917d6fdc89b188c49ed8700f300b945c81f889",
        kept_bytes=15_453_375,
        keep=("onnxruntime/__init__.py", "onnxruntime/capi/*", "onnxruntime-*.dist-info/*", "onnxruntime/LICENSE"),
        drop=NOT_RUN,
    ),
    Pin(
        project="onnxsim",
        version="0.4.17",
        why="TPU-MLIR's pin; the last version whose simplifications its converter knows",
        size_bytes=2_098_213,
        sha256="7bdb1a5445131b2cfe8a251755e8612a05b4833a345dbe8b3559484bc6b8ed4e",
        kept_bytes=5_933_807,
        keep=("onnxsim/*", "onnxsim-*.dist-info/*"),
        drop=NOT_RUN,
    ),
)

# Links made after unpacking, relative to the tpu_mlir folder: the names under which libraries ask for each other.
LINKS = {
    "lib/libbmlib.so.0": "libbmlib_bm1684x.so.0",
    "lib/libcmodel.so": "libcmodel_bm1684x.so",
}

# The glibc trap: lib/third_party holds Ubuntu 22.04's C library, and everything crashes that loads it beside another
# one. It is not unpacked. These three of it are safe with any newer glibc and are kept apart, in lib/spare, for
# systems whose own are too old (RHEL 9 has no GLIBCXX_3.4.30) or absent.
SPARE = ("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1")


# Goes into the environment's bin folder: see kernels.py.
KERNEL_SCRIPT = Path(__file__).parent / "inside" / "ppl_jit.sh"


def version() -> str:
    """The TPU-MLIR version that this tpudeploy installs."""
    return PINS[0].version


def digest() -> str:
    """SHA-256 (hex) over what makes an environment: one made from something else is out of date."""
    wheels = [[pin.requirement, pin.sha256, pin.keep, pin.drop, pin.also] for pin in PINS]
    payload = json.dumps([wheels, LINKS, SPARE, KERNEL_SCRIPT.read_text(encoding="ascii")], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()
