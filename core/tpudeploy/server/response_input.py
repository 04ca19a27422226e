"""From the input of ``/v1/responses`` to the messages and tools of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tpudeploy.server.bodies import (
    CalledFunction,
    CalledTool,
    ChatMessage,
    Function,
    InputItem,
    ResponseBody,
    ResponseTool,
    Tool,
)
from tpudeploy.server.errors import invalid, unsupported


def chat_messages(body: ResponseBody) -> list[ChatMessage]:
    """The conversation. :raises ApiError: items that are none of a conversation."""
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    head = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    return [*head, *_messages(items)]


def _messages(items: Sequence[InputItem]) -> Iterator[ChatMessage]:
    calls: list[CalledTool] = []  # those that stand together make one message
    for index, item in enumerate(items):
        if item.type == "function_call":
            calls.append(_call(item, f"input.{index}"))
            continue
        if calls:
            yield ChatMessage(role="assistant", tool_calls=calls)
            calls = []
        if item.type != "reasoning":  # this model's answers have none, and others' means nothing to it
            yield _message(item, f"input.{index}")
    if calls:
        yield ChatMessage(role="assistant", tool_calls=calls)


def _call(item: InputItem, param: str) -> CalledTool:
    if item.call_id is None or item.name is None:
        raise invalid("A function_call has a call_id, a name and arguments.", param)
    return CalledTool(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments or ""))


def _message(item: InputItem, param: str) -> ChatMessage:
    if item.type == "function_call_output":
        return ChatMessage(role="tool", tool_call_id=item.call_id, content=item.output)
    if item.type != "message":
        raise unsupported(f"Items of the type {item.type!a:.50} are not supported.", f"{param}.type")
    if item.role is None:
        raise invalid("A message has a role.", f"{param}.role")
    return ChatMessage(role=item.role, content=item.content)


def chat_tools(tools: Sequence[ResponseTool] | None) -> list[Tool]:
    """The tools. :raises ApiError: one that is no function."""
    return [_tool(tool, f"tools.{index}") for index, tool in enumerate(tools or ())]


def _tool(tool: ResponseTool, param: str) -> Tool:
    if tool.type != "function":
        raise unsupported(f"Tools of the type {tool.type!a:.50} are not supported, functions are.", f"{param}.type")
    if tool.name is None:
        raise invalid("A function has a name.", f"{param}.name")
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)


def chat_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """``{"type": "function", "name": ...}`` as a chat says it."""
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice
