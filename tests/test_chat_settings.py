"""What /set takes, and what it refuses."""

from __future__ import annotations

import inspect

import pytest

from tpudeploy.cli.chat_settings import SETTINGS, ChatSettings, shown
from tpudeploy.errors import UnknownNameError, UsageError
from tpudeploy.launch.generation import generation_options
from tpudeploy.plugins import registry
from tpudeploy.runtime.prompt_lookup import PromptLookup

NOT_TYPED = {"drafter", "ignore_eos", "logit_bias", "logprobs"}
"""Parameters of ``generation_options`` that nobody wants to set in a conversation; ``draft`` is the drafter's name."""
OURS = {"draft", "markdown", "store"}


@pytest.fixture
def settings() -> ChatSettings:
    return ChatSettings(registry(), markdown=False)


def test_every_sampling_option_can_be_set() -> None:
    assert SETTINGS.keys() - OURS == inspect.signature(generation_options).parameters.keys() - NOT_TYPED


def test_defaults_are_those_of_the_command_line() -> None:
    parameters = inspect.signature(generation_options).parameters
    for name in SETTINGS.keys() - OURS:
        assert SETTINGS[name].default == parameters[name].default, name


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", "none", None),
        ("top_k", "40", 40),
        ("top_p", ".9", 0.9),
        ("repetition_penalty", "1.1", 1.1),
        ("presence_penalty", "-1", -1.0),
        ("frequency_penalty", "0.5", 0.5),
        ("seed", "7", 7),
        ("seed", "None", None),
        ("greedy", "on", True),
        ("max_new_tokens", "12", 12),
        ("draft", "none", "none"),
        ("store", "OFF", False),
    ],
)
def test_setting(settings: ChatSettings, name: str, text: str, value: object) -> None:
    settings.set(name, text)
    assert settings.values[name] == value
    settings.set(name, "default")
    assert settings.values == ChatSettings(registry(), markdown=False).values


def test_options_follow(settings: ChatSettings) -> None:
    assert settings.options.sampling.greedy and isinstance(settings.options.drafter, PromptLookup)
    settings.set("top_k", "5")
    assert (settings.options.sampling.temperature, settings.options.sampling.top_k) == (1.0, 5)
    settings.set("temperature", "0.3")
    settings.set("max_new_tokens", "9")
    settings.set("draft", "none")
    assert settings.options.sampling.temperature == 0.3
    assert (settings.options.max_new_tokens, settings.options.drafter) == (9, None)
    settings.set("greedy", "on")
    assert settings.options.sampling.greedy


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("temperature", "hot", "temperature must be a number or none, not 'hot'"),
        ("temperature", "-1", "temperature must be 0 or more"),
        ("temperature", "nan", "temperature must be 0 or more"),
        ("temperature", "9" * 5000, "temperature must be a number"),
        ("top_k", "1.5", "top_k must be a whole number"),
        ("top_k", "-1", "top_k must be a whole number, 0 or more"),
        ("top_p", "0", "top_p must be over 0 and at most 1"),
        ("top_p", "2", "top_p must be over 0 and at most 1"),
        ("repetition_penalty", "0", "repetition_penalty must be"),
        ("seed", "x", "seed must be a whole number or none"),
        ("seed", "-1", "seed must be"),
        ("greedy", "maybe", "greedy must be on or off"),
        ("max_new_tokens", "0", "max_new_tokens must be 1 or more"),
        ("draft", "nobody", "unknown drafter 'nobody'"),
        ("markdown", "html", "markdown must be on or off"),
    ],
)
def test_a_bad_value_is_one_clear_error(settings: ChatSettings, name: str, text: str, says: str) -> None:
    before, options = settings.values, settings.options
    with pytest.raises(UsageError, match=says) as caught:
        settings.set(name, text)
    assert len(caught.value.message) < 200
    assert (settings.values, settings.options) == (before, options)


def test_an_unknown_name(settings: ChatSettings) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean temperature"):
        settings.set("temprature", "1")


def test_what_was_stored_is_taken_as_far_as_it_can_be(settings: ChatSettings) -> None:
    stored = {"top_k": 7, "seed": 1, "temperature": "warm", "draft": "gone", "max_new_tokens": "x", "unknown": 1}
    problems = settings.restore({**stored, "markdown": True})
    assert (settings.values["top_k"], settings.values["seed"], settings.values["temperature"]) == (7, 1, None)
    assert not settings.markdown  # belongs to a terminal, not to a conversation
    assert len(problems) == 3
    assert {"markdown", "store"}.isdisjoint(settings.stored)


def test_bad_options_of_the_command_line_are_refused() -> None:
    with pytest.raises(UsageError, match="top_p"):
        ChatSettings(registry(), top_p=3.0)
    with pytest.raises(UnknownNameError):
        ChatSettings(registry(), draft="nobody")


def test_values_are_shown_as_they_are_typed() -> None:
    assert [shown(value) for value in (None, True, False, 0.5, 3, "none")] == ["none", "on", "off", "0.5", "3", "none"]
