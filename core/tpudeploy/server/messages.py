"""From OpenAI's messages to those of the model's format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tpudeploy.contracts.chat import Message
from tpudeploy.server.bodies import CalledTool, ChatMessage, ContentPart, Tool
from tpudeploy.server.errors import invalid, unsupported
from tpudeploy.server.service import Service
from tpudeploy.server.settings import Limits

_DEEPEST = 64
_NAME = re.compile(r"[\w.:/-]{1,64}")
"""Names of tools stand on a line of their own in models' formats, so nothing that could end it."""


def conversation(
    sent: Sequence[ChatMessage], tools: Sequence[dict[str, Any]], service: Service, limits: Limits
) -> list[Message]:
    """The messages to encode, tools with the first system message.

    :raises ApiError: what the model's format cannot say, or what is no conversation.
    """
    if len(sent) > limits.messages:
        raise invalid(f"A request has at most {limits.messages} messages, not {len(sent)}.", "messages")
    messages = [message for group in _grouped(sent) for message in _translated(group, service)]
    if not tools:
        return messages
    head = messages.pop(0).content if messages and messages[0].role == "system" else ""
    return [Message(role="system", content=head, tools=tuple(tools)), *messages]


Numbered = tuple[int, ChatMessage]


def _grouped(sent: Sequence[ChatMessage]) -> Iterator[list[Numbered]]:
    """An assistant's calls together with their results, every other message by itself."""
    group: list[Numbered] = []
    for index, message in enumerate(sent):
        if group and message.role != "tool":
            yield group
            group = []
        group.append((index, message))
    if group:
        yield group


def _translated(group: Sequence[Numbered], service: Service) -> Iterator[Message]:
    index, first = group[0]
    calls = first.tool_calls or [] if first.role == "assistant" else []
    if calls:
        yield from _calls(index, first, calls, service)
    elif first.role != "tool":
        yield _plain(index, first)
    results = group[1:] if first.role != "tool" else group
    order = {call.id: place for place, call in enumerate(calls)}
    for number, result in results:
        if result.tool_call_id not in order:
            raise invalid(
                "A message of the role tool must name the call that it answers in tool_call_id, and follow it.",
                f"messages.{number}.tool_call_id",
            )
    # The model's format has no ids: results stand in the order of their calls.
    for number, result in sorted(results, key=lambda item: order[item[1].tool_call_id or ""]):
        yield Message(role="observation", content=_text(number, result))


def _plain(index: int, message: ChatMessage) -> Message:
    text = _text(index, message)
    if message.role in ("system", "developer"):
        return Message(role="system", content=text)
    if message.role == "function":
        raise unsupported("The role function is not supported. Use the role tool.", f"messages.{index}.role")
    return Message(role="user" if message.role == "user" else "assistant", content=text)


def _calls(index: int, message: ChatMessage, calls: Sequence[CalledTool], service: Service) -> Iterator[Message]:
    if text := _text(index, message):
        yield Message(role="assistant", content=text)
    for place, call in enumerate(calls):
        where = f"messages.{index}.tool_calls.{place}"
        if call.type != "function" or call.function is None:
            raise unsupported("Only calls of functions are supported.", f"{where}.type")
        check_name(call.function.name, f"{where}.function.name")
        arguments = _arguments(call.function.arguments)
        if arguments is not None:
            yield service.tool_call_message(call.function.name, arguments)
        else:  # written by a model that was cut short, or mistaken: it is told so in the result, if its client likes
            yield Message(role="assistant", content=call.function.arguments, metadata=call.function.name)


def _arguments(text: str) -> dict[str, object] | None:
    """A call's arguments; None where they are no JSON object."""
    try:
        value = json.loads(text) if text.strip() else {}
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(index: int, message: ChatMessage) -> str:
    """The text of a message; its parts, a line each."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(_part(part, f"messages.{index}.content.{place}") for place, part in enumerate(message.content))


def _part(part: ContentPart, param: str) -> str:
    if part.type in ("text", "input_text", "output_text") and part.text is not None:
        return part.text
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type == "text":
        raise invalid("A part of the type text must have a text.", param)
    raise unsupported(f"This model reads text only, not parts of the type {part.type!r:.50}.", f"{param}.type")


def tool_schemas(tools: Sequence[Tool] | None, limits: Limits) -> list[dict[str, Any]]:
    """The functions that a request offers, as models' formats describe them.

    :raises ApiError: what is no function, or cannot be written as JSON.
    """
    if tools and len(tools) > limits.tools:
        raise invalid(f"A request has at most {limits.tools} tools, not {len(tools)}.", "tools")
    return [_schema(tool, f"tools.{place}") for place, tool in enumerate(tools or ())]


def _schema(tool: Tool, param: str) -> dict[str, Any]:
    if tool.type != "function" or tool.function is None:
        raise unsupported("Only tools of the type function are supported.", f"{param}.type")
    function = tool.function
    check_name(function.name, f"{param}.function.name")
    schema: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        schema["description"] = function.description
    schema["parameters"] = function.parameters or {"type": "object", "properties": {}}
    if not _is_shallow(schema):
        raise invalid(f"The schema of a tool is nested at most {_DEEPEST} levels deep.", f"{param}.function")
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise invalid("The schema of a tool cannot be written as JSON.", f"{param}.function") from None
    return schema


def _is_shallow(value: object) -> bool:
    """Whether it can be written by anything: JSON writers and pydantic give up at some depth."""
    level = [value]
    for _ in range(_DEEPEST):
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return True
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return False


def check_name(name: str, param: str) -> None:
    """:raises ApiError: a name that could not stand on a line of its own."""
    if not _NAME.fullmatch(name):
        raise invalid("A tool's name has 1 to 64 letters, digits and any of _ - . : /.", param)
