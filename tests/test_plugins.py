"""Loading plugins: by entry points alone, each on its own, with every failure kept as a record."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from third_party.tpudeploy_acme.adapter import Acme
from third_party.tpudeploy_acme.backend import AcmeChip
from third_party.tpudeploy_acme.drafter import LastAgain
from tpudeploy import hookimpl, hookspecs
from tpudeploy.cli import plugin_commands
from tpudeploy.cli.plugin_commands import collect_commands
from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.drafter import Drafter
from tpudeploy.contracts.progress import StageEvent, no_progress
from tpudeploy.errors import PluginError, UnknownNameError, UsageError
from tpudeploy.launch.generation import find_drafter
from tpudeploy.launch.observers import with_observers
from tpudeploy.plugins import PluginRegistry, call_hook, load_plugins
from tpudeploy.runtime.prompt_lookup import PromptLookup


class ModelPlugin:
    """Registers one model."""

    @hookimpl
    def tpudeploy_models(self) -> Sequence[ModelAdapter]:
        return [Acme()]


class BackendPlugin:
    """Registers one backend, and watches."""

    def __init__(self) -> None:
        self.seen: list[StageEvent] = []

    @hookimpl
    def tpudeploy_backends(self) -> Sequence[Backend]:
        return [AcmeChip()]

    @hookimpl
    def tpudeploy_stage_finished(self, event: StageEvent) -> None:
        self.seen.append(event)


class DrafterPlugin:
    """Registers drafters, one of which takes a name that means something else."""

    names: tuple[str, ...] = ("acme-again",)

    @hookimpl
    def tpudeploy_drafters(self) -> Sequence[Drafter]:
        drafters = [LastAgain() for _ in self.names]
        for drafter, name in zip(drafters, self.names, strict=True):
            drafter.name = name
        return drafters


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A module whose attributes entry points can name."""
    module = SimpleNamespace(model=ModelPlugin(), backend=BackendPlugin(), drafter=DrafterPlugin(), empty=object())
    monkeypatch.setitem(sys.modules, "offered", module)  # type: ignore[arg-type]
    yield module


def point(name: str, value: str = "") -> EntryPoint:
    return EntryPoint(name, f"offered:{value or name}", "tpudeploy")


def load(*points: EntryPoint) -> PluginRegistry:
    return load_plugins(points)


def test_every_hook_has_a_docstring_with_its_parameters() -> None:
    for name in vars(hookspecs):
        if name.startswith("tpudeploy_"):
            hook = getattr(hookspecs, name)
            assert hook.__doc__, name
            for parameter in inspect.signature(hook).parameters:
                assert f":param {parameter}:" in hook.__doc__, (name, parameter)


def test_drafters_are_found_by_name(offered: SimpleNamespace) -> None:
    found = load(point("drafter"))
    assert found.records[0].provides == ("drafter acme-again",)
    assert find_drafter("acme-again", found) is found.drafters["acme-again"]
    assert find_drafter("none", found) is None
    assert isinstance(find_drafter("prompt-lookup", found), PromptLookup)
    with pytest.raises(UnknownNameError, match="unknown drafter"):
        find_drafter("nobody", found)


@pytest.mark.parametrize("name", ["none", "prompt-lookup", ""])
def test_names_that_no_drafter_can_have(offered: SimpleNamespace, name: str) -> None:
    offered.drafter.names = ("good", name)
    found = load(point("drafter"))
    assert list(found.drafters) == ["good"]
    assert found.records[0].error


def test_what_plugins_register_is_found_by_name(offered: SimpleNamespace) -> None:
    found = load(point("model"), point("backend"))
    assert found.model("acme").name == "acme"
    assert found.backend("acme-chip").name == "acme-chip"
    backend, model = found.records
    assert (model.name, model.provides, model.hooks, model.error) == (
        "model",
        ("model acme",),
        ("tpudeploy_models",),
        "",
    )
    assert backend.provides == ("backend acme-chip",)


def test_records_are_in_the_order_of_names_whatever_the_metadata_says(offered: SimpleNamespace) -> None:
    for points in ([point("b", "model"), point("a", "backend")], [point("a", "backend"), point("b", "model")]):
        assert [record.name for record in load(*points).records] == ["a", "b"]


def test_a_second_plugin_of_the_same_name_or_model_is_refused(offered: SimpleNamespace) -> None:
    offered.other = ModelPlugin()
    found = load(point("model"), point("model", "other"), point("zz", "other"))
    first, second, third = found.records
    assert first.error == ""
    assert "already called 'model'" in second.error
    assert "'acme' is already registered" in third.error
    assert list(found.models) == ["acme"]


