"""Find plugins by entry point, load each on its own, and keep every failure as a record.

A broken or duplicate plugin is listed by ``tpudeploy plugins`` and never takes anything else down. Bundled plugins
come in by the same door: there is no built-in list.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import pluggy

from tpudeploy import hookspecs
from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.drafter import RESERVED_NAMES, Drafter
from tpudeploy.errors import PluginError, TpuDeployError, UnknownNameError

ENTRY_POINT_GROUP = "tpudeploy"

T = TypeVar("T", ModelAdapter, Backend, Drafter)


class PluginRecord(Value):
    """What became of one entry point.

    :param name: the entry point's name.
    :param package: the distribution that declares it.
    :param version: that distribution's version.
    :param target: the module or object that it names.
    :param hooks: the hooks that it implements.
    :param provides: what it registered, for example ``"model chatglm3"``.
    :param error: why it, or a part of it, is not in use; empty when all is well.
    """

    name: str
    package: str
    version: str
    target: str
    hooks: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    error: str = ""


@dataclass
class PluginRegistry:
    """Every plugin that was found, and what the working ones registered."""

    manager: pluggy.PluginManager
    records: list[PluginRecord] = field(default_factory=list)
    models: dict[str, ModelAdapter] = field(default_factory=dict)
    backends: dict[str, Backend] = field(default_factory=dict)
    drafters: dict[str, Drafter] = field(default_factory=dict)

    def model(self, name: str) -> ModelAdapter:
        """The adapter called ``name``. :raises UnknownNameError: there is none."""
        return self._get("model", name, self.models)

    def backend(self, name: str) -> Backend:
        """The backend called ``name``. :raises UnknownNameError: there is none."""
        return self._get("backend", name, self.backends)

    def _get(self, what: str, name: str, known: dict[str, T]) -> T:
        if name in known:
            return known[name]
        broken = [record.name for record in self.records if record.error]
        hint = f"Plugins that failed to load: {', '.join(broken)}; see `tpudeploy plugins`." if broken else ""
        raise UnknownNameError(what, name, known, hint=hint)


@cache
def registry() -> PluginRegistry:
    """The plugins installed in this environment, loaded once a process."""
    return load_plugins(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))


def load_plugins(entry_points: Iterable[importlib.metadata.EntryPoint]) -> PluginRegistry:
    """Load entry points in the order of their names; what fails becomes a record."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found = PluginRegistry(manager)
    for entry_point in sorted(entry_points, key=lambda point: (point.name, point.value)):
        found.records.append(_load(entry_point, found))
    return found


def _load(entry_point: importlib.metadata.EntryPoint, found: PluginRegistry) -> PluginRecord:
    dist = entry_point.dist
    record = PluginRecord(
        name=entry_point.name,
        package=dist.name if dist else "",
        version=dist.version if dist else "",
        target=entry_point.value,
    )
    if found.manager.has_plugin(entry_point.name):
        return _failed(record, f"another plugin is already called {entry_point.name!r}")
    try:
        plugin = entry_point.load()
        found.manager.register(plugin, name=entry_point.name)
        found.manager.check_pending()
    except Exception as error:  # noqa: BLE001 - a plugin may fail in any way; it becomes a record
        if found.manager.has_plugin(entry_point.name):
            found.manager.unregister(name=entry_point.name)
        return _failed(record, _describe(error))
    return _register(record, plugin, found)


def _register(record: PluginRecord, plugin: object, found: PluginRegistry) -> PluginRecord:
    hooks = tuple(sorted(caller.name for caller in found.manager.get_hookcallers(plugin) or ()))
    record = record.model_copy(update={"hooks": hooks})
    if not hooks:
        return _failed(record, "it implements no hook of tpudeploy")
    provides: list[str] = []
    errors: list[str] = []
    for what, kind, known in (
        ("model", ModelAdapter, found.models),
        ("backend", Backend, found.backends),
        ("drafter", Drafter, found.drafters),
    ):
        hook = getattr(plugin, f"tpudeploy_{what}s", None)
        if hook is not None:
            _collect(what, kind, hook, known, provides, errors)
    return record.model_copy(update={"provides": tuple(provides), "error": "; ".join(errors)})


def _collect(
    what: str,
    kind: type[T],
    hook: Callable[[], Sequence[T]],
    known: dict[str, T],
    provides: list[str],
    errors: list[str],
) -> None:
    try:
        offered = list(hook())
    except Exception as error:  # noqa: BLE001 - as above
        errors.append(_describe(error))
        return
    for item in offered:
        if not isinstance(item, kind) or not getattr(item, "name", ""):
            errors.append(f"{item!r} is not a named {kind.__name__}")
        elif kind is Drafter and item.name in RESERVED_NAMES:
            errors.append(f"the {what} {item.name!r} would have a name that means something else")
        elif item.name in known:
            errors.append(f"the {what} {item.name!r} is already registered by another plugin")
        else:
            known[item.name] = item
            provides.append(f"{what} {item.name}")


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, TpuDeployError) else f"{type(error).__name__}: {error}"


def _failed(record: PluginRecord, error: str) -> PluginRecord:
    return record.model_copy(update={"error": error})


def call_hook(found: PluginRegistry, name: str, **arguments: object) -> list[object]:
    """Call a 1:N hook.

    :raises PluginError: an implementation failed; it names the hook and the failure.
    """
    try:
        results: list[object] = getattr(found.manager.hook, name)(**arguments)
    except TpuDeployError:
        raise
    except Exception as error:
        raise PluginError(f"a plugin failed in {name}: {_describe(error)}.", hint="See `tpudeploy plugins`.") from error
    return results
