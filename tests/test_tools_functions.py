"""Functions as tools: what a model is told of them, and what they are called with."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from tpudeploy.errors import UsageError
from tpudeploy.tools.docstring import read_docstring
from tpudeploy.tools.function import ArgumentsError, ToolFunction
from tpudeploy.tools.results import bounded, error_text, result_text
from tpudeploy.tools.toolbox import TERMINATED, load_tools

EXAMPLES = Path(__file__).parent.parent / "examples"
WEATHER = {
    "name": "get_weather",
    "description": "Look up the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city"},
            "days": {"type": "integer", "description": "Number of days"},
        },
        "required": ["city"],
    },
}


def tool(function: Any) -> ToolFunction:
    return ToolFunction.of(function.__name__, function, "here:1")


def written(folder: Path, text: str, name: str = "tools.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_examples_are_described_as_the_demos_know_them() -> None:
    """Word for word, for a demo knows no other tool."""
    assert load_tools([EXAMPLES / "weather.py"]).schemas == (WEATHER,)
    family = Path(__file__).parent.parent / "plugins/chatglm3/tpudeploy_chatglm3/demo/dialogues.json"
    dialogues = {item["name"]: item["messages"] for item in json.loads(family.read_text(encoding="utf-8"))}
    for name, file in (("weather-tool-en", "weather.py"), ("weather-tool-zh", "weather_zh.py")):
        assert json.dumps(load_tools([EXAMPLES / file]).schemas[0]) == json.dumps(dialogues[name][0]["tools"][0])


@pytest.mark.parametrize(
    ("text", "summary", "parameters"),
    [
        ("", "", {}),
        ("One line.", "One line.", {}),
        ("Two\nlines.\n\nAnd more.", "Two lines.\n\nAnd more.", {}),
        (
            "Do.\n\n:param city: The city,\n    or a town.\n:param int days: How many.\n:returns: x",
            "Do.",
            {"city": "The city, or a town.", "days": "How many."},
        ),
        (
            "Do.\n\nArgs:\n    city: The city,\n        or a town: any.\n    days (int): How many.\n"
            "    **more: Rest.\n\nReturns:\n    dict: Something.",
            "Do.",
            {"city": "The city, or a town: any.", "days": "How many.", "more": "Rest."},
        ),
        ("查询天气\n\nArgs：\n    city：城市", "查询天气", {"city": "城市"}),
        ("Do.\n\nReturns:\n    city: no parameter", "Do.", {}),
        ("Note that x: y.\nArgs matter.", "Note that x: y. Args matter.", {}),
    ],
)
def test_docstrings(text: str, summary: str, parameters: dict[str, str]) -> None:
    found = read_docstring(text)
    assert (found.summary, found.parameters) == (summary, parameters)


@given(text=st.text(st.sampled_from("ab: \n:param(Args)*"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_docstring_is_an_error(text: str) -> None:
    assert all(name.isidentifier() for name in read_docstring(text).parameters)


class Point(BaseModel):
    """A model of the user's."""

    x: int
    title: str = "t"


def everything(
    text: str,
    number: float,
    on: bool,
    names: list[str],
    more: dict[str, int],
    unit: Literal["C", "F"],
    note: Annotated[Optional[str], "A note"] = None,  # noqa: UP045 - as users write it
    level: Annotated[int, Field(description="0 to 9", ge=0, le=9)] = 3,
    anything: Optional[Annotated[dict, "Any"]] = None,  # type: ignore[type-arg]  # noqa: UP045
    title: str = "",
) -> None:
    """All types.

    :param text: What to say.
    :param note: Less than the annotation.
    """


def test_every_type_has_its_schema() -> None:
    assert tool(everything).schema["parameters"] == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What to say."},
            "number": {"type": "number"},
            "on": {"type": "boolean"},
            "names": {"type": "array", "items": {"type": "string"}},
            "more": {"type": "object", "additionalProperties": {"type": "integer"}},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "note": {"type": "string", "description": "A note"},
            "level": {"type": "integer", "description": "0 to 9", "minimum": 0, "maximum": 9},
            "anything": {"type": "object", "description": "Any"},
            "title": {"type": "string"},
        },
        "required": ["text", "number", "on", "names", "more", "unit"],
    }


def test_models_of_the_users_are_described_too() -> None:
    def place(point: Point, when: datetime.date) -> str:
        return f"{type(point).__name__} {point.x} {when.year}"

    place.__annotations__ = {"point": Point, "when": datetime.date}
    found = tool(place)
    assert found.schema["parameters"]["$defs"]["Point"]["properties"]["title"] == {"type": "string"}
    assert found.call(found.read({"point": {"x": 3}, "when": "2026-01-02"})) == "Point 3 2026"


def test_arguments_are_checked_and_converted() -> None:
    def add(a: int, b: float = 0.5, /, *, schema: str = "s", json: bool = False) -> tuple[object, ...]:
        return (a, b, schema, json)

    found = tool(add)
    assert found.call(found.read({"a": "3"})) == (3, 0.5, "s", False)
    assert found.call(found.read({"a": 3.0, "json": True, "schema": "x"})) == (3, 0.5, "x", True)
    for arguments, wrong in (
        ({}, "a: Field required"),
        ({"a": "x"}, "a: Input should be a valid integer"),
        ({"a": 1, "c": 2}, "c: Extra inputs are not permitted"),
        ({"p0": 1}, "a: Field required"),
        ({"a": None}, "a: Input should be"),
    ):
        with pytest.raises(ArgumentsError, match=wrong):
            found.read(arguments)


