"""What ``/set`` shows and changes: how answers are generated, and how they are shown.

Values are checked by what checks the options of the command line: ``generation_options`` and ``find_drafter``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpudeploy.cli.answer_view import renders_markdown
from tpudeploy.contracts.drafter import PROMPT_LOOKUP
from tpudeploy.errors import TpuDeployError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from tpudeploy.plugins import PluginRegistry
    from tpudeploy.runtime.generator import GenerationOptions

Value = str | bool | int | float | None
_SWITCH = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_LONGEST = 40
DEFAULT = "default"
NONE = "none"


@dataclass(frozen=True)
class Setting:
    """One thing to set.

    :param parse: what was typed, as a value; raises ValueError.
    :param kind: what may be typed, for errors.
    :param default: what it is where nobody said anything.
    """

    meaning: str
    parse: Callable[[str], Value]
    kind: str
    default: Value = None


def _number(text: str) -> float:
    return float(text)


def _whole(text: str) -> int:
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError(text)
    return _SWITCH[text.lower()]


def _or_none(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    return lambda text: None if text.lower() == NONE else parse(text)


SETTINGS: Mapping[str, Setting] = {
    "temperature": Setting("over 0: draw tokens; higher is more varied", _or_none(_number), "a number or none"),
    "top_k": Setting("draw from the K most likely tokens; 0: all", _whole, "a whole number", 0),
    "top_p": Setting("draw from the likeliest tokens that hold P together", _number, "a number", 1.0),
    "repetition_penalty": Setting("over 1: seen tokens become less likely", _number, "a number", 1.0),
    "presence_penalty": Setting("over 0: tokens of the answer become less likely", _number, "a number", 0.0),
    "frequency_penalty": Setting("over 0: the more often, the less likely", _number, "a number", 0.0),
    "seed": Setting("makes drawing repeatable", _or_none(_whole), "a whole number or none"),
    "greedy": Setting("always the most likely token, whatever is set above", _switch, "on or off", False),
    "max_new_tokens": Setting("tokens of an answer at most", _or_none(_whole), "a whole number or none"),
    "draft": Setting("who guesses tokens: prompt-lookup, a plugin's drafter, none", str, "a name", PROMPT_LOOKUP),
    "markdown": Setting("render Markdown", _switch, "on or off", False),
    "store": Setting("keep the conversation on this machine", _switch, "on or off", True),
}
"""A line here adds a parameter of ``generation_options``."""
_OURS = ("draft", "markdown", "store")
"""Those that are no parameters of it."""


class ChatSettings:
    """The settings of one conversation.

    :param start: by the names of :data:`SETTINGS`, and ``ignore_eos``; what is missing has its default. Markdown None
        is what suits the terminal.
    :raises UsageError: a value out of its range.
    """

    def __init__(self, registry: PluginRegistry, **start: Any) -> None:
        self._registry = registry
        start["markdown"] = renders_markdown(start.get("markdown"))
        self._fixed = {name: value for name, value in start.items() if name not in SETTINGS}
        self._start = {name: start.get(name, setting.default) for name, setting in SETTINGS.items()}
        self._values = dict(self._start)
        self._options = self._build(self._values)

    @property
    def values(self) -> dict[str, Value]:
        """Every setting by its name."""
        return dict(self._values)

    @property
    def stored(self) -> dict[str, Value]:
        """What is kept with a conversation: not what belongs to a terminal."""
        return {name: value for name, value in self._values.items() if name not in ("markdown", "store")}

    @property
    def options(self) -> GenerationOptions:
        """How to generate."""
        return self._options

    @property
    def markdown(self) -> bool:
        """Whether answers are rendered."""
        return bool(self._values["markdown"])

    @property
    def store(self) -> bool:
        """Whether conversations are kept."""
        return bool(self._values["store"])

    def set(self, name: str, text: str) -> None:
        """Change a setting; ``default`` is what it was in the beginning.

        :raises UnknownNameError: no setting of that name.
        :raises UsageError: a value that is none, or out of its range; everything is as it was.
        """
        if name not in SETTINGS:
            raise UnknownNameError("setting", name, SETTINGS)
        self._change({name: self._start[name] if text.lower() == DEFAULT else _parse(name, text)})

    def restore(self, values: Mapping[str, Value]) -> list[str]:
        """Take values that were stored. :returns: for each that cannot be taken here, why."""
        refused = []
        for name in values.keys() & self.stored.keys():
            try:
                self._change({name: values[name]})
            except TypeError:
                refused.append(f"{name} cannot be {values[name]!r}.")
            except TpuDeployError as error:
                refused.append(error.message)
        return refused

    def _change(self, changes: Mapping[str, Value]) -> None:
        values = {**self._values, **changes}
        self._options = self._build(values)
        self._values = values

    def _build(self, values: Mapping[str, Value]) -> GenerationOptions:
        from tpudeploy.launch.generation import find_drafter, generation_options

        said: dict[str, Any] = {name: value for name, value in values.items() if name not in _OURS}
        drafter = find_drafter(str(values["draft"]), self._registry)
        return generation_options(**said, **self._fixed, drafter=drafter)


def _parse(name: str, text: str) -> Value:
    setting = SETTINGS[name]
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    try:
        if len(text) > _LONGEST:  # Python reads no number of thousands of digits
            raise ValueError(text)
        return setting.parse(text)
    except ValueError as error:
        raise UsageError(f"{name} must be {setting.kind}, not {shown!r}.") from error


def shown(value: Value) -> str:
    """A value as it would be typed."""
    if value is None:
        return NONE
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
