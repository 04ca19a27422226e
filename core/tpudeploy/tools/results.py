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
        return _encodable(value) or '""'  # formats may leave out a message without text
    return json.dumps(json.loads(to_json(value, fallback=str, inf_nan_mode="strings")), ensure_ascii=False)


def error_text(message: str) -> str:
    """A failure, as JSON."""
    return json.dumps({"error": _encodable(message)}, ensure_ascii=False)


def describe_failure(error: BaseException) -> str:
    """Type and message of what somebody else's code raised; an exception may fail even at telling its message."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - anybody's code
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _encodable(text: str) -> str:
    """``text`` with halves of surrogate pairs, as in names of files that are not UTF-8, written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def bounded(text: str, limit: int) -> str:
    """``text``, or its beginning and a remark that there was more."""
    return text if len(text) <= limit else f"{text[:limit].removesuffix(_CUT)}{_CUT}"