def test_a_validator_that_fails_in_its_own_way_is_an_error_of_the_arguments() -> None:
    def look_up(value: str) -> str:
        return {"a": "b"}[value]

    def takes(x: Annotated[str, AfterValidator(look_up)]) -> str:
        return x

    takes.__annotations__["x"] = Annotated[str, AfterValidator(look_up)]  # not the text of it: look_up is local
    assert tool(takes).read({"x": "a"}) == {"x": "b"}
    with pytest.raises(ArgumentsError, match="KeyError: 'c'"):
        tool(takes).read({"x": "c"})


def test_a_coroutine_is_waited_for() -> None:
    async def later(x: int) -> int:
        return x + 1

    found = tool(later)
    assert found.call(found.read({"x": 1})) == 2


FILE = '''"""Tools."""
from __future__ import annotations
import dataclasses
import functools
from json import dumps
from os.path import join as joined
from helper import helped

LIMIT = 3

@dataclasses.dataclass
class Thing:
    """No tool."""
    size: int

def _private(x: int) -> int:
    return x

def wrapping(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ["wrapped", function(*args, **kwargs)]
    return wrapper
del wrapping.__module__
wrapping.__module__ = "elsewhere"

@wrapping
def second(thing: Thing) -> str:
    """The second."""
    return f"{thing.size} {helped()}"

@functools.lru_cache
def first(x: int) -> int:
    """The first."""
    return x * LIMIT

again = first
'''


def test_public_functions_of_the_file_are_its_tools(tmp_path: Path) -> None:
    written(tmp_path, "def helped():\n    return 'helped'\n", "helper.py")
    toolbox = load_tools([written(tmp_path, FILE)])
    assert list(toolbox.functions) == ["second", "first"]
    first, second = toolbox.functions["first"], toolbox.functions["second"]
    assert first.call(first.read({"x": 2})) == 6
    assert second.call(second.read({"thing": {"size": 2}})) == ["wrapped", "2 helped"]
    assert second.where == f"{tmp_path / 'tools.py'}:27"
    assert not list(tmp_path.rglob("__pycache__/tools*"))


def test_several_files_and_their_names(tmp_path: Path) -> None:
    one = written(tmp_path, "def f(x: int): ...\n", "one.py")
    two = written(tmp_path, "def g(x: int): ...\n", "two.txt")
    assert list(load_tools([one, two]).functions) == ["f", "g"]
    with pytest.raises(UsageError, match=r"copy\.py:1: there is a tool f in .*one\.py:1 already"):
        load_tools([one, written(tmp_path, "def f(): ...\n", "copy.py")])


BROKEN = {
    "def f(x: int:\n": "tools.py:1: ",
    "import sys\n\nsys.exit(3)\n": "tools.py:3: SystemExit: 3",
    "x = 1\n\ny = 1 / 0\n": "tools.py:3: ZeroDivisionError",
    "import nothing_of_this_name\n": "tools.py:1: ModuleNotFoundError",
    "x = 1\n": "defines no public function",
    "\n\ndef f(x): ...\n": "tools.py:3: f: the parameter x has no type",
    "def f(*x: int): ...\n": "tools.py:1: f: a tool needs parameters with names of their own, not \\*x",
    "def f(x: 'Missing'): ...\n": "tools.py:1: f: its types cannot be read: NameError",
    "def f(x: object()): ...\n": "tools.py:1: f: the parameter x has a type that cannot",
    "class C: ...\n\ndef f(x: C): ...\n": "tools.py:3: f: the parameter x has a type that cannot be described",
    "from typing import Callable\ndef f(x: Callable[[], int]): ...\n": "the parameter x has a type that cannot",
    "\udcff": "utf-8",
    "x = 1\n\0": r"tools.py:\d+: source code .*null bytes",
    "import asyncio\n\nraise asyncio.CancelledError\n": "tools.py:3: CancelledError",
    "class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E\n": "tools.py:4: E",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: ascii(text)[:30])
def test_a_file_that_cannot_be_used_is_one_error_that_names_the_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools.py"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=BROKEN[text]) as raised:
        load_tools([path])
    assert "\n" not in raised.value.message
    assert str(path) in raised.value.message


def test_the_programs_end_is_no_fault_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        load_tools([written(tmp_path, f"raise SystemExit({TERMINATED})\n")])


def test_a_new_type_is_a_type_and_no_tool(tmp_path: Path) -> None:
    text = "from typing import NewType\n\nCity = NewType('City', str)\n\ndef f(city: City) -> str: ...\n"
    assert [schema["parameters"]["properties"] for schema in load_tools([written(tmp_path, text)]).schemas] == [
        {"city": {"type": "string"}}
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        load_tools([tmp_path / "none.py"])
    with pytest.raises(UsageError, match="is a folder"):
        load_tools([tmp_path])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n", "as it is\n"),
        ("", '""'),
        (None, "null"),
        ({"a": [1, 2.5, True], "城": "市"}, '{"a": [1, 2.5, true], "城": "市"}'),
        ((1, {2}), "[1, [2]]"),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (Point(x=1), '{"x": 1, "title": "t"}'),
        (float("inf"), '"Infinity"'),
        (b"bytes", '"bytes"'),
        ("caf\udce9", "caf\\udce9"),  # as os.listdir gives a name that is not UTF-8
    ],
)
def test_results_are_text_or_json(value: object, text: str) -> None:
    assert result_text(value) == text


def test_what_is_no_json_is_its_text_or_an_error() -> None:
    assert "object object" in result_text(object())
    with pytest.raises(ValueError, match="utf-8"):
        result_text(b"\xff")
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        result_text(loop)


def test_a_long_result_is_cut() -> None:
    assert bounded("abc", 3) == "abc"
    cut = bounded("abcdef", 3)
    assert cut.startswith("abc...") and "d" not in cut[3:6]
    assert bounded(bounded("x" * 500, 300), 200).count("left out") == 1
    assert json.loads(error_text('"\n')) == {"error": '"\n'}
