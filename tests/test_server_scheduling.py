"""Who is answered when, and what ends an answer: over an engine whose passes the test lets through."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from server_support import MODEL, Gate, RunningServer, ScriptedEngine, fake_model, limits, slowly, wait_until
from tpudeploy.errors import BackendError
from tpudeploy.server.settings import ServerSettings

QUESTION: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


def ask(server: RunningServer, text: str, key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    return server.post(body, headers=headers)


def asked(engine: ScriptedEngine) -> list[str]:
    """What was said in the prompts that were computed, in their order."""
    return [bytes(i for i in ids if i < 256).decode() for ids in engine.prompts]


def test_one_client_with_many_requests_does_not_starve_another() -> None:
    engine, gate = ScriptedEngine(), Gate()
    engine.before_pass = gate
    settings = ServerSettings(api_keys=("key-of-alice", "key-of-bob"))
    with RunningServer([fake_model(engine)], settings) as server, ThreadPoolExecutor(10) as pool:
        answers = []
        for number in range(6):
            answers.append(pool.submit(ask, server, f"alice {number}", "key-of-alice"))
            wait_until(lambda number=number: server.service.unfinished == number + 1, "it waits")  # type: ignore[misc]
        for number in range(2):
            answers.append(pool.submit(ask, server, f"bob {number}", "key-of-bob"))
            wait_until(lambda number=number: server.service.unfinished == number + 7, "it waits")  # type: ignore[misc]
        gate.open()
        assert all(answer.result().status_code == 200 for answer in answers)
    assert asked(engine)[:5] == ["alice 0", "alice 1", "bob 0", "alice 2", "bob 1"]


def test_a_full_queue_is_told_with_a_time_to_come_back() -> None:
    engine, gate = ScriptedEngine(), Gate()
    engine.before_pass = gate
    with RunningServer([fake_model(engine)], limits(queue=1)) as server, ThreadPoolExecutor(2) as pool:
        for count in (1, 2):
            pool.submit(ask, server, "waits")
            wait_until(lambda count=count: server.service.unfinished == count, "it waits")  # type: ignore[misc]
        with pytest.raises(openai.RateLimitError) as refused:
            server.openai().chat.completions.create(**QUESTION)
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert server.metric("tpudeploy_queue_length") == 1
        assert server.metric("tpudeploy_queue_refused_total") == 1
        gate.open()


def test_without_a_queue_one_is_answered_at_a_time() -> None:
    engine, gate = ScriptedEngine(endless=False), Gate()
    engine.before_pass = gate
    with RunningServer([fake_model(engine)], limits(queue=0)) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.chat)
        wait_until(lambda: server.service.unfinished == 1, "it runs")
        assert server.chat().status_code == 429
        gate.open()
        assert first.result().status_code == 200


def test_in_a_full_queue_the_greediest_client_makes_room() -> None:
    engine, gate = ScriptedEngine(), Gate()
    engine.before_pass = gate
    settings = replace(limits(queue=3), api_keys=("key-of-alice", "key-of-bob"))
    with RunningServer([fake_model(engine)], settings) as server, ThreadPoolExecutor(6) as pool:
        alice = []
        for number in range(4):
            alice.append(pool.submit(ask, server, f"alice {number}", "key-of-alice"))
            wait_until(lambda number=number: server.service.unfinished == number + 1, "it waits")  # type: ignore[misc]
        bob = pool.submit(ask, server, "bob", "key-of-bob")
        assert alice[3].result().status_code == 429
        gate.open()
        assert bob.result().status_code == 200
        assert [answer.result().status_code for answer in alice[:3]] == [200] * 3


def test_a_stream_that_is_left_frees_the_device_within_one_token() -> None:
    engine, gate = ScriptedEngine(), Gate()
    engine.before_pass = gate
    with RunningServer([fake_model(engine)]) as server:
        gate.open(3)
        stream = server.openai().chat.completions.create(**QUESTION, stream=True)
        assert [chunk.choices[0].delta.content for _, chunk in zip(range(4), stream, strict=False)] == ["", *"abc"]
        ticket = next(iter(server.service._running.values()))
        stream.close()
        wait_until(ticket.job.cancelled.is_set, "the worker was told")
        gate.open()  # the pass that it waits in goes through, and no other
        wait_until(lambda: not server.service.unfinished, "the device is free")
        assert engine.passes <= 4
        engine.endless = False
        assert server.chat().json()["choices"][0]["message"]["content"] == "abcdefghij"


def test_who_leaves_while_waiting_is_forgotten() -> None:
    engine, gate = ScriptedEngine(), Gate()
    engine.before_pass = gate
    with RunningServer([fake_model(engine)]) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "first")
        wait_until(lambda: server.service.unfinished == 1, "it runs")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, timeout=0.2)
        wait_until(lambda: server.service.unfinished == 1, "only the first is left")
        gate.open()
        assert first.result().status_code == 200
    assert len(engine.prompts) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_ends_with_an_error(stream: bool) -> None:
    engine = ScriptedEngine()
    engine.before_pass = slowly(0.05)
    with RunningServer([fake_model(engine)], limits(timeout_s=0.4)) as server:
        with pytest.raises(openai.APIError) as ended:
            answer: Any = server.openai().chat.completions.create(**QUESTION, stream=stream)
            for _ in answer:
                pass
        assert "within 0.4 seconds" in str(ended.value)
        assert ended.value.code == "timeout"
        wait_until(lambda: not server.service.unfinished, "the device is free")
        passes = engine.passes
        engine.endless = False
        engine.before_pass = lambda: None
        assert server.chat().status_code == 200
        assert passes < 20


def test_a_stream_that_waits_shows_that_it_lives() -> None:
    engine, gate = ScriptedEngine(endless=False), Gate()
    engine.before_pass = gate
    settings = replace(limits(), keep_alive_s=0.05)
    with RunningServer([fake_model(engine)], settings) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "first")
        wait_until(lambda: server.service.unfinished == 1, "it runs")
        address = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", address, json={**QUESTION, "stream": True}, timeout=30) as response:
            lines = response.iter_lines()
            assert ": waiting, 1 before this one" in [line for _, line in zip(range(4), lines, strict=False)]
            gate.open()
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert first.result().status_code == 200


def test_a_failed_answer_does_not_spoil_the_next() -> None:
    engine = ScriptedEngine(endless=False)
    failures = [BackendError("net block_0 failed with code 3 at /dev/bm-sophon0")]
    engine.before_pass = lambda: (_ for _ in ()).throw(failures.pop()) if failures else None  # type: ignore[assignment]
    with RunningServer([fake_model(engine)]) as server:
        failed = server.chat()
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "device_error"
        assert "sophon" not in failed.text
        assert server.chat().json()["choices"][0]["message"]["content"] == "abcdefghij"
        assert server.get("/health").json() == {"status": "ready", "workers": 1, "dead_workers": 0}


def test_a_lost_device_is_told_and_the_others_go_on() -> None:
    lost, other = ScriptedEngine(endless=False), ScriptedEngine(endless=False)

    def fail() -> None:
        raise BackendError("the device is gone")

    with RunningServer([fake_model(lost), fake_model(other, device=1)]) as server:
        lost.before_pass = fail
        assert server.chat().status_code == 500
        assert {server.chat().status_code for _ in range(3)} == {200}
        health = server.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert server.metric("tpudeploy_worker_up") == 1
        other.before_pass = fail
        assert server.chat().status_code == 500
        refused = server.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
        assert server.get("/health").status_code == 503


def test_replicas_answer_at_once_and_take_up_what_they_have_computed() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    gate = Gate()
    for engine in engines:
        engine.before_pass = gate
    with RunningServer([fake_model(engine) for engine in engines]) as server, ThreadPoolExecutor(2) as pool:
        answers = []
        for number, topic in enumerate(("cats and cats", "dogs and dogs")):
            answers.append(pool.submit(ask, server, topic))
            wait_until(lambda number=number: server.service.unfinished == number + 1, "it runs")  # type: ignore[misc]
        gate.open()
        assert all(answer.result().status_code == 200 for answer in answers)
        for topic in ("dogs and dogs and wolves", "cats and cats and lions", "dogs and dogs and foxes"):
            usage = ask(server, topic).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] >= len("dogs and dogs")
    assert [len(engine.prompts) for engine in engines] == [2, 3]


def test_stopping_lets_answers_finish_and_turns_away_what_comes() -> None:
    engine, gate = ScriptedEngine(endless=False), Gate()
    engine.before_pass = gate
    with RunningServer([fake_model(engine)]) as server, ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.chat)
        wait_until(lambda: server.service.unfinished == 1, "it runs")
        drained = threading.Thread(target=server.call, args=(lambda: server.service.drain(20),))
        drained.start()
        wait_until(lambda: server.service.health().stopping, "it stops")
        refused = server.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert server.get("/health").json()["status"] == "stopping"
        gate.open()
        assert running.result().status_code == 200
        drained.join(10)
    assert engine.closed


def test_what_does_not_finish_in_time_is_cancelled_when_stopping() -> None:
    engine = ScriptedEngine()
    engine.before_pass = slowly(0.02)
    with RunningServer([fake_model(engine)]) as server:
        client = server.openai()
        with pytest.raises(openai.APIError, match="being stopped"):
            for place, _ in enumerate(client.chat.completions.create(**QUESTION, stream=True)):
                if place == 3:
                    threading.Thread(target=server.call, args=(lambda: server.service.drain(0.1),)).start()


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """Its answer is cancelled, and the connection does not wait for ever until what is left is taken."""
    engine = ScriptedEngine(seq_length=1 << 20)
    with RunningServer([fake_model(engine)], limits(stalled_s=0.5)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            more = {"stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 500_000}  # much text a token
            body = json.dumps({**QUESTION, **more}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: server.service.unfinished == 1, "it is answered")
            wait_until(lambda: server.service.unfinished == 0, "its answer is cancelled", 30)
            wait_until(lambda: not server.connections, "it is cut off")
        assert server.chat(max_tokens=1).status_code == 200


def test_a_device_that_never_says_how_it_is_does_not_stop_the_server() -> None:
    model, begun, answers = fake_model(ScriptedEngine(endless=False)), threading.Event(), threading.Event()
    ask_devices = model.backend.devices

    def devices() -> Any:
        begun.set()
        assert answers.wait(30)
        return ask_devices()

    model.backend.devices = devices  # type: ignore[method-assign]
    with RunningServer([model]) as server, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(server.get, "/metrics")
        try:
            assert begun.wait(10)
            for _ in range(40):  # more than the threads that texts are encoded in
                assert server.get("/metrics", timeout=5).status_code == 200
            assert server.chat(max_tokens=1).status_code == 200
        finally:
            answers.set()
        assert "tpudeploy_device_temperature_celsius" in stuck.result(10).text
