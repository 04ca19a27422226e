"""What is asked: a mix of good, bad and interrupted requests, the same for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
QUESTIONS = ("Hello", "Who are you?", "你好", "请使用C++写一段冒泡排序算法。")
WEATHER = "What is the weather in London today?"
FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "Look up the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city"},
            "days": {"type": "integer", "description": "Number of days"},
        },
        "required": ["city"],
    },
}
STATE = ("/health", "/metrics", "/v1/models", "/", "/openapi.json")
FIRST = 2
SHORT_TOKENS = 24
"""Enough of an answer to compare, and few enough for many of them."""


@dataclass(frozen=True)
class Request:
    """One request, and what may come of it.

    :param way: ``whole``, ``stream``; ``leave``: the connection is closed in the middle of the stream; ``abandon``: it
        is closed while nothing has come yet; ``half``: it is closed before the request was sent.
    :param status: the documented one; beside it, an answering endpoint may say 429.
    :param same: requests with the same word here get the same answer, whoever else asks what at the time.
    :param tokens: the answer has exactly so many.
    :param after: ``leave``: events with text; ``abandon``: milliseconds.
    """

    kind: str
    path: str = CHAT
    body: Mapping[str, Any] | bytes | None = None
    way: str = "whole"
    status: int = 200
    code: str = ""
    same: str = ""
    tokens: int | None = None
    after: int = 0
    with_key: bool = True

    @property
    def content(self) -> bytes:
        """The body's bytes."""
        body = self.body or b""
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    @property
    def answers(self) -> bool:
        """Whether it is a question for the model."""
        return self.status == 200 and self.body is not None


