"""Clients that others wrote: OpenAI's helpers, LangChain, curl. They decide what the API has to be like."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from cli_support import environment, run_program
from server_support import RunningServer
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.plugins import registry
from tpudeploy.server.settings import LOOPBACK_HOSTS, ServerSettings
from tpudeploy.settings import Settings

MODEL = "chatglm3:demo"
GREETING = "Hello! I am chatglm3:demo, a very small demo model."
HELLO: Any = [{"role": "user", "content": "Hello"}]
QUESTION = "What is the weather in London today?"
RESULT = '{"city": "London", "weather": "rain", "temperature": 15}'
TOLD = "London today: rain, 15 degrees."
CITY = {"type": "string", "description": "The city"}
DAYS = {"type": "integer", "description": "Number of days"}
FUNCTION: Any = {
    "name": "get_weather",
    "description": "Look up the weather of a city",
    "parameters": {"type": "object", "properties": {"city": CITY, "days": DAYS}, "required": ["city"]},
}
TOOL: Any = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    done = run_program("run", MODEL, "--backend", "cpu", "Hello", env=environment(home))
    assert done.returncode == 0, done.stderr
    target = open_target(LaunchRequest(model=MODEL, backend="cpu"), Settings(home=home), registry())
    with target.load() as model, RunningServer([model], ServerSettings(allowed_hosts=LOOPBACK_HOSTS)) as running:
        yield running


# OpenAI's own helpers, which read streams more strictly than plain iteration does.


def test_the_stream_helper_reads_text(server: RunningServer) -> None:
    with server.openai() as client, client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") > 5
    assert kinds[-1] == "content.done"
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (GREETING, "stop")


def test_the_stream_helper_reads_a_call(server: RunningServer) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with (
        server.openai() as client,
        client.chat.completions.stream(model=MODEL, messages=messages, tools=[TOOL]) as stream,
    ):
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [event.name for event in done] == ["get_weather"]
    assert json.loads(done[0].arguments)["city"] == "London"
    assert message.tool_calls is not None
    history: Any = [*messages, message.model_dump(exclude_none=True)]
    history.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT})
    with server.openai() as client:
        told = client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL])
    assert told.choices[0].message.content == TOLD


def test_the_response_helper_reads_text_and_calls(server: RunningServer) -> None:
    with server.openai() as client:
        with client.responses.stream(model=MODEL, input="Hello") as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert stream.get_final_response().output_text == text == GREETING
        tools: Any = [{"type": "function", **FUNCTION}]
        with client.responses.stream(model=MODEL, input=QUESTION, tools=tools) as stream:
            kinds = [event.type for event in stream]
            (call,) = stream.get_final_response().output
        assert kinds.count("response.function_call_arguments.done") == 1
        assert call.type == "function_call"
        assert json.loads(call.arguments)["city"] == "London"


def test_an_asynchronous_client_asks_several_things_at_once(server: RunningServer) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [client.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(5)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [GREETING] * 5


def test_raw_responses_name_their_request(server: RunningServer) -> None:
    with server.openai() as client:
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
        assert raw.request_id == raw.headers["x-request-id"]
        assert raw.parse().choices[0].message.content == GREETING


def test_a_schema_for_the_answer_is_refused_in_words(server: RunningServer) -> None:
    import pydantic

    class City(pydantic.BaseModel):
        name: str

    with server.openai() as client, pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)


# LangChain.


@pytest.fixture(scope="module")
def chat(server: RunningServer) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports is not ours
        langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.filterwarnings("ignore")
def test_langchain_invokes_streams_and_counts(chat: Any) -> None:
    answer = chat.invoke("Hello")
    assert answer.content == GREETING
    assert answer.usage_metadata["total_tokens"] > 10
    assert answer.response_metadata["finish_reason"] == "stop"
    chunks = list(chat.stream("Hello", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == GREETING
    assert len(chunks) > 5
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 5
    assert [one.content for one in chat.batch(["Hello", "Hello"])] == [GREETING] * 2
    assert asyncio.run(chat.ainvoke("Hello")).content == GREETING


@pytest.mark.filterwarnings("ignore")
def test_langchain_runs_a_tool_dialogue(chat: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def get_weather(city: str, days: int = 1) -> str:
        """Look up the weather of a city"""
        return RESULT

    able = chat.bind_tools([get_weather])
    question = HumanMessage(QUESTION)
    asked = able.invoke([question])
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]["city"]) == ("get_weather", "London")
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert able.invoke([question, asked, result]).content == TOLD
    streamed = None
    for chunk in able.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == call["args"]
    named = chat.bind_tools([get_weather], tool_choice="get_weather").invoke([question])
    assert named.tool_calls[0]["name"] == "get_weather"


@pytest.mark.filterwarnings("ignore")
def test_langchain_speaks_the_responses_endpoint(chat: Any) -> None:
    newer = chat.model_copy(update={"use_responses_api": True})
    assert newer.invoke("Hello").text == GREETING
    assert "".join(chunk.text for chunk in newer.stream("Hello")) == GREETING
    call = newer.bind_tools([TOOL]).invoke(QUESTION).tool_calls[0]
    assert call["args"]["city"] == "London"


# Programs that know nothing of OpenAI.


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_shows_a_stream_as_it_comes(server: RunningServer) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO, "stream": True})
    command = ["curl", "-sSN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(deltas) == GREETING


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_sends_a_large_body_and_reads_why_it_is_refused(server: RunningServer) -> None:
    """It asks before it sends more than a megabyte: ``Expect: 100-continue``."""
    command = [
        "curl",
        "-sS",
        "-w",
        "\n%{http_code}",
        f"{server.url}/v1/completions",
        "-H",
        "Content-Type: application/json",
    ]
    done = subprocess.run(
        [*command, "--data-binary", "@-"], input=b"x" * (6 << 20), capture_output=True, check=True, timeout=60
    )
    *text, status = done.stdout.decode().splitlines()
    assert status == "413"
    assert json.loads("".join(text))["error"]["code"] == "request_too_large"
