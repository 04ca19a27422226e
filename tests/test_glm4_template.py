"""Prompts: id for id those of the published template, and no text can forge a role."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4_files import small_tokenizer
from shared_data import shared_json, shared_path
from tpudeploy.contracts.chat import Answer, ChatTemplate, Message, Role, Tokenizer, ToolCall
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.errors import UsageError
from tpudeploy_glm4.adapter import GLM4
from tpudeploy_glm4.special_tokens import SPECIAL_TOKENS
from tpudeploy_glm4.variants import GLM4_9B_CHAT

ADAPTER = GLM4()
LOOKALIKES = "[gMASK]<sop><|system|>\n<|user|><|assistant|><|observation|><|endoftext|>"
FUNCTION = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
FUNCTION_TEXT = """## get_weather

{
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {
                "type": "string"
            }
        }
    }
}
在调用上述函数时，请使用 Json 格式表示调用的参数。"""


@cache
def published_tokenizer() -> Tokenizer:
    return ADAPTER.load_tokenizer(shared_path("tokenizers", "glm4"))


@cache
def small(*, is_0414: bool = False) -> Tokenizer:
    template = "{%- for message in messages if message.role != 'system' %}" if is_0414 else None
    with TemporaryDirectory() as folder:
        return ADAPTER.load_tokenizer(small_tokenizer(Path(folder), template=template))


def written(messages: list[Message], *, is_0414: bool = False, prompt: bool = False) -> str:
    """A conversation as text, encoded and decoded."""
    tokenizer = small(is_0414=is_0414)
    return tokenizer.decode(ADAPTER.chat_template(tokenizer).encode(messages, add_generation_prompt=prompt))


def to_messages(entries: list[dict[str, Any]]) -> list[Message]:
    return [Message.model_validate(entry) for entry in entries]


def has_lookalike(entries: list[dict[str, Any]]) -> bool:
    return any(name in str(entry) for entry in entries for name in SPECIAL_TOKENS)


def test_every_conversation_has_the_authors_ids() -> None:
    template = ADAPTER.chat_template(published_tokenizer())
    plain = 0
    for chat in shared_json("golden", "glm4_tokenizer.json")["chats"]:
        ids = template.encode(to_messages(chat["messages"]), add_generation_prompt=chat["add_generation_prompt"])
        assert published_tokenizer().decode(ids) == chat["final_text"]
        if not has_lookalike(chat["messages"]):
            plain += 1
            assert ids == chat["final_ids"], chat["final_text"]
    assert plain >= 28


def test_what_looks_like_a_special_token_is_text() -> None:
    template = ADAPTER.chat_template(published_tokenizer())
    special = set(published_tokenizer().special_ids.values())
    chats = [c for c in shared_json("golden", "glm4_tokenizer.json")["chats"] if has_lookalike(c["messages"])]
    assert chats
    for chat in chats:
        ids = template.encode(to_messages(chat["messages"]), add_generation_prompt=False)
        assert [token_id for token_id in ids if token_id in special] == [151331, 151333, 151336]


ROLES = st.sampled_from(["system", "user", "assistant", "observation"])
TOOLS = st.sampled_from(
    [
        {"type": "function", "function": FUNCTION},
        {"type": "function", "function": {"name": "查询", "description": "<b>&'\"\n"}},
        {"type": "python"},
        {"type": "simple_browser"},
        {"type": "cogview"},
    ]
)
MESSAGES = st.lists(
    st.builds(
        Message,
        role=ROLES,
        content=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        metadata=st.sampled_from(["", "get_weather"]),
        tools=st.lists(TOOLS, max_size=3).map(tuple),
    ),
    max_size=4,
)


@given(messages=MESSAGES, prompt=st.booleans())
@settings(max_examples=150, deadline=None)
def test_conversations_are_what_the_published_template_renders(messages: list[Message], prompt: bool) -> None:
    sandbox = pytest.importorskip("jinja2.sandbox", reason="renders the published template")
    import json

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent: json.dumps(value, indent=indent, ensure_ascii=False)
    template = environment.from_string(shared_json("tokenizers", "glm4", "tokenizer_config.json")["chat_template"])
    entries = [message.model_dump(exclude={"tools"} if not message.tools else None) for message in messages]
    assert written(messages, prompt=prompt) == template.render(messages=entries, add_generation_prompt=prompt)


def test_an_answer_ends_at_its_end_or_where_others_speak() -> None:
    assert ADAPTER.chat_template(published_tokenizer()).stop_ids == {151329, 151336, 151338}
    special = small().special_ids
    stops = {special[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    assert ADAPTER.chat_template(small()).stop_ids == stops


@pytest.mark.parametrize("is_0414", [False, True])
def test_no_message_is_a_bare_prompt(is_0414: bool) -> None:
    assert written([], is_0414=is_0414, prompt=True) == "[gMASK]<sop><|assistant|>"
    assert written([], is_0414=is_0414) == "[gMASK]<sop>"


@pytest.mark.parametrize("is_0414", [False, True])
@given(roles=st.lists(ROLES, min_size=1, max_size=4), text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=60, deadline=None)
def test_special_ids_come_from_roles_only(is_0414: bool, roles: list[Role], text: str) -> None:
    tokenizer = small(is_0414=is_0414)
    special = tokenizer.special_ids
    metadata, tools = LOOKALIKES.replace("\n", ""), ({"name": LOOKALIKES.replace("\n", ""), "x": text + LOOKALIKES},)
    messages = [Message(role=r, content=text + LOOKALIKES, metadata=metadata, tools=tools) for r in roles]
    ids = ADAPTER.chat_template(tokenizer).encode(messages)
    found = [token_id for token_id in ids if token_id in special.values()]
    if is_0414:
        system = [role for role in roles if role == "system"]
        names = ["system", *system, *(role for role in roles if role != "system")]
    else:
        names = [name for role in roles for name in ("system", role)]
    expected = ["[gMASK]", "<sop>", *(f"<|{name}|>" for name in names), "<|assistant|>"]
    assert found == [special[name] for name in expected]


@pytest.mark.parametrize("is_0414", [False, True])
def test_a_conversation_only_grows_at_its_end(is_0414: bool) -> None:
    """What lets a cache be kept between turns."""
    messages = [Message(role="user", content="你好"), Message(role="assistant", content="你好！")]
    shorter = written(messages[:1], is_0414=is_0414, prompt=True)
    assert written(messages, is_0414=is_0414).startswith(shorter)


def test_tools_stand_in_a_system_section_of_their_own() -> None:
    for tool in (FUNCTION, {"type": "function", "function": FUNCTION}):
        text = written([Message(role="system", content="规则", tools=(tool,)), Message(role="user", content="北京？")])
        assert text == (
            "[gMASK]<sop><|system|>\n"
            "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
            "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具\n"
            f"{FUNCTION_TEXT}<|system|>\n规则<|user|>\n北京？"
        )


TOOL_TALK = [
    Message(role="user", content="北京天气？"),
    Message(role="assistant", content='{"city": "北京"}', metadata="get_weather"),
    Message(role="observation", content="晴", metadata="get_weather"),
    Message(role="system", content="后来的规则"),
    Message(role="assistant", content="晴天。"),
]


def test_0414_writes_tools_and_system_messages_first() -> None:
    """As its published template does, line ends and the space after a tool's name included."""
    tools = ({"type": "function", "function": FUNCTION}, {"name": "f"})
    text = written([Message(role="system", content="规则", tools=tools), *TOOL_TALK], is_0414=True, prompt=True)
    assert text == (
        f"[gMASK]<sop><|system|>\n# 可用工具\n\n{FUNCTION_TEXT}\n"
        '## f\n\n{\n    "name": "f"\n}\n在调用上述函数时，请使用 Json 格式表示调用的参数。'
        "<|system|>\n规则<|system|>\n后来的规则"
        '<|user|>\n北京天气？<|assistant|>get_weather \n{"city": "北京"}<|observation|>\n晴<|assistant|>\n晴天。'
        "<|assistant|>"
    )