class Mix:
    """Makes requests.

    :param model: what the server says of it.
    :param body_bytes: what the server takes at most; None: not tried.
    :param keys: whether the server wants keys.
    :ivar answers: to each of QUESTIONS, for second turns.
    """

    def __init__(self, model: Mapping[str, Any], body_bytes: int | None, *, keys: bool) -> None:
        self.model: str = model["id"]
        self.backend: str = model["backend"]
        self.answers: dict[str, str] = {}
        self._seq_length: int = model["max_model_len"]
        self._body_bytes = body_bytes
        kinds: list[tuple[int, Callable[[random.Random], Request]]] = [
            (18, self._chat), (18, self._stream), (8, self._turns), (5, self._sampled), (4, self._long),
            (4, self._logprobs), (5, self._completion), (5, self._response), (7, self._tool), (8, self._left),
            (5, self._abandoned), (3, self._half), (3, self._broken), (5, self._wrong), (2, self._too_long),
            (2, self._unknown), (4, self._state), (2, self._json),
        ]  # fmt: skip
        kinds += [(1, self._too_large)] if body_bytes else []
        kinds += [(2, self._no_key)] if keys else []
        self._weights = [weight for weight, _ in kinds]
        self._kinds = [make for _, make in kinds]

    def request(self, seed: int, number: int) -> Request:
        """The ``number``-th request of a run."""
        chance = random.Random(f"{seed}/{number}")
        return chance.choices(self._kinds, self._weights)[0](chance)

    def references(self) -> list[Request]:
        """Each request that has an answer of its own, once; first the questions."""
        chats = [self.short(question) for question in QUESTIONS]
        completions = [self._completion_of(question, stream=False) for question in QUESTIONS]
        return [*chats, *completions, self._tool_of(stream=False)]

    def second_round(self) -> list[Request]:
        """The same of requests that need answers to the questions; then some of each kind.

        A server may build what it needs for a kind (the table behind JSON, the description) when it is first asked.
        """
        turns = [self._turn_of(one, other) for one in QUESTIONS for other in QUESTIONS]
        first = [make(random.Random(f"first {number}")) for number in range(FIRST) for make in self._kinds]
        return [*turns, *first, *(Request("state and page", path) for path in STATE)]

    def short(self, question: str, *, stream: bool = False) -> Request:
        """A question with a short answer."""
        return self._ask([_user(question)], "chat", stream=stream, same=f"chat {question}")

    def endless(self, tokens: int, kind: str, **more: Any) -> Request:
        """A question whose answer goes on until it is cut."""
        body = {"model": self.model, "messages": [_user("Hello")], "max_tokens": tokens, "ignore_eos": True}
        stream = more.get("way", "whole") != "whole"
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return Request(kind, body=body, tokens=tokens, **more)

    def _ask(self, messages: list[Any], kind: str, *, stream: bool, same: str = "", **fields: Any) -> Request:
        body = {"model": self.model, "messages": messages, "max_tokens": SHORT_TOKENS, "temperature": 0, **fields}
        if stream:
            return Request(f"{kind}, streamed", body={**body, "stream": True}, way="stream", same=same)
        return Request(kind, body=body, same=same)

    def _chat(self, chance: random.Random) -> Request:
        return self.short(chance.choice(QUESTIONS))

    def _stream(self, chance: random.Random) -> Request:
        return self.short(chance.choice(QUESTIONS), stream=True)

    def _turns(self, chance: random.Random) -> Request:
        return self._turn_of(chance.choice(QUESTIONS), chance.choice(QUESTIONS))

    def _turn_of(self, one: str, other: str) -> Request:
        answer = {"role": "assistant", "content": self.answers[one]}
        messages = [_user(one), answer, _user(other)]
        return self._ask(messages, "second turn", stream=False, same=f"turn {one} {other}")

    def _json(self, chance: random.Random) -> Request:
        fields = {"response_format": {"type": "json_object"}, "same": "json"}
        return self._ask([_user(QUESTIONS[0])], "JSON", stream=chance.random() < 0.5, **fields)

    def _sampled(self, chance: random.Random) -> Request:
        fields = {"temperature": 1.2, "top_p": 0.9, "seed": chance.randrange(1 << 30), "presence_penalty": 0.5}
        return self._ask([_user(chance.choice(QUESTIONS))], "sampled", stream=chance.random() < 0.5, **fields)

    def _long(self, chance: random.Random) -> Request:
        tokens = chance.randrange(60, 200)
        way = chance.choice(("whole", "stream"))
        return self.endless(tokens, "long" if way == "whole" else "long, streamed", way=way)

    def _logprobs(self, chance: random.Random) -> Request:
        question = chance.choice(QUESTIONS)
        fields = {"logprobs": True, "top_logprobs": 3, "same": f"chat {question}"}
        return self._ask([_user(question)], "with log-probabilities", stream=chance.random() < 0.5, **fields)

    def _completion(self, chance: random.Random) -> Request:
        return self._completion_of(chance.choice(QUESTIONS), stream=chance.random() < 0.5)

    def _completion_of(self, question: str, *, stream: bool) -> Request:
        # Text that the demo was not trained on has near ties: how long the answer is can be relied on, not what it is.
        body = {"model": self.model, "prompt": question, "max_tokens": 8, "ignore_eos": True, "temperature": 0}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        kind, way = ("completion, streamed", "stream") if stream else ("completion", "whole")
        return Request(kind, COMPLETIONS, body, way, tokens=8)

    def _response(self, chance: random.Random) -> Request:
        question, stream = chance.choice(QUESTIONS), chance.random() < 0.5
        body = {"model": self.model, "input": question, "temperature": 0, "max_output_tokens": SHORT_TOKENS}
        kind, way = ("response, streamed", "stream") if stream else ("response", "whole")
        return Request(kind, RESPONSES, {**body, "stream": stream}, way, same=f"chat {question}")

    def _tool(self, chance: random.Random) -> Request:
        return self._tool_of(stream=chance.random() < 0.5)

    def _tool_of(self, *, stream: bool) -> Request:
        tools = [{"type": "function", "function": FUNCTION}]
        return self._ask([_user(WEATHER)], "tool call", stream=stream, tools=tools, max_tokens=80, same="tool")

    def _left(self, chance: random.Random) -> Request:
        return self.endless(400, "left in the middle", way="leave", after=chance.randrange(1, 12))

    def _abandoned(self, chance: random.Random) -> Request:
        return self.endless(400, "left while waiting", way="abandon", after=chance.randrange(1, 300))

    def _half(self, chance: random.Random) -> Request:
        return Request("left while sending", body={"model": self.model, "messages": [_user("x" * 100)]}, way="half")

    def _broken(self, chance: random.Random) -> Request:
        bodies = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": ', b"[" * 5000, b'"text"', b"\x00")
        path = chance.choice((CHAT, COMPLETIONS, RESPONSES))
        return Request("malformed", path, chance.choice(bodies) or b" ", status=400)

    def _wrong(self, chance: random.Random) -> Request:
        good = {"model": self.model, "messages": [_user("Hello")]}
        changes: tuple[dict[str, Any], ...] = (
            {"messages": []}, {"messages": "Hello"}, {"messages": [{"role": "robot", "content": "x"}]}, {"n": 3},
            {"temperature": -1}, {"top_p": "high"}, {"max_tokens": 0}, {"stop": ["x"] * 5}, {"logit_bias": {"x": 1}},
            {"messages": [_user("half of \ud83d")]}, {"tools": [{"type": "web_search"}]}, {"tool_choice": "f"},
            {"response_format": {"type": "yaml"}}, {"stream_options": {"include_usage": True}},
        )  # fmt: skip
        return Request("wrong fields", body=good | chance.choice(changes), status=400)

    def _too_long(self, chance: random.Random) -> Request:
        text = "word " * (self._seq_length * chance.choice((2, 40)))
        body = {"model": self.model, "messages": [_user(text)]}
        if self._body_bytes and len(text) >= self._body_bytes:
            return Request("too large", body=body, status=413, code="request_too_large")
        return Request("too long", body=body, status=400, code="context_length_exceeded")

    def _too_large(self, chance: random.Random) -> Request:
        text = "x" * (self._body_bytes or 0)
        return Request("too large", body={"model": text}, status=413, code="request_too_large")

    def _unknown(self, chance: random.Random) -> Request:
        if chance.random() < 0.5:
            return Request("unknown path", "/v1/embeddings", {}, status=404)
        body = {"model": "no such model", "messages": [_user("Hello")]}
        return Request("unknown model", body=body, status=404, code="model_not_found")

    def _no_key(self, chance: random.Random) -> Request:
        body = {"model": self.model, "messages": [_user("Hello")]}
        return Request("without a key", body=body, status=401, code="invalid_api_key", with_key=False)

    def _state(self, chance: random.Random) -> Request:
        return Request("state and page", chance.choice(STATE))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
