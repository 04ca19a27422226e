"""``tool_choice``: which tools are offered, and whether one must be called."""

from __future__ import annotations

from typing import Any

from tpudeploy.server.errors import invalid, unsupported


def choose_tools(
    choice: str | dict[str, Any] | None, tools: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """The tools to offer, and the one that must be called.

    :raises ApiError: a choice that is none, or that cannot be made sure of.
    """
    if choice in (None, "auto"):
        return tools, None
    if choice == "none":
        return [], None
    names = [tool["name"] for tool in tools]
    if choice == "required":
        if len(names) != 1:
            raise unsupported("tool_choice 'required' needs exactly one tool here. Name one.", "tool_choice")
        return tools, names[0]
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        raise invalid("tool_choice is auto, none, required, or names a function of tools.", "tool_choice")
    return tools, name
