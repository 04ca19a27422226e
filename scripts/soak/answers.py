"""What a response says, whichever endpoint wrote it: so that a stream and a whole answer can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DONE = "[DONE]"
_ENDS = ("response.completed", "response.incomplete")
_REASONS = {"max_output_tokens": "length"}


@dataclass
class Said:
    """One answer.

    :ivar ended: whether it came to its end, and not only to that of the connection.
    :ivar tokens: that were generated; None where the response does not say it.
    """

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str = ""
    ended: bool = False
    error: Mapping[str, Any] | None = None
    tokens: int | None = None

    @property
    def value(self) -> tuple[Any, ...]:
        """What must be the same wherever the same was asked."""
        return self.text, tuple(self.calls), self.finish


def read_whole(path: str, body: Mapping[str, Any]) -> Said:
    """An answer that came as one object."""
    if path.endswith("/responses"):
        return _response(body)
    choice = body["choices"][0]
    said = Said(finish=choice["finish_reason"], ended=True, tokens=body["usage"]["completion_tokens"])
    said.text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
    said.calls = _calls(choice.get("message", {}).get("tool_calls") or ())
    return said


class StreamReader:
    """Reads the events of a stream.

    :ivar pieces: events that held text so far.
    """

    def __init__(self) -> None:
        self.said = Said()
        self.pieces = 0

    def read(self, line: str) -> None:
        """One line of the stream."""
        if not line.startswith("data: "):
            return
        data = line[len("data: ") :]
        if data == DONE:
            self.said.ended = True
            return
        event = json.loads(data)
        if "type" in event:
            self._response_event(event)
        elif "error" in event:
            self.said.error = event["error"]
        else:
            self._chunk(event)

    def _chunk(self, event: Mapping[str, Any]) -> None:
        for choice in event["choices"]:
            delta = choice.get("delta", choice)
            self._add(delta.get("content") or delta.get("text") or "")
            self.said.calls += _calls(delta.get("tool_calls") or ())
            self.said.finish = choice["finish_reason"] or self.said.finish
        if event.get("usage"):
            self.said.tokens = event["usage"]["completion_tokens"]

    def _response_event(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "response.output_text.delta":
            self._add(event["delta"])
        elif event["type"] == "error":
            self.said.error = event
        elif event["type"] in _ENDS:
            streamed, self.said = self.said.text, _response(event["response"])
            if streamed != self.said.text:
                self.said.error = {"code": "torn", "message": "the deltas are not the text of the response"}

    def _add(self, text: str) -> None:
        self.said.text += text
        self.pieces += bool(text)


def _response(body: Mapping[str, Any]) -> Said:
    """``/v1/responses``, in the words of the others."""
    cut = body["incomplete_details"]
    said = Said(ended=True, tokens=body["usage"]["output_tokens"])
    for item in body["output"]:
        if item["type"] == "function_call":
            said.calls.append((item["name"], item["arguments"]))
        else:
            said.text += "".join(part["text"] for part in item["content"])
    said.finish = _REASONS[cut["reason"]] if cut else "tool_calls" if said.calls else "stop"
    return said


def _calls(calls: Iterable[Mapping[str, Any]] | Sequence[Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