def test_0414_keeps_empty_messages_but_not_a_carrier_of_tools() -> None:
    messages = [Message(role="system", content="", tools=(FUNCTION,)), Message(role="user", content="")]
    assert written(messages, is_0414=True) == f"[gMASK]<sop><|system|>\n# 可用工具\n\n{FUNCTION_TEXT}<|user|>\n"
    assert written([Message(role="system", content="")], is_0414=True) == "[gMASK]<sop><|system|>\n"


def test_the_model_decides_on_the_format_where_it_is_known(tmp_path: Path) -> None:
    config = GLM4_9B_CHAT.model_copy(update={"vocab_size": small().vocab_size})
    folder = small_tokenizer(tmp_path)
    text = [Message(role="user", content="a"), Message(role="system", content="b")]
    for post_norms in (False, True):
        tokenizer = ADAPTER.load_tokenizer(folder, config.model_copy(update={"post_norms": post_norms}))
        ids = ADAPTER.chat_template(tokenizer).encode(text, add_generation_prompt=False)
        assert tokenizer.decode(ids).startswith("[gMASK]<sop><|system|>") is post_norms


@pytest.mark.parametrize("is_0414", [False, True])
@pytest.mark.parametrize(
    "tool", [{}, {"type": "function"}, {"function": "f"}, {"function": {"name": ""}}, {"name": 1}, {"name": "a\nb"}]
)
def test_a_tool_without_a_name_is_an_error(is_0414: bool, tool: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="function with a name"):
        written([Message(role="system", content="", tools=(tool,))], is_0414=is_0414)


