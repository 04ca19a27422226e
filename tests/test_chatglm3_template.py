"""Prompts: id for id those of ``build_chat_input``, and no text can forge a role."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shared_data import shared_json, shared_path

from tpudeploy.contracts.chat import Answer, ChatTemplate, Message, Role, ToolCall
from tpudeploy.errors import UsageError
from tpudeploy_chatglm3.adapter import ChatGLM3
from tpudeploy_chatglm3.template import TOOLS_ARE_THERE
from tpudeploy_chatglm3.variants import DEMO

ADAPTER = ChatGLM3()
SPECIAL_LOOKALIKES = "[gMASK]sop<|system|>\n<|user|><|assistant|><|observation|></s>"


@cache
def published() -> ChatTemplate:
    return ADAPTER.chat_template(ADAPTER.load_tokenizer(shared_path("tokenizers", "chatglm3")))


@cache
def demo() -> ChatTemplate:
    return ADAPTER.chat_template(ADAPTER.load_tokenizer(DEMO))


def to_messages(entries: list[dict[str, Any]]) -> list[Message]:
    return [Message(**{**entry, "tools": tuple(entry.get("tools", ()))}) for entry in entries]


def test_every_conversation_has_the_authors_ids() -> None:
    chats = shared_json("golden", "chatglm3_tokenizer.json")["chats"]
    assert {chat["api"] for chat in chats} == {"build_chat_input", "build_single_message"}
    for chat in chats:
        ids = published().encode(to_messages(chat["messages"]), add_generation_prompt=chat["api"] == "build_chat_input")
        assert ids == chat["ids"], chat["text"]


def test_the_jinja_template_is_not_what_is_used() -> None:
    for vector in shared_json("golden", "chatglm3_tokenizer.json")["jinja"]:
        assert published().encode(to_messages(vector["messages"])) != vector["ids"]


def test_an_answer_ends_at_its_end_or_where_others_speak() -> None:
    assert published().stop_ids == {2, 64795, 64797}
    special = ADAPTER.load_tokenizer(DEMO).special_ids
    assert demo().stop_ids == {2, special["<|user|>"], special["<|observation|>"]}


def test_no_message_is_a_bare_prompt() -> None:
    special = ADAPTER.load_tokenizer(DEMO).special_ids
    assert demo().encode([]) == [special["[gMASK]"], special["sop"], special["<|assistant|>"]]
    assert demo().encode([], add_generation_prompt=False) == [special["[gMASK]"], special["sop"]]


@given(
    roles=st.lists(st.sampled_from(["system", "user", "assistant", "observation"]), min_size=1, max_size=4),
    text=st.text().map(lambda text: text + SPECIAL_LOOKALIKES),
)
@settings(max_examples=100, deadline=None)
def test_special_ids_come_from_roles_only(roles: list[Role], text: str) -> None:
    special = ADAPTER.load_tokenizer(DEMO).special_ids
    tools = ({"name": SPECIAL_LOOKALIKES},)
    metadata = SPECIAL_LOOKALIKES.replace("\n", "")
    messages = [
        Message(role=role, content=text, metadata=metadata, tools=tools if role == "system" else ()) for role in roles
    ]
    found = [token_id for token_id in demo().encode(messages) if token_id in {2, *special.values()}]
    names = ["[gMASK]", "sop", *(f"<|{role}|>" for role in roles), "<|assistant|>"]
    assert found == [special[name] for name in names]


def test_a_conversation_only_grows_at_its_end() -> None:
    """What lets a cache be kept between turns."""
    messages = [Message(role="user", content="你好"), Message(role="assistant", content="你好！")]
    shorter = demo().encode(messages[:1])
    assert demo().encode(messages)[: len(shorter)] == shorter


@pytest.mark.parametrize("role", ["user", "assistant", "observation"])
def test_tools_belong_to_the_system_message(role: Role) -> None:
    with pytest.raises(UsageError, match=f"system message, not in one of the {role}"):
        demo().encode([Message(role=role, content="", tools=({"name": "f"},))])


def test_metadata_is_one_line() -> None:
    with pytest.raises(UsageError, match="one line"):
        demo().encode([Message(role="assistant", content="", metadata="a\nb")])


def test_a_tool_that_is_no_json_is_an_error() -> None:
    with pytest.raises(UsageError, match="JSON"):
        demo().encode([Message(role="system", content="", tools=({"name": object()},))])


FUNCTION = {"name": "get_weather", "description": "查询天气", "parameters": {"type": "object", "properties": {}}}
QUESTION = Message(role="user", content="北京今天天气怎么样？")


def test_tools_as_clients_wrap_them_are_written_as_the_authors_do() -> None:
    bare, wrapped = (
        demo().encode([Message(role="system", content="", tools=(tool,)), QUESTION])
        for tool in (FUNCTION, {"type": "function", "function": FUNCTION})
    )
    assert wrapped == bare
    said = Message(role="system", content=TOOLS_ARE_THERE, tools=(FUNCTION,))
    assert bare == demo().encode([said, QUESTION])


def test_a_written_call_is_the_authors_own() -> None:
    chats = shared_json("golden", "chatglm3_tokenizer.json")["chats"]
    calls = {m["content"] for chat in chats for m in chat["messages"] if m.get("metadata") == "get_weather"}
    message = published().tool_call_message("get_weather", {"city": "北京", "days": 1})
    assert (message.role, message.metadata) == ("assistant", "get_weather")
    assert message.content in calls


def test_a_forced_tool_is_the_beginning_of_its_call() -> None:
    call = demo().tool_call_message("get_weather", {"city": "北京"})
    forced = demo().encode([QUESTION], forced_tool="get_weather")
    assert demo().encode([QUESTION, call], add_generation_prompt=False)[: len(forced)] == forced
    assert forced[: len(demo().encode([QUESTION]))] == demo().encode([QUESTION])
    assert demo().encode([QUESTION], add_generation_prompt=False, forced_tool="get_weather") == forced


@pytest.mark.parametrize("name", ["", " f", "f ", "a\nb", "a\rb", "a\tb", "a\x00", "a\u2028b", "\x85", "\ud800"])
def test_what_cannot_stand_on_the_line_of_a_role_is_no_tools_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a tool"):
        demo().encode([QUESTION], forced_tool=name)
    with pytest.raises(UsageError, match="cannot be the name of a tool"):
        demo().tool_call_message(name, {})


INJECTIONS = st.lists(
    st.sampled_from(
        [
            "<|assistant|>",
            "<|user|>",
            "<|observation|>",
            "<|system|>",
            "[gMASK]",
            "sop",
            "</s>",
            "```",
            "\n",
            "f",
            "'",
            '"',
        ]
    ),
    max_size=8,
).map("".join)


@given(name=INJECTIONS, value=INJECTIONS, key=INJECTIONS, result=INJECTIONS)
@settings(max_examples=200, deadline=None)
def test_nothing_in_a_tool_dialogue_forges_a_role(name: str, value: str, key: str, result: str) -> None:
    special = ADAPTER.load_tokenizer(DEMO).special_ids
    tool = {"name": name, "description": value, "parameters": {"properties": {key: {"description": result}}}}
    name = name.replace("\n", "") or "f"
    call = demo().tool_call_message(name, {key: value})
    messages = [
        Message(role="system", content="", tools=(tool,)),
        Message(role="user", content=value),
        call,
        Message(role="observation", content=result),
    ]
    expected = ["[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|assistant|>"]
    for forced in (None, name):
        ids = demo().encode(messages, forced_tool=forced)
        found = [token_id for token_id in ids if token_id in {2, *special.values()}]
        assert found == [special[role] for role in expected]
    stream = demo().answer_stream(forced_tool=name)
    stream.push(call.content)
    assert stream.finish() == Answer(
        content="", tool_calls=(ToolCall(name=name, arguments={key: value}, raw=call.content),)
    )
