"""``tpudeploy serve --engine ray``, as a process: two replicas of the demo in a Ray cluster of this machine.

One server for all of these tests, in this order: it takes a while to start, and the last one ends it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cli_support import PROGRAM, environment, run_cli

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'tpudeploy[ray]'"
)
HELLO: Any = {"model": "chatglm3:demo", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
LONG: Any = {**HELLO, "stream": True, "extra_body": {"ignore_eos": True}}
_MARK = "TPUDEPLOY_TEST_MARK"


class Fleet:
    """The program; every process that it starts inherits a mark."""

    def __init__(self, home: Path) -> None:
        self.mark = uuid.uuid4().hex
        command = [*PROGRAM, "serve", "chatglm3:demo", "--backend", "cpu", "--port", "0", "--engine", "ray"]
        self.process = subprocess.Popen(
            [*command, "--replicas", "2", "--shutdown-grace", "0.2"],
            env=environment(home, **{_MARK: self.mark}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stdout or ()))
        self._reader.start()

    def wait_until_ready(self) -> str:
        """Returns its address."""
        wait_until(lambda: self.process.poll() is not None or any("curl" in line for line in self.said), 240)
        found = re.search(r"http://[\d.]+:\d+", "".join(self.said))
        assert found is not None, "".join(self.said)
        return found.group()

    def processes(self) -> dict[int, str]:
        """Names of those that run."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def end(self) -> None:
        """Whatever happened, nothing of it stays."""
        self.process.kill()
        self.process.wait()
        with suppress(AssertionError):
            wait_until(lambda: not self.processes(), 20)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Api:
    """A client of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

    def figures(self, name: str) -> list[float]:
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return [float(line.split()[-1]) for line in lines if re.split(r"[{ ]", line)[0] == f"tpudeploy_{name}"]

    def status(self) -> str:
        return str(httpx.get(f"{self.url}/health", timeout=60).json()["status"])


def wait_until(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("home"))
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Api:
    return Api(fleet.wait_until_ready())


def test_it_answers_whole_and_streamed(api: Api, fleet: Fleet) -> None:
    assert any("2 replicas) at http://127.0.0.1:" in line for line in fleet.said)
    answer = api.openai.chat.completions.create(**HELLO)
    assert "I am chatglm3:demo" in (answer.choices[0].message.content or "")
    chunks = list(api.openai.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens  # type: ignore[union-attr]
    assert len(api.figures("device_memory_bytes")) == 1  # both are on one machine


def test_two_requests_at_once_are_answered_by_both_replicas(api: Api) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(lambda: list(api.openai.chat.completions.create(**LONG, max_tokens=200))) for _ in "ab"]
        wait_until(lambda: api.figures("worker_busy") == [1, 1])
        assert [answer.result()[-1].choices[0].finish_reason for answer in answers] == ["length", "length"]


def test_a_client_that_goes_away_frees_its_replica(api: Api) -> None:
    before = sum(api.figures("completion_tokens_total"))
    with api.openai.chat.completions.create(**LONG) as stream:
        for _ in range(5):
            next(stream)
    wait_until(lambda: api.figures("worker_busy") == [0, 0], 10)
    assert sum(api.figures("completion_tokens_total")) - before < 500  # of about 2000 that there is room for


def test_a_killed_replica_fails_its_request_and_is_started_again(api: Api, fleet: Fleet) -> None:
    with ThreadPoolExecutor(2) as pool:
        streams = [api.openai.chat.completions.create(**LONG) for _ in "ab"]
        for stream in streams:
            next(stream)
        victim = next(pid for pid, name in fleet.processes().items() if "ServeReplica" in name and "-0:" in name)
        os.kill(victim, signal.SIGKILL)
        outcomes = [pool.submit(_drain, stream) for stream in streams]
        wait_until(lambda: any(outcome.done() for outcome in outcomes))
        assert api.status() == "degraded"
        assert sorted(outcome.result() for outcome in outcomes) == ["device_error", "length"]
    assert api.openai.chat.completions.create(**HELLO).choices[0].message.content  # the other goes on
    wait_until(lambda: api.status() == "ready", 120)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(_drain, api.openai.chat.completions.create(**LONG, max_tokens=100)) for _ in "ab"]
        assert [answer.result() for answer in answers] == ["length", "length"]
    log = "".join(fleet.said)
    assert "is lost: the replica ended while it answered" in log
    assert "answers again" in log


def _drain(stream: Any) -> str:
    """How it ended."""
    try:
        return str(list(stream)[-1].choices[0].finish_reason)
    except openai.APIError as error:
        return str(error.code)


def test_sigterm_ends_everything_that_was_started(api: Api, fleet: Fleet) -> None:
    assert any("raylet" in name for name in fleet.processes().values())
    stream = api.openai.chat.completions.create(**LONG)
    next(stream)
    began = time.monotonic()
    fleet.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="being stopped"):
        list(stream)
    assert fleet.process.wait(60) == 0, "".join(fleet.said)
    wait_until(lambda: not fleet.processes(), 20)
    assert time.monotonic() - began < 60
    log = "".join(fleet.said)
    assert "Traceback" not in log
    assert "Hello" not in log.replace('"content": "Hello"', "")  # but for the line that says how to ask


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = run_cli(
        "serve", "chatglm3:demo", "--backend", "cpu", "--engine", "ray", "--ray-address", "127.0.0.1:1",
        "--port", "0", env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 7
    assert "the Ray cluster at 127.0.0.1:1 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
