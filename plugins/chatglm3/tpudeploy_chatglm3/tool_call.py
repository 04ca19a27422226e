"""Read a tool call that the model wrote, as data, never run; and write one."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from tpudeploy.contracts.chat import ToolCall, arguments_json

LONGEST_CALL = 20_000
"""Characters of a call in Python's form. Much deeper nesting than fits in them (100,000 tried) overruns a thread's
stack of 2 MB in Python 3.10 and ends the process; JSON's parser checks its depth and needs no limit."""


def parse_tool_call(name: str, raw: str) -> ToolCall:
    """The call of ``name`` that ``raw`` holds.

    Understood are ``tool_call(city='Beijing', days=1)`` with literal keyword arguments, as the authors train it, and
    a JSON (or Python) object, either in a code fence or not. Anything else gives arguments of None.
    """
    return ToolCall(name=name, arguments=_arguments(name, raw), raw=raw)


def write_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """What :func:`parse_tool_call` reads as a call with these arguments.

    It is ``tool_call(city='Beijing', days=1)`` in a code fence, as the authors train it; a JSON object where that form
    would not come back as it was: a key that is no identifier, or a very long text.

    :raises UsageError: JSON cannot carry the arguments.
    """
    as_json = arguments_json(name, arguments)
    keywords = ", ".join(f"{key}={value!r}" for key, value in json.loads(as_json).items())
    code = f"```python\ntool_call({keywords})\n```"
    # Compared as text: to Python, True equals 1.
    comes_back = json.dumps(_arguments(name, code), ensure_ascii=False) == as_json
    return code if comes_back else as_json


def _arguments(name: str, raw: str) -> dict[str, Any] | None:
    code = _unfenced(raw)
    for read in (json.loads, lambda text: _python_call(name, text)):
        try:
            value = read(code)
            # Only what JSON can carry: no sets, bytes, infinities or halves of characters.
            plain = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return plain if isinstance(plain, dict) else None
    return None


def _unfenced(raw: str) -> str:
    lines = raw.strip().split("\n")
    if lines[0].startswith("```"):
        lines = lines[1:]
        if lines and lines[-1].strip() == "```":
            lines.pop()
    return "\n".join(lines).strip()


def _python_call(name: str, code: str) -> object:
    if len(code) > LONGEST_CALL:
        raise ValueError("too long to be parsed safely")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on escapes such as "\d", which models write
        node = ast.parse(code, mode="eval").body
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if not isinstance(node.func, ast.Name) or node.func.id not in ("tool_call", name):
        raise ValueError("not a call of the tool")
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    if node.args or None in arguments or len(arguments) < len(node.keywords):
        raise ValueError("positional, unpacked or repeated arguments")
    return arguments
