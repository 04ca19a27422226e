"""The API through OpenAI's own client: over a demo model, and over an engine that says what a test wants."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from cli_support import environment, run_program
from server_support import MODEL, RunningServer, ScriptedEngine, fake_model, limits, wait_until
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.plugins import registry
from tpudeploy.server.settings import LOOPBACK_HOSTS, ServerSettings
from tpudeploy.settings import Settings

GREETING = "Hello! I am chatglm3:demo, a very small demo model."
HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
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
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}
QUESTION: Any = {"role": "user", "content": "What is the weather in London today?"}
RESULT = '{"city": "London", "weather": "rain", "temperature": 15}'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled."""
    folder = tmp_path_factory.mktemp("home")
    done = run_program("run", "chatglm3:demo", "--backend", "cpu", "Hello", env=environment(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[RunningServer]:
    target = open_target(LaunchRequest(model="chatglm3:demo", backend="cpu"), Settings(home=home), registry())
    settings = ServerSettings(allowed_hosts=LOOPBACK_HOSTS, names=("gpt-4o-mini",))
    with target.load() as model, RunningServer([model], settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return server.openai()


@pytest.fixture(scope="module")
def scripted() -> Iterator[RunningServer]:
    """Says ``one two three four`` and stops."""
    with RunningServer([fake_model(ScriptedEngine("one two three four", endless=False), calls=True)]) as running:
        yield running


def complete(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "chatglm3:demo", "messages": HELLO, **more})


def said(server: RunningServer, **more: Any) -> Any:
    """What a scripted engine's answer came to."""
    response = server.post({"model": MODEL, "messages": HELLO, **more})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def refused(server: RunningServer, body: Any, path: str = "/v1/chat/completions") -> dict[str, Any]:
    """The error object of a request that is at fault itself."""
    response = server.post(body, path)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def test_an_answer_is_what_the_command_line_says(client: openai.OpenAI, home: Path) -> None:
    answer = complete(client)
    assert answer.choices[0].message.content == GREETING
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "chatglm3:demo"
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_and_what_it_cost(client: openai.OpenAI) -> None:
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == GREETING
    assert len(chunks) > 8  # it came in pieces
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 8
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # the prompt was there already
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_second_turn_does_not_pay_for_the_first(client: openai.OpenAI) -> None:
    first = complete(client)
    messages = [*HELLO, {"role": "assistant", "content": first.choices[0].message.content}]
    second = complete(client, messages=[*messages, {"role": "user", "content": "Who are you?"}])
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.total_tokens - 2


def test_models_are_told_by_every_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["gpt-4o-mini", "chatglm3:demo"]
    assert client.models.retrieve("chatglm3:demo").owned_by == "tpudeploy"
    assert complete(client, model="gpt-4o-mini").choices[0].message.content == GREETING
    with pytest.raises(openai.NotFoundError) as error:
        complete(client, model="gpt-9")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_sampling_is_repeatable_by_its_seed(client: openai.OpenAI) -> None:
    options = {"temperature": 2.0, "max_completion_tokens": 12, "extra_body": {"ignore_eos": True}}
    same = [complete(client, seed=seed, **options).choices[0].message.content for seed in (7, 7, -8, 9)]
    assert same[0] == same[1]
    assert len(set(same)) > 1


def test_length_is_limited(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = complete(client, **{name: 4})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 4)
    # A limit beyond the model's own is a limit all the same.
    assert complete(client, max_tokens=100_000).choices[0].finish_reason == "stop"


def test_a_conversation_that_does_not_fit_is_refused_with_figures(client: openai.OpenAI) -> None:
    for count in (900, 200_000):
        with pytest.raises(openai.BadRequestError) as error:
            complete(client, messages=[{"role": "user", "content": "word " * count}])
        assert error.value.code == "context_length_exceeded"
        assert "512 tokens" in error.value.message


def test_log_probabilities_belong_to_the_tokens_of_the_answer(client: openai.OpenAI) -> None:
    whole = complete(client, logprobs=True, top_logprobs=2).choices[0]
    tokens = whole.logprobs.content
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(token.token for token in tokens)  # nothing of the format around the text
    for token in tokens:
        assert -2 < token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy
        assert token.top_logprobs[0].token == token.token  # spaces included, but for the first word's
        assert bytes(token.bytes).decode() == token.token
    chunks = list(complete(client, logprobs=True, stream=True))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert complete(client).choices[0].logprobs is None


def test_a_tool_is_called_and_its_result_is_put_into_words(client: openai.OpenAI) -> None:
    asked = complete(client, messages=[QUESTION], tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    assert asked.choices[0].message.content is None
    (call,) = asked.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] == "London"
    history = [QUESTION, asked.choices[0].message.model_dump(exclude_none=True)]
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    told = complete(client, messages=[*history, result], tools=[WEATHER])
    assert told.choices[0].message.content == "London today: rain, 15 degrees."
    assert told.choices[0].finish_reason == "stop"
    # The call was written into the history as the model had written it: it need not be computed again.
    assert told.usage.prompt_tokens_details.cached_tokens >= asked.usage.total_tokens - 2


def test_a_call_is_streamed_as_one_delta(client: openai.OpenAI) -> None:
    chunks = list(complete(client, messages=[QUESTION], tools=[WEATHER], stream=True))
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (call.index, call.type, call.function.name) == (0, "function", "get_weather")
    assert json.loads(call.function.arguments)["city"] == "London"
    assert call.id.startswith("call_")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_call_that_is_cut_by_a_limit_says_so(client: openai.OpenAI) -> None:
    cut = complete(client, messages=[QUESTION], tools=[WEATHER], max_tokens=6).choices[0]
    (call,) = cut.message.tool_calls
    assert call.function.name == "get_weather"
    assert cut.finish_reason == "length"
    history = [QUESTION, cut.message.model_dump(exclude_none=True)]
    result = {"role": "tool", "tool_call_id": call.id, "content": "this call was cut"}
    told = complete(client, messages=[*history, result], tools=[WEATHER])
    assert told.usage.prompt_tokens_details.cached_tokens > told.usage.prompt_tokens / 2
    chunks = list(complete(client, messages=[QUESTION], tools=[WEATHER], max_tokens=6, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    tools: Any = [{"type": "function", **WEATHER["function"]}]
    response = client.responses.create(model="chatglm3:demo", input=[QUESTION], tools=tools, max_output_tokens=6)
    assert response.incomplete_details is not None
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in response.output] == ["incomplete"]


def test_the_choice_of_a_tool_is_honoured(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in (named, "required"):
        answer = complete(client, messages=[QUESTION], tools=[WEATHER], tool_choice=choice, max_tokens=60)
        assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"
    answer = complete(client, messages=[QUESTION], tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None


def test_an_answer_may_have_to_be_a_json_object(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    answer = complete(client, response_format=form, max_tokens=200, seed=3, temperature=1)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].message.content.startswith("{")
    stream = complete(client, response_format=form, max_tokens=200, seed=3, temperature=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content
    other = client.responses.create(model="chatglm3:demo", input="Hello", text={"format": form}, max_output_tokens=20)
    assert other.output_text.startswith("{")


def test_plain_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chatglm3:demo", prompt="Hello", max_tokens=5, logprobs=1)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")
    assert answer.usage.prompt_tokens >= 3  # [gMASK] and sop come before any text
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or ()) <= 5
    for token, top in zip(answer.choices[0].logprobs.tokens, answer.choices[0].logprobs.top_logprobs, strict=True):
        assert list(top) == [token]
    stream = client.completions.create(model="chatglm3:demo", prompt="Hello", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    both = client.completions.create(model="chatglm3:demo", prompt=["Hello", "Hello"], max_tokens=5)
    assert [choice.text for choice in both.choices] == [answer.choices[0].text] * 2
    assert both.usage is not None
    assert both.usage.completion_tokens == 10
    ids = client.completions.create(model="chatglm3:demo", prompt=[5, 6, 7], max_tokens=3)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3


@pytest.mark.parametrize("prompt", ["", [], [-1], [10**9], [1.5], ["a", "b"] * 20])
def test_prompts_that_are_none(prompt: Any, server: RunningServer) -> None:
    for stream in (False, True):
        refused(server, {"model": "chatglm3:demo", "prompt": prompt, "stream": stream}, "/v1/completions")


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="chatglm3:demo", input="Hello", instructions="")
    assert (answer.output_text, answer.status) == (GREETING, "completed")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    events = list(client.responses.create(model="chatglm3:demo", input=HELLO, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == GREETING
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == GREETING
    cut = client.responses.create(model="chatglm3:demo", input="Hello", max_output_tokens=4)
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_responses_call_tools(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **WEATHER["function"]}]
    asked = client.responses.create(model="chatglm3:demo", input=[QUESTION], tools=tools)
    (call,) = asked.output
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    history: Any = [QUESTION, call.model_dump(exclude_none=True), result]
    told = client.responses.create(model="chatglm3:demo", input=history, tools=tools)
    assert told.output_text == "London today: rain, 15 degrees."
    with client.responses.stream(model="chatglm3:demo", input=[QUESTION], tools=tools) as stream:
        for _ in stream:
            pass
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)


# What only concerns requests needs no model.


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("three", "one two "),
        ([" three", "two"], "one "),
        (["e f", "never"], "one two thre"),
        ("four!", "one two three four"),
        (["x"] * 4, "one two three four"),
    ],
)
def test_stop_strings_end_an_answer_wherever_tokens_are_cut(stop: Any, text: str, scripted: RunningServer) -> None:
    answer = said(scripted, stop=stop)
    assert (answer["message"]["content"], answer["finish_reason"]) == (text, "stop")
    client = scripted.openai()
    stream: Any = client.chat.completions.create(model=MODEL, messages=HELLO, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO * 1025}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "half of \ud83d"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages.1.tool_call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "f\n<|user|>"}}]}, "tools.0.function.name"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tools": [WEATHER, CLOCK], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], param: str, scripted: RunningServer) -> None:
    error = refused(scripted, {"model": MODEL, "messages": HELLO, **changes})
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize("arguments", ["not json", "[1]", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 500])
def test_calls_in_the_history_may_be_unreadable(arguments: str) -> None:
    """What this server passed on as it came must be taken back, or a dialogue ends with a model's first mistake."""
    engine = ScriptedEngine("fine", endless=False)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "c", "content": "invalid arguments"}
    with RunningServer([fake_model(engine)]) as server:
        said(server, messages=[*HELLO, {"role": "assistant", "tool_calls": [call]}, result])
    (prompt,) = engine.prompts
    assert arguments in bytes(i for i in prompt if i < 256).decode()