@pytest.mark.parametrize(
    ("value", "error"),
    [("empty", "implements no hook"), ("absent", "AttributeError")],
)
def test_what_cannot_be_used_is_a_record(value: str, error: str, offered: SimpleNamespace) -> None:
    offered.__dict__.pop("absent", None)
    found = load(point(value), point("model"))
    broken = next(record for record in found.records if record.name == value)
    assert error in broken.error
    assert broken.target == f"offered:{value}"
    assert "acme" in found.models


def test_a_plugin_that_raises_half_way_keeps_what_it_gave(offered: SimpleNamespace) -> None:
    class Half:
        @hookimpl
        def tpudeploy_models(self) -> list[object]:
            return [Acme(), "no adapter"]

        @hookimpl
        def tpudeploy_backends(self) -> list[object]:
            raise UsageError("not today.")

    offered.half = Half()
    (record,) = load(point("half")).records
    assert record.provides == ("model acme",)
    assert record.error == "'no adapter' is not a named ModelAdapter; not today."


def test_an_unknown_name_says_what_failed_to_load(offered: SimpleNamespace) -> None:
    found = load(point("model"), point("empty"))
    with pytest.raises(UnknownNameError, match="known: acme") as caught:
        found.model("nonsense")
    assert "empty" in caught.value.hint
    with pytest.raises(UnknownNameError, match="known: none"):
        found.backend("cpu")


def test_a_hook_that_fails_is_a_plugin_error(offered: SimpleNamespace) -> None:
    class Failing:
        @hookimpl
        def tpudeploy_patches(self, model: str) -> list[object]:
            raise ZeroDivisionError(model)

    offered.failing = Failing()
    with pytest.raises(PluginError, match="tpudeploy_patches: ZeroDivisionError: acme"):
        call_hook(load(point("failing")), "tpudeploy_patches", model="acme", config=None)


def event(status: str) -> StageEvent:
    return StageEvent.model_validate({"stage": "slice", "item": "x", "status": status, "done": 1, "total": 2})


def test_observers_see_what_ended_and_stop_nothing(offered: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    report = with_observers(no_progress, load(point("backend")))
    for status in ("started", "finished", "reused"):
        report(event(status))
    assert [seen.status for seen in offered.backend.seen] == ["finished", "reused"]

    class Failing:
        @hookimpl
        def tpudeploy_stage_finished(self, event: StageEvent) -> None:
            raise RuntimeError("observer fell asleep")

    offered.failing = Failing()
    with_observers(no_progress, load(point("failing")))(event("finished"))
    assert "observer fell asleep" in caplog.text


def test_commands_of_plugins_are_kept_apart(offered: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def plugin(*names: str, fail: bool = False) -> object:
        class Commands:
            @hookimpl
            def tpudeploy_commands(self, app: typer.Typer) -> None:
                for name in names:
                    app.command(name)(lambda: None)
                if fail:
                    raise ValueError("half done")

        return Commands()

    offered.first, offered.second = plugin("one", "run"), plugin("one", "two")
    offered.broken, offered.silent = plugin("three", fail=True), plugin()
    found = load(*(point(name) for name in ("first", "second", "broken", "silent", "model")))
    monkeypatch.setattr("tpudeploy.plugins.registry", lambda: found)
    commands = collect_commands(frozenset({"run"}))
    assert set(commands.commands) == {"one", "two"}
    assert commands.owners == {"one": "first", "two": "second"}
    assert "run exists already" in commands.problems["first"]
    assert "one exists already" in commands.problems["second"]
    assert "half done" in commands.problems["broken"]
    assert "silent" not in commands.problems


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("", False),
        ("def tpudeploy_models(): ...", False),
        ("def tpudeploy_commands(app): ...", True),
        ("from elsewhere import tpudeploy_commands", True),
        ("from elsewhere import *", True),
    ],
)
def test_help_loads_plugins_only_if_one_mentions_the_hook(
    source: str, may: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it must not be imported')")
    (package / "plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    known = EntryPoint("some", "some_package.plugin", "tpudeploy")
    assert plugin_commands._may_add_commands(known) is may
    assert plugin_commands._may_add_commands(EntryPoint("some", "some_package.plugin:thing", "tpudeploy"))
    assert not plugin_commands._may_add_commands(EntryPoint("some", "some_package.absent", "tpudeploy"))
    assert not plugin_commands._may_add_commands(EntryPoint("some", "absent_package.plugin", "tpudeploy"))
