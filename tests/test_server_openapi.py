"""The API's description against the server: requests that it allows, and many that it does not, made by schemathesis.

No response is a 5xx, and each has a status, a content type and a body that the description has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cli_support import environment, run_program
from server_support import RunningServer, ScriptedEngine, fake_model, wait_until
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.plugins import registry
from tpudeploy.server.settings import Limits, ServerSettings
from tpudeploy.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports is not ours
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

KEY = "a-key-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}
SETTINGS = ServerSettings(api_keys=(KEY,), limits=Limits(timeout_s=60))
ALWAYS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/models/{model}", "GET"),
    ("/v1/models", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]
ANSWERING = OPERATIONS[:3]
ASKS = {"/v1/chat/completions": "messages", "/v1/responses": "input", "/v1/completions": "prompt"}
HARD = {"n", "best_of", "echo", "suffix", "tools", "tool_choice", "response_format", "stop", "logit_bias", "text",
        "stream_options", "top_logprobs", "messages", "input", "prompt"}  # fmt: skip
"""Fields whose values are rarely good by chance: a request with random ones is refused."""


@pytest.fixture(scope="module")
def scripted() -> Iterator[RunningServer]:
    engine = ScriptedEngine("fine", endless=False)
    with RunningServer([fake_model(engine, calls=True)], SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    done = run_program("run", "chatglm3:demo", "--backend", "cpu", "Hello", env=environment(home))
    assert done.returncode == 0, done.stderr
    target = open_target(LaunchRequest(model="chatglm3:demo", backend="cpu"), Settings(home=home), registry())
    with target.load() as model, RunningServer([model], SETTINGS) as server:
        yield server


def tame(body: dict[str, Any], path: str) -> dict[str, Any]:
    """A request that is answered, with what chance made of all other fields."""
    field = ASKS[path]
    asked: Any = {field: "Hello" if field == "prompt" else [{"role": "user", "content": "Hello"}]}
    return {name: value for name, value in body.items() if name not in HARD} | asked | {"stream": len(body) % 2 == 1}


def attack(server: RunningServer, path: str, method: str, mode: Any, examples: int, *, key: bool = True,
           good: bool = False) -> set[int]:  # fmt: skip
    """Send requests to one operation, and check what comes back; returns the statuses that were met."""
    found: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operation = schema[path][method]
        more = [checks.negative_data_rejection] if mode is GenerationMode.NEGATIVE else []

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            if good:
                case.body = tame(case.body, path)
            response = case.call(headers=HEADERS if key else {}, timeout=60)
            found.add(response.status_code)
            case.validate_response(response, checks=[*ALWAYS, *more])

        send()
    return found


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_requests_that_the_description_allows(path: str, method: str, scripted: RunningServer) -> None:
    found = attack(scripted, path, method, GenerationMode.POSITIVE, 20)
    # What a schema cannot say is refused: names of tools, results without a call, ...
    assert found <= {200, 400, 404}


@pytest.mark.parametrize(("path", "method"), ANSWERING)
def test_answers_are_those_of_the_description(path: str, method: str, scripted: RunningServer) -> None:
    assert 200 in attack(scripted, path, method, GenerationMode.POSITIVE, 20, good=True)


@pytest.mark.parametrize(("path", "method"), ANSWERING)
def test_requests_that_the_description_does_not_allow(path: str, method: str, scripted: RunningServer) -> None:
    assert attack(scripted, path, method, GenerationMode.NEGATIVE, 25) <= {400, 404}


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_requests_without_a_key(path: str, method: str, scripted: RunningServer) -> None:
    found = attack(scripted, path, method, GenerationMode.POSITIVE, 3, key=False)
    assert found == ({200} if path == "/health" else {401})


@pytest.mark.parametrize(("path", "method"), ANSWERING)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
def test_the_same_with_a_model(mode: Any, path: str, method: str, demo: RunningServer) -> None:
    assert attack(demo, path, method, mode, 8) <= {200, 400, 404}
    assert demo.service.health().ready
    # A worker says that it has done with an answer after the answer's end.
    wait_until(lambda: demo.service.unfinished == 0, "nothing is left")