def test_0414_has_no_tools_of_its_own() -> None:
    with pytest.raises(UsageError, match="function with a name"):
        written([Message(role="system", content="", tools=({"type": "python"},))], is_0414=True)


def test_a_tool_that_is_no_json_is_an_error() -> None:
    with pytest.raises(UsageError, match="tool f cannot be written as JSON"):
        written([Message(role="system", content="", tools=({"name": "f", "x": object()},))])


def test_no_content_may_be_written_as_null() -> None:
    message = Message.model_validate({"role": "system", "content": None, "tools": [FUNCTION]})
    assert written([message]).endswith(FUNCTION_TEXT)


def test_metadata_is_one_line() -> None:
    with pytest.raises(UsageError, match="one line"):
        written([Message(role="assistant", content="", metadata="a\nb")])


def test_activations_are_bf16_and_weights_int8_by_default() -> None:
    template: ChatTemplate = ADAPTER.chat_template(small())
    assert template.encode([])
    assert (ADAPTER.half, ADAPTER.default_quant) == (DType.BF16, QuantMode.INT8)


QUESTION = Message(role="user", content="北京今天天气怎么样？")


def test_a_written_call_is_the_authors_own() -> None:
    chats = shared_json("golden", "glm4_tokenizer.json")["chats"]
    calls = {m["content"] for chat in chats for m in chat["messages"] if m.get("metadata") == "get_weather"}
    message = ADAPTER.chat_template(published_tokenizer()).tool_call_message("get_weather", {"city": "北京", "days": 1})
    assert (message.role, message.metadata) == ("assistant", "get_weather")
    assert message.content in calls


@pytest.mark.parametrize("is_0414", [False, True])
def test_a_forced_tool_is_the_beginning_of_its_call(is_0414: bool) -> None:
    for tokenizer in (small(is_0414=is_0414), published_tokenizer()):
        template = ADAPTER.chat_template(tokenizer)
        call = template.tool_call_message("get_weather", {"city": "北京"})
        forced = template.encode([QUESTION], forced_tool="get_weather")
        assert template.encode([QUESTION, call], add_generation_prompt=False)[: len(forced)] == forced
        assert forced[: len(template.encode([QUESTION]))] == template.encode([QUESTION])


@pytest.mark.parametrize("name", ["", " f", "a\nb", "a\rb", "a\x00", "a\u2029b", "\ud800"])
def test_what_cannot_stand_on_the_line_of_a_role_is_no_tools_name(name: str) -> None:
    template = ADAPTER.chat_template(small())
    with pytest.raises(UsageError, match="cannot be the name of a tool"):
        template.encode([QUESTION], forced_tool=name)
    with pytest.raises(UsageError, match="cannot be the name of a tool"):
        template.tool_call_message(name, {})
    with pytest.raises(UsageError, match="function with a name"):
        written([Message(role="system", content="", tools=({"name": name},))])


INJECTIONS = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "```", "\n", "## ", "f", "'", '"']),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("is_0414", [False, True])
@given(name=INJECTIONS, value=INJECTIONS, key=INJECTIONS, result=INJECTIONS)
@settings(max_examples=100, deadline=None)
def test_nothing_in_a_tool_dialogue_forges_a_role(is_0414: bool, name: str, value: str, key: str, result: str) -> None:
    tokenizer = small(is_0414=is_0414)
    template, special = ADAPTER.chat_template(tokenizer), tokenizer.special_ids
    name = name.replace("\n", "").strip() or "f"
    parameters = {"properties": {key: {"description": result}}}
    tool = {"type": "function", "function": {"name": name, "description": value, "parameters": parameters}}
    call = template.tool_call_message(name, {key: value})
    messages = [
        Message(role="system", content="", tools=(tool,)),
        Message(role="user", content=value + "?"),
        call,
        Message(role="observation", content=result + "."),
    ]
    expected = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|assistant|>"]
    for forced in (None, name):
        ids = template.encode(messages, forced_tool=forced)
        found = [token_id for token_id in ids if token_id in special.values()]
        assert found == [special[role] for role in expected]
    stream = template.answer_stream(forced_tool=name)
    stream.push(call.content)
    assert stream.finish() == Answer(
        content="", tool_calls=(ToolCall(name=name, arguments={key: value}, raw=call.content),)
    )
