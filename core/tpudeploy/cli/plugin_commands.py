"""Commands that plugins add with the hook ``tpudeploy_commands``, without slowing down those that are there.

Loading every plugin takes a third of a second, and ``--help`` should answer at once. So plugins are loaded for a
command only when its name is not known here, and for ``--help`` only when one of them says that it has commands.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.core
import typer.main

if TYPE_CHECKING:
    from tpudeploy.plugins import PluginRecord

HOOK = "tpudeploy_commands"
ENTRY_POINT_GROUP = "tpudeploy"
"""The same as ``tpudeploy.plugins.ENTRY_POINT_GROUP``, which would take long to import."""


@dataclass
class PluginCommands:
    """What plugins offer.

    :param commands: by name.
    :param owners: command -> plugin.
    :param problems: plugin -> why some command of it is not there.
    """

    commands: dict[str, Any] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class CommandGroup(typer.core.TyperGroup):
    """The top level of the command line."""

    own: frozenset[str] | None = None
    """Names of the commands that no plugin can replace; None until plugins were asked."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command, for help and completion."""
        if plugins_may_add_commands():
            self.load_plugin_commands()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; plugins are asked only for what is not found here."""
        if cmd_name not in self.commands:
            self.load_plugin_commands()
        return super().get_command(ctx, cmd_name)

    def load_plugin_commands(self) -> None:
        """Ask the plugins, once."""
        if self.own is None:
            self.own = frozenset(self.commands)
            for name, command in collect_commands(self.own).commands.items():
                self.add_command(command, name)


def own_commands() -> frozenset[str]:
    """Names of the commands of tpudeploy itself."""
    from tpudeploy.cli.app import app

    group = typer.main.get_group(app)
    return frozenset(group.commands)


def collect_commands(taken: frozenset[str]) -> PluginCommands:
    """Ask every plugin for its commands, each with an application of its own; a failure stays with its plugin.

    :param taken: names that cannot be had.
    """
    from tpudeploy.plugins import registry

    found = PluginCommands()
    manager = registry().manager
    for name, plugin in manager.list_name_plugin():
        if plugin is None or not hasattr(plugin, HOOK):
            continue
        others = [other for _, other in manager.list_name_plugin() if other is not plugin and other is not None]
        try:
            app = typer.Typer(rich_markup_mode=None)
            manager.subset_hook_caller(HOOK, others)(app=app)
            offered = _commands_of(app)
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way; it becomes a record
            found.problems[name] = f"{HOOK} failed: {type(error).__name__}: {error}"
            continue
        _add(found, name, offered, taken)
    return found


def _commands_of(app: typer.Typer) -> Mapping[str, Any]:
    if not app.registered_commands and not app.registered_groups:
        return {}
    return typer.main.get_group(app).commands


def _add(found: PluginCommands, plugin: str, offered: Mapping[str, Any], taken: frozenset[str]) -> None:
    refused = sorted(name for name in offered if name in taken or name in found.commands)
    if refused:
        found.problems[plugin] = f"the command {', '.join(refused)} exists already and cannot be replaced"
    for name, command in offered.items():
        if name not in refused:
            found.commands[name] = command
            found.owners[name] = plugin


def described_plugins() -> list[PluginRecord]:
    """Every plugin's record, with the commands that it adds or fails to add."""
    from tpudeploy.plugins import registry

    found = collect_commands(own_commands())
    return [_with_commands(record, found) for record in registry().records]


def _with_commands(record: PluginRecord, found: PluginCommands) -> PluginRecord:
    if record.error and not record.hooks:
        return record  # it was not loaded: another plugin may have its name
    commands = [f"command {name}" for name, owner in found.owners.items() if owner == record.name]
    problems = [text for text in (record.error, found.problems.get(record.name, "")) if text]
    return record.model_copy(update={"provides": (*record.provides, *commands), "error": "; ".join(problems)})


def plugins_may_add_commands() -> bool:
    """Whether an installed plugin mentions the hook, as far as its source tells without running it."""
    return any(_may_add_commands(point) for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))


def _may_add_commands(point: importlib.metadata.EntryPoint) -> bool:
    if point.attr:
        return True  # an object may have it from anywhere
    spec = _find_module(point.module)
    if spec is None or spec.origin is None:
        return False  # it cannot be loaded either
    if not spec.origin.endswith(".py"):
        return True
    source = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    return HOOK in source or "import *" in source


def _find_module(module: str) -> ModuleSpec | None:
    """Where a module lies, found without importing the packages around it."""
    top, *rest = module.split(".")
    spec, name = importlib.util.find_spec(top), top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec
