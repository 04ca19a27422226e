"""The tools of a session: the public functions that some Python files define."""

from __future__ import annotations

import inspect
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NewType

from tpudeploy.errors import UsageError
from tpudeploy.tools.function import ToolFunction
from tpudeploy.tools.results import describe_failure

TERMINATED = 128 + signal.SIGTERM
"""Code of the SystemExit by which the program is told to end: no wish, or failure, of the user's code."""


class Toolbox:
    """Functions by name, in the order in which the files define them."""

    def __init__(self, functions: Sequence[ToolFunction]) -> None:
        self._functions: dict[str, ToolFunction] = {}
        for function in functions:
            known = self._functions.setdefault(function.name, function)
            if known is not function:
                raise UsageError(f"{function.where}: there is a tool {function.name} in {known.where} already.")

    @property
    def functions(self) -> Mapping[str, ToolFunction]:
        """Functions by name."""
        return MappingProxyType(self._functions)

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """What a model is told of them, one ``{"name", "description", "parameters"}`` a function."""
        return tuple(function.schema for function in self._functions.values())


def load_tools(files: Sequence[Path]) -> Toolbox:
    """Run Python files, and take the public functions that they define: none that they import.

    :raises UsageError: a file that cannot be read or run, or a function that cannot be described; it names the line.
    """
    return Toolbox([function for file in files for function in _functions_of(file)])


def _functions_of(file: Path) -> Iterator[ToolFunction]:
    module = _run(file)
    found = [(name, value) for name, value in vars(module).items() if _is_tool(name, value, module)]
    if not found:
        raise UsageError(f"{file} defines no public function.", hint="A tool is a function with typed parameters.")
    for name, function in found:
        yield ToolFunction.of(name, function, f"{file}:{_line(function)}")


def _is_tool(name: str, value: object, module: ModuleType) -> bool:
    # A NewType has name and module and can be called, but is a type.
    if name.startswith("_") or inspect.isclass(value) or isinstance(value, NewType) or not callable(value):
        return False
    # The second name of a function (`g = f`) is no tool of its own.
    return getattr(value, "__module__", None) == module.__name__ and getattr(value, "__name__", None) == name


def _line(function: Callable[..., Any]) -> int:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code is not None else 1


def _run(file: Path) -> ModuleType:
    path = file.resolve()
    if not path.is_file():
        raise UsageError(f"{file} is {'a folder, not a file' if path.is_dir() else 'not there'}.")
    name = f"tpudeploy_tools_{path.stem}_{abs(hash(path)):x}"
    loader = SourceFileLoader(name, str(path))  # whatever the file's name ends with
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # as dataclasses and pickle want it
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for modules beside it; last, for it must not hide what is installed
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{error.filename or file}:{error.lineno or 1}: {error.msg}.") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file is anybody's code: also SystemExit, and what asyncio raises
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            raise
        raise UsageError(f"{file}:{_line_of(error, path)}: {describe_failure(error)}") from error
    finally:
        sys.dont_write_bytecode = written
    return module


def _line_of(error: BaseException, path: Path) -> int:
    """The last line of the file that led to an error; 1 where none did, as with a file that is not UTF-8."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return next((line for line in reversed(lines) if line), 1)
