"""``response_format``: in which form an answer is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpudeploy.server.errors import unsupported


def wants_json(given: Mapping[str, Any] | None, tools: Sequence[object], param: str) -> bool:
    """Whether the answer is to be a JSON object.

    :param tools: what the request offers; a call would be no answer in that form.
    :param param: the field's name.
    :raises ApiError: a form that nothing here can make sure of.
    """
    kind = (given or {}).get("type", "text")
    if kind == "text":
        return False
    if kind != "json_object":
        raise unsupported(
            f"{param} takes text and json_object: nothing here makes sure that an answer follows a schema. "
            "A function of tools that tool_choice names takes one.",
            param,
        )
    if tools:
        raise unsupported(f"{param} json_object and tools exclude each other here.", param)
    return True
