"""Answers as ``response`` objects, and the events of their streams."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpudeploy.contracts.chat import ToolCall
from tpudeploy.server.bodies import ResponseBody
from tpudeploy.server.errors import ApiError
from tpudeploy.server.exchange import AnswerForm
from tpudeploy.server.respond import sse
from tpudeploy.server.service import End, Piece, Usage


class ResponseForm(AnswerForm):
    """Of one answer; nothing of it is stored."""

    def __init__(self, model: str, body: ResponseBody) -> None:
        self._message_id = _new_id("msg")
        self._number = 0
        self._text: list[str] = []
        self._head = {
            "id": _new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": _metadata(body),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": ((body.text and body.text.format) or {}).get("type", "text")}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
        }

    def begin(self) -> Iterator[str]:
        """Before anything is known of the answer."""
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)

    def piece(self, piece: Piece) -> Iterator[str]:
        """Text; the first of it opens the message."""
        if not self._text:
            message = self._message([], "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=message)
            yield self._part_event("response.content_part.added", part=_part(""))
        self._text.append(piece.text)
        yield self._part_event("response.output_text.delta", delta=piece.text, logprobs=[])

    def end(self, end: End) -> Iterator[str]:
        """The whole message, whole calls, the whole response."""
        if not self._text:  # an empty answer is one, too
            yield from self.piece(Piece("")) if not end.tool_calls else ()
        output = self._output("".join(self._text), end)
        if self._text:
            text = "".join(self._text)
            yield self._part_event("response.output_text.done", text=text, logprobs=[])
            yield self._part_event("response.content_part.done", part=_part(text))
            yield self._event("response.output_item.done", output_index=0, item=output[0])
        for index, item in enumerate(output):
            if item["type"] == "function_call":
                yield from self._call_events(index, item)
        response = self._response(output, end)
        name = "response.completed" if response["status"] == "completed" else "response.incomplete"
        yield self._event(name, response=response)

    def failed(self, error: ApiError) -> Iterator[str]:
        """The error."""
        told = error.body()["error"]
        yield self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def whole(self, pieces: Sequence[Piece], end: End) -> Mapping[str, Any]:
        """``response``."""
        return self._response(self._output("".join(piece.text for piece in pieces), end), end)

    def _output(self, text: str, end: End) -> list[dict[str, Any]]:
        status = "incomplete" if end.finish_reason == "length" else "completed"
        message = [self._message([_part(text)], status)] if text or not end.tool_calls else []
        calls = [_call_item(call) for call in end.tool_calls]
        if calls:
            calls[-1]["status"] = status
        return [*message, *calls]

    def _response(self, output: Sequence[Mapping[str, Any]], end: End) -> dict[str, Any]:
        cut = end.finish_reason == "length"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": output,
            "usage": _usage(end.usage),
        }

    def _message(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _call_events(self, index: int, item: Mapping[str, Any]) -> Iterator[str]:
        place = {"output_index": index, "item_id": item["id"]}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        yield self._event(
            "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
        )
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _part_event(self, name: str, **fields: Any) -> str:
        return self._event(name, item_id=self._message_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, /, **fields: Any) -> str:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number - 1, **fields}, event=kind)


def _metadata(body: ResponseBody) -> dict[str, str]:
    """What the client wants to be told back: texts by name, as OpenAI's API has them."""
    given = (body.model_extra or {}).get("metadata")
    return {key: value for key, value in given.items() if isinstance(value, str)} if isinstance(given, dict) else {}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(call: ToolCall) -> dict[str, Any]:
    arguments = call.raw if call.arguments is None else json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": _new_id("fc"),
        "type": "function_call",
        "call_id": f"call_{uuid.uuid4().hex[:24]}",
        "name": call.name,
        "arguments": arguments,
        "status": "completed",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.reused_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
