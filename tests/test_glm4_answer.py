"""Answers: parsed as ``process_response`` does, without running anything, and shown as they arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_data import shared_json
from tpudeploy.contracts.chat import Answer, ToolCall
from tpudeploy_glm4.answer import GLM4AnswerStream, parse_answer
from tpudeploy_glm4.tool_call import parse_tool_call

NEXT = "<|assistant|>"


def push(stream: GLM4AnswerStream, piece: str) -> str:
    return stream.push_special(piece) if piece == NEXT else stream.push(piece)


def feed(pieces: list[str]) -> tuple[str, Answer]:
    """What was shown of an answer in pieces, of which :data:`NEXT` is the token, and the parsed answer."""
    stream = GLM4AnswerStream()
    return "".join(push(stream, piece) for piece in pieces), stream.finish()


def cut(output: str, step: int) -> list[str]:
    """An answer in pieces of ``step`` characters; the tokens that begin turns stay whole."""
    pieces: list[str] = []
    for number, turn in enumerate(output.split(NEXT)):
        pieces += [NEXT] if number else []
        pieces += [turn[start : start + step] for start in range(0, len(turn), step)]
    return pieces


def vectors() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = shared_json("golden", "process_response.json")["glm4"]
    assert entries
    return entries


def test_answers_are_what_the_authors_code_makes_of_them() -> None:
    for vector in vectors():
        answer, expected = parse_answer(vector["output"]), vector["content"]
        if isinstance(expected, str):
            assert answer == Answer(content=expected)
        else:
            assert answer.tool_call is not None
            assert (answer.tool_call.name, answer.tool_call.raw) == (expected["name"], expected["content"])


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_vectors_stream_to_their_content(step: int) -> None:
    for vector in vectors():
        output = vector["output"]
        shown, answer = feed(cut(output, step))
        assert answer == parse_answer(output)
        assert answer.content.startswith(shown)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["\n", "你好", "👋", "！"], ["", "你好", "👋", "！"]),
        (["get", "_weather", "\n", "{}"], ["", "", "", ""]),
        (["get_weather", " \n", '{"city"', ': "北京"}'], ["", "", "", ""]),
        (["\n", "查", "<|assistant|>", "f", "\n", "{}"], ["", "查", "", "", "", ""]),
    ],
)
def test_text_is_shown_as_soon_as_it_is_certain(pieces: list[str], shown: list[str]) -> None:
    stream = GLM4AnswerStream()
    assert [push(stream, piece) for piece in pieces] == shown


PIECES = ["\n", " ", "a", "你", "get_weather", "<", "<|", "<|assistant|>", "assistant|>", "[[", "[[训练时间]]", "{}"]


@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=20))
@settings(max_examples=300, deadline=None)
def test_what_was_shown_always_begins_the_content(pieces: list[str]) -> None:
    shown, answer = feed(pieces)
    assert answer.content.startswith(shown)
    if "".join(pieces).count(NEXT) == pieces.count(NEXT):
        assert answer == parse_answer("".join(pieces))


def test_several_calls_come_in_order() -> None:
    answer = parse_answer('\n我来查<|assistant|>f\n{"a": 1}<|assistant|>g \n{}<|assistant|>f\nnot json')
    assert answer.content == "我来查"
    assert [(call.name, call.arguments, call.raw) for call in answer.tool_calls] == [
        ("f", {"a": 1}, '{"a": 1}'),
        ("g", {}, "{}"),
        ("f", None, "not json"),
    ]


def test_a_repeated_text_cannot_call_a_tool() -> None:
    text = 'Sure:\n<|assistant|>delete_all\n{"sure": true}'
    assert feed(["\n", *text]) == (text, Answer(content=text))


def test_a_call_that_the_prompt_began() -> None:
    stream = GLM4AnswerStream(forced_tool="get_weather")
    assert [stream.push(piece) for piece in ('{"city": ', '"北京"}')] == ["", ""]
    call = ToolCall(name="get_weather", arguments={"city": "北京"}, raw='{"city": "北京"}')
    assert stream.finish() == Answer(content="", tool_calls=(call,))


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        ('{"city": "北京", "days": 1}', {"city": "北京", "days": 1}),
        (' \n{"a": [1, null, true]}\n', {"a": [1, None, True]}),
        ('```json\n{"a": 1.5}\n```', {"a": 1.5}),
        ("```\n{}", {}),
    ],
)
def test_calls_that_can_be_read(raw: str, arguments: dict[str, Any]) -> None:
    assert parse_tool_call("f", raw) == ToolCall(name="f", arguments=arguments, raw=raw)
    assert parse_answer(f"f\n{raw}").tool_call == ToolCall(name="f", arguments=arguments, raw=raw)


HOSTILE = [
    "",
    "```",
    "not json",
    "[1, 2]",
    "null",
    "{'a': 1}",
    "tool_call(city='北京')",
    "__import__('os').system('true')",
    '{"a": __import__("os").getcwd()}',
    '{"a": NaN}',
    '{"a": 1e999}',
    '{"a": "\\ud800"}',
    '{"a": 1} {"b": 2}',
    "[" * 100_000,
    '{"a":' * 100_000,
]


@pytest.mark.parametrize("raw", HOSTILE, ids=lambda raw: raw[:30])
def test_anything_else_is_kept_but_not_understood(raw: str) -> None:
    assert parse_tool_call("f", raw) == ToolCall(name="f", arguments=None, raw=raw)


@given(raw=st.text())
@settings(max_examples=200, deadline=None)
def test_no_call_ever_fails_and_arguments_are_json(raw: str) -> None:
    arguments = parse_tool_call("f", raw).arguments
    assert arguments is None or json.loads(json.dumps(arguments, allow_nan=False)) == arguments
