"""What a model is told of a call: a text of bounded length."""

from __future__ import annotations

import json

from pydantic_core import to_json

LONGEST_RESULT = 4000
"""Characters of a result at most, where the model can read that many."""

_CUT = "... [the rest is left out]"


def result_text(value: object) -> str:
    """What a function returned, as text: a str as it is, anything else as JSON.

    :raises ValueError: JSON cannot carry it.
    """
    if isinstance(value, str):
        return value or '""'  # formats may leave out a message without text
    return json.dumps(json.loads(to_json(value, fallback=str, inf_nan_mode="strings")), ensure_ascii=False)


def error_text(message: str) -> str:
    """A failure, as JSON."""
    return json.dumps({"error": message}, ensure_ascii=False)


def bounded(text: str, limit: int) -> str:
    """``text``, or its beginning and a remark that there was more."""
    return text if len(text) <= limit else f"{text[:limit].removesuffix(_CUT)}{_CUT}"
