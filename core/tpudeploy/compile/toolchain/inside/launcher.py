"""Run one of the vendor's Python tools in this process, without what its imports only seem to need.

Usage: ``python launcher.py [--plain] PACKAGE_DIR TOOL [ARGUMENT ...]``, where PACKAGE_DIR is the ``tpu_mlir``
folder and TOOL is ``model_transform``, ``model_deploy`` or ``model_runner``.

The vendor's tools import torch, OpenCV, plotly, PIL, rich and others at module level and then never use them
on the way from ONNX to a bmodel. Stand-ins for those save gigabytes of packages and seconds of every call;
a stand-in that is used after all says so. ``--plain`` turns the savings of ``lite`` off, for comparison.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.abc
import importlib.machinery
import runpy
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Imported at module level by the tools, used by none of them between an ONNX file and a bmodel.
STAND_INS = frozenset(
    {
        "PIL",
        "cv2",
        "filelock",
        "onnxruntime_extensions",
        "plotly",
        "psutil",
        "pymlir",
        "rich",
        "torch",
        "tpu_mlir.python.tools.bmodel_dis",
        "tqdm",
    }
)
# Really used, but seldom: imported at the first use.
LATE = frozenset({"onnxruntime"})


class Unavailable:
    """Something of a package that this environment leaves out; using it is an error that names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_args: object, **_kwargs: object) -> Any:
        """Say that it is not here."""
        raise RuntimeError(f"{self._name} is not part of this TPU-MLIR environment")

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Unavailable(f"{self._name}.{attribute}")


class StandIn(types.ModuleType):
    """An importable module whose every name is ``Unavailable``, but for the few that are set on it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package: its submodules are stand-ins too

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Unavailable(f"{self.__name__}.{attribute}")


class LateModule(types.ModuleType):
    """A module that is imported when one of its names is first asked for."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        sys.modules.pop(self.__name__, None)
        LATE_FINDER.done.add(self.__name__)
        real = importlib.import_module(self.__name__)
        self.__dict__.update(real.__dict__)
        return getattr(real, attribute)


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serve ``factory(name)`` for the named modules and everything below them."""

    def __init__(self, names: frozenset[str], factory: Callable[[str], types.ModuleType]) -> None:
        self.names = names
        self.factory = factory
        self.done: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the modules that are in ``names`` or below one of them."""
        known = fullname in self.names or fullname.partition(".")[0] in self.names
        if not known or fullname.partition(".")[0] in self.done:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Make the stand-in."""
        return self.factory(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


LATE_FINDER = StandInFinder(LATE, LateModule)


class _Names:
    """Any attribute is its own name: what ``onnx_op`` declarations read from ``PyOp``."""

    def __getattr__(self, attribute: str) -> str:
        return attribute


def _undecorated(**_kwargs: object) -> Callable[[Any], Any]:
    return lambda function: function


def _file_lock(package_dir: Path) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """What ``filelock.FileLock`` does, on a file of this environment instead of one in /tmp for all users."""

    @contextlib.contextmanager
    def lock(_path: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            # A folder that cannot be written cannot be relinked either, which is what the lock is for.
            with contextlib.suppress(OSError):
                handle = stack.enter_context((package_dir / "lib" / ".lock").open("w"))
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    return lock


def _stand_in(package_dir: Path) -> Callable[[str], types.ModuleType]:
    """Make stand-ins, with the few names on them that are used while the tools are being imported."""
    preset: dict[str, dict[str, object]] = {
        "onnxruntime_extensions": {"onnx_op": _undecorated, "PyOp": _Names()},
        "filelock": {"FileLock": _file_lock(package_dir)},
        "rich": {"print": print},
        "pymlir": {"__version__": _version(package_dir)},
    }

    def make(name: str) -> types.ModuleType:
        module = StandIn(name)
        module.__dict__.update(preset.get(name, {}))
        return module

    return make


def _version(package_dir: Path) -> str:
    """The vendor's version, as the tools print it."""
    names = [folder.name for folder in package_dir.parent.glob("tpu_mlir-*.dist-info")]
    return names[0].removeprefix("tpu_mlir-").removesuffix(".dist-info") if names else "of unknown version"


def prepare(package_dir: Path) -> None:
    """Make the vendor's modules importable.

    The vendor's own ``tpu_mlir/__init__`` is not run: it needs setuptools, and prepends folders to the
    environment that tpudeploy has already set.
    """
    vendor = types.ModuleType("tpu_mlir")
    vendor.__path__ = [str(package_dir)]
    sys.modules["tpu_mlir"] = vendor
    sys.path.append(str(package_dir / "python"))
    sys.meta_path.insert(0, StandInFinder(STAND_INS, _stand_in(package_dir)))
    sys.meta_path.insert(0, LATE_FINDER)


def main(arguments: list[str]) -> None:
    """Run the tool that the arguments name; its exit is this process's exit."""
    plain = arguments[:1] == ["--plain"]
    package_dir, tool, *rest = arguments[1:] if plain else arguments
    prepare(Path(package_dir))
    if tool == "model_transform" and not plain:
        sys.path.append(str(Path(__file__).parent))
        importlib.import_module("lite").apply(Path(package_dir), rest)
    script = Path(package_dir) / "python" / "tools" / f"{tool}.py"
    sys.argv = [str(script), *rest]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