@pytest.mark.parametrize("depth", [70, 300, 900])
def test_what_is_nested_too_deeply_is_told(depth: int, scripted: RunningServer) -> None:
    deep = json.loads('{"a":' * depth + "1" + "}" * depth)
    chat = {"model": MODEL, "messages": HELLO}
    refused(scripted, {**chat, "tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}]})
    refused(scripted, {**chat, "response_format": {"type": deep}})
    tool = {"type": "function", "name": "f", "parameters": deep}
    refused(scripted, {"model": MODEL, "input": "x", "tools": [tool]}, "/v1/responses")
    response = scripted.post({"model": MODEL, "input": "x", "metadata": deep, "foo": deep}, "/v1/responses")
    assert response.status_code in (200, 400)


def test_what_changes_nothing_is_accepted(scripted: RunningServer) -> None:
    said(
        scripted, user="me", metadata={"a": "b"}, store=False, service_tier="auto", logit_bias=None, n=1, seed=None,
        response_format={"type": "text"}, tools=[], tool_choice="auto", reasoning_effort="low", top_p=0, stop=[],
    )  # fmt: skip
    response = scripted.post({"model": MODEL, "messages": HELLO, "frobnicate": 1, "user": "me"})
    assert response.headers["x-ignored-fields"] == "frobnicate"


def test_messages_may_come_in_parts_and_without_content(scripted: RunningServer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    said(scripted, messages=[{"role": "developer", "content": parts}, {"role": "user", "content": None, "name": "x"}])


def test_calls_that_nobody_offered_are_text() -> None:
    with RunningServer([fake_model(ScriptedEngine("let me see\nlook()", endless=False), calls=True)]) as server:
        answer = said(server)
        assert answer["finish_reason"] == "stop"
        assert answer["message"]["content"] == "let me see\n\nlook\nlook()"
        answer = said(server, tools=[CLOCK])
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"model": ' + b"1" * 10_000 + b"}", 400),
        (b'{"messages": ' + b'{"a":' * 50_000, 400),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bodies_that_are_none(body: bytes, status: int, scripted: RunningServer) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        response = scripted.http.post(path, content=body, headers=headers)
        assert response.status_code == status, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_other_paths_and_methods_get_error_objects(scripted: RunningServer) -> None:
    unknown = scripted.get("/v1/embeddings")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")
    assert scripted.get("/v1/chat/completions").status_code == 405
    assert "error" in scripted.http.delete("/v1/models").json()
    assert scripted.http.post("/v1/chat/completions/", json={}).status_code == 404
    assert scripted.http.head("/health").status_code == 200


def test_the_description_of_the_api_is_what_is_answered(scripted: RunningServer) -> None:
    document = scripted.get("/openapi.json").json()
    answering = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
    assert {path for path, found in document["paths"].items() if "post" in found} == answering
    for path in answering:
        responses = document["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(responses)
        assert "422" not in responses
    assert document["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] == [MODEL]


def test_what_nobody_foresaw_is_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    with RunningServer([fake_model(ScriptedEngine())]) as server:
        server.service.submit = lambda *_: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        response = server.chat("a secret")
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "division" not in response.text
        assert "division" in caplog.text  # the log says more
        assert server.metric("tpudeploy_requests_total") >= 1


def test_the_log_holds_no_prompt_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tpudeploy")
    for wanted in (False, True):
        settings = replace(limits(), log_prompts=wanted)
        with RunningServer([fake_model(ScriptedEngine("an answer", endless=False))], settings) as server:
            response = server.post({"model": MODEL, "messages": HELLO}, headers={"X-Request-Id": "my-id.1"})
            assert response.headers["x-request-id"] == "my-id.1"
            wait_until(lambda: "prompt=" in caplog.text, "the line of the log, which follows the answer")
            assert "id=my-id.1" in caplog.text
            assert ("Hello" in caplog.text, "an answer" in caplog.text) == (wanted, wanted)


def test_metrics_say_what_was_done() -> None:
    with RunningServer([fake_model(ScriptedEngine("abcde", endless=False))]) as server:
        for _ in range(2):
            assert server.chat().status_code == 200
        server.post({})
        assert server.metric("tpudeploy_completion_tokens_total") == 10
        assert server.metric("tpudeploy_prompt_tokens_total") == 2 * len("UHelloA")
        assert server.metric("tpudeploy_prompt_tokens_reused_total") == len("UHello")
        assert server.metric("tpudeploy_first_token_seconds_count") == 2
        assert server.metric("tpudeploy_token_seconds_count") == 8
        assert server.metric("tpudeploy_device_temperature_celsius") == 42
        assert server.metric("tpudeploy_device_memory_used_bytes") == 400
        text = server.get("/metrics").text
        assert 'tpudeploy_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
        assert 'tpudeploy_answers_total{finish="stop"} 2.0' in text
