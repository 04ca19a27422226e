"""``tpudeploy serve``, as a process: start, signals, and every way to start it wrongly."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cli_support import PROGRAM, environment, run_cli, run_program

GUIDE = Path(__file__).parent.parent / "docs/how-to/serve.md"
HELLO: Any = {"model": "chatglm3:demo", "messages": [{"role": "user", "content": "Hello"}]}
ENDLESS: Any = {**HELLO, "stream": True, "extra_body": {"ignore_eos": True}}


class Server:
    """The program, and what it has said."""

    def __init__(self, home: Path, *arguments: str) -> None:
        command = [*PROGRAM, "serve", "chatglm3:demo", "--backend", "cpu", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.said: list[str] = []
        self.clients: list[openai.OpenAI] = []
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()))
        self._reader.start()
        self.first = self.process.stdout.readline()
        self.curl = self.process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", self.first)
        assert found is not None, self.first + "".join(self.said)
        self.url = found.group()

    def openai(self) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        self.clients.append(client)
        return client

    def stop(self, timeout_s: float = 30) -> int:
        """Ask it to stop; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 30) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code


def reused_tokens(server: Server, text: str) -> int:
    """How much of a conversation's second question need not be computed."""
    messages: Any = [{"role": "user", "content": text}]
    usage: Any = None
    for _ in range(2):
        answer = server.openai().chat.completions.create(model="chatglm3:demo", messages=messages)
        usage = answer.usage
        content = answer.choices[0].message.content
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": "Hello"}]
    reused: int = usage.prompt_tokens_details.cached_tokens
    return reused


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Server]:
    server = Server(home, *arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.wait()
        for client in server.clients:
            client.close()
        for stream in (server.process.stdout, server.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled as ``serve`` wants it."""
    folder = tmp_path_factory.mktemp("home")
    done = run_program(
        "run", "chatglm3:demo", "--backend", "cpu", "--seq-length", "2048", "Hello", env=environment(folder)
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_it_tells_how_to_ask_answers_and_stops(home: Path) -> None:
    with serving(home, "--replicas", "2") as server:
        assert server.first.startswith("chatglm3:demo (int8 on cpu, 2 replicas) at http://127.0.0.1:")
        if shutil.which("curl"):
            done = subprocess.run(["bash", "-c", server.curl], capture_output=True, text=True, check=False)
            assert "I am chatglm3:demo" in done.stdout
        else:
            assert server.openai().chat.completions.create(**HELLO).choices[0].message.content
        assert httpx.get(f"{server.url}/health").json() == {"status": "ready", "workers": 2, "dead_workers": 0}
        example = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
        assert example is not None
        script = example.group(1).replace("http://127.0.0.1:8000", server.url)
        shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert shown.startswith("Hello! I am chatglm3:demo")
        for _ in range(2):  # more conversations than devices, in turns
            reused = [reused_tokens(server, text) for text in ("Good morning", "Who are you?", "What can you do?")]
        assert min(reused) > 5
        assert server.stop() == 0
        log = "".join(server.said)
    assert "POST /v1/chat/completions 200" in log
    assert "Hello" not in log
    assert "Traceback" not in log


def test_sigterm_lets_an_answer_finish(home: Path) -> None:
    with serving(home) as server:
        stream = server.openai().chat.completions.create(**ENDLESS, max_tokens=60)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.wait() == 0
        assert "stopping: 1 request" in "".join(server.said)


def test_an_answer_that_takes_longer_is_cancelled(home: Path) -> None:
    with serving(home, "--shutdown-grace", "0.2") as server:
        stream = server.openai().chat.completions.create(**ENDLESS)
        next(stream)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="being stopped"):
            list(stream)
        assert server.wait() == 0
        assert time.monotonic() - began < 10


def test_a_second_signal_ends_it_at_once(home: Path) -> None:
    with serving(home) as server:
        next(server.openai().chat.completions.create(**ENDLESS))
        server.process.send_signal(signal.SIGINT)
        while not any("stopping" in line for line in server.said):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.wait(5) == 130


def test_what_is_wrong_is_told_in_a_line_before_anything_is_loaded(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases: list[tuple[list[str], str]] = [
            (["--port", port], f"127.0.0.1:{port} is taken by another program"),
            (["--host", "0.0.0.0"], "there is no API key"),  # noqa: S104
            (["--host", "192.0.2.1", "--insecure-no-key"], "no address of this machine"),
            (["--api-key", "short"], "8 or more characters"),
            (["--device", "0", "--device", "0,1"], "as many devices"),
            (["--port", "99999"], "--port"),
        ]
        for options, message in cases:
            done = run_cli("serve", "chatglm3:demo", "--backend", "cpu", *options, env=environment(home))
            assert done.returncode == 2, done.stderr
            assert message in done.stderr
            assert done.stderr.startswith("error: ")
            assert done.stdout == ""


def test_without_the_extra_one_line_says_what_to_install(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['fastapi'] = sys.modules['uvicorn'] = None\n")
    env = environment(home, PYTHONPATH=str(tmp_path))
    done = subprocess.run([*PROGRAM, "serve", "chatglm3:demo"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "fastapi, uvicorn" in done.stderr
    assert "pip install 'tpudeploy[serve]'" in done.stderr
    loaded = f"import sys, tpudeploy.cli.app; sys.exit(any(name in sys.modules for name in {['fastapi', 'uvicorn']}))"
    assert subprocess.run([sys.executable, "-c", loaded], env=environment(home), check=False).returncode == 0
