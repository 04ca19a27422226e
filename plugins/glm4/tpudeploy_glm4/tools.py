"""How GLM-4's prompts describe tools: one section each, functions as JSON, the authors' own tools in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tpudeploy.contracts.chat import check_tool_name
from tpudeploy.errors import UsageError

WHO_YOU_ARE = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)
TOOLS_HEADING = "# 可用工具"
_HOW_TO_CALL = "在调用上述函数时，请使用 Json 格式表示调用的参数。"


def describe_tool(tool: Mapping[str, Any]) -> str:
    """The section of a function, or of ``{"type": "python"}``, ``"simple_browser"`` or ``"cogview"``.

    :raises UsageError: neither, or a function without a name.
    """
    kind = tool.get("type")
    known = _builtin_tools()
    if isinstance(kind, str) and kind in known:
        return f"\n## {kind}\n\n{known[kind]}"
    return describe_function(tool)


def describe_function(tool: Mapping[str, Any]) -> str:
    """The section of a function: ``{"type": "function", "function": {...}}``, or the inner object alone.

    :raises UsageError: it has no name, or is no JSON.
    """
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    try:
        check_tool_name(name if isinstance(name, str) else "")
    except UsageError as error:
        raise UsageError(
            "a tool must be a function with a name of one line.",
            hint='Write {"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}.',
        ) from error
    try:
        schema = json.dumps(function, indent=4, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the description of the tool {name} cannot be written as JSON: {error}.") from error
    return f"\n## {name}\n\n{schema}\n{_HOW_TO_CALL}"


@cache
def _builtin_tools() -> dict[str, str]:
    """Name -> description, word for word as the model was trained on them."""
    path = Path(__file__).parent / "builtin_tools.json"
    descriptions: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return descriptions
