"""Servers for tests: the real application behind a real socket, over a demo model or an engine that tests control."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import openai
import uvicorn
from typing_extensions import Self

from byte_chat import STOP, ByteTemplate, ByteTokenizer, CallStream
from tpudeploy.contracts.backend import Backend, DeviceInfo, MemoryReport, Session
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import UsageError
from tpudeploy.launch.loaded import Identity, LoadedModel
from tpudeploy.launch.text import TextTools
from tpudeploy.runtime.token_engine import TokenEngine
from tpudeploy.server.app import create_app
from tpudeploy.server.listening import listen, url_of
from tpudeploy.server.local_service import LocalService
from tpudeploy.server.metrics import Metrics
from tpudeploy.server.protocol import bounded_protocol
from tpudeploy.server.settings import LOOPBACK_HOSTS, Limits, ServerSettings

MODEL = "bytes:test"


class ScriptedEngine(TokenEngine):
    """Stands where a device would be: says what it is told to, as fast as it is let.

    :ivar answer: what it writes, over and over where ``endless``, else once and a stop token.
    :ivar before_pass: called before every pass, in the worker's thread; may wait, or raise.
    :ivar passes: how many it ran.
    """

    def __init__(self, answer: str = "abcdefghij", *, endless: bool = True, seq_length: int = 4096) -> None:
        self.session = cast(Session, SimpleNamespace(memory=lambda: MemoryReport(weights_bytes=1, buffers_bytes=2),
                                                     close=lambda: None))  # fmt: skip
        self.answer = answer.encode()
        self.endless = endless
        self.passes = 0
        self.prompts: list[tuple[int, ...]] = []
        self.closed = False
        self.before_pass: Callable[[], None] = lambda: None
        self._seq_length = seq_length
        self._cache: list[int] = []
        self._prompt = 0

    @property
    def seq_length(self) -> int:
        return self._seq_length

    @property
    def vocab_size(self) -> int:
        return 300

    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        if not all(0 <= token < self.vocab_size for token in ids):  # as engines over nets do
            raise UsageError(f"token ids must lie between 0 and {self.vocab_size - 1}.")
        kept = next((i for i, (a, b) in enumerate(zip(self._cache, ids, strict=False)) if a != b), None)
        kept = min(len(self._cache), len(ids)) if kept is None else kept
        kept = min(kept, len(ids) - 1)
        self._cache = self._cache[:kept]
        return kept

    def pass_size(self, count: int) -> int:
        return count

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        self.before_pass()
        self.passes += 1
        self._cache += ids
        if ids[-1] > 255 or len(ids) > 1:
            self._prompt = len(self._cache)
            self.prompts.append(tuple(self._cache))
        place = len(self._cache) - self._prompt
        over = not self.endless and place >= len(self.answer)
        logits = np.zeros((1, self.vocab_size), dtype=np.float32)
        logits[0, STOP if over else self.answer[place % len(self.answer)]] = 10
        return logits[:rows]

    def forget(self) -> None:
        self._cache = []

    def close(self) -> None:
        self.closed = True


class Gate:
    """Lets passes through one by one: an engine's ``before_pass``."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def __call__(self) -> None:
        assert self._permits.acquire(timeout=10), "the test never let this pass through"

    def open(self, passes: int = 1_000_000) -> None:
        self._permits.release(passes)


def slowly(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def fake_model(engine: TokenEngine, *, device: int = 0, calls: bool = False) -> LoadedModel:
    """A loaded model over a scripted engine, with a tokenizer of bytes."""
    info = DeviceInfo(id=device, name="fake", memory_bytes=1000, used_bytes=400, temperature_celsius=42)
    backend = cast(Backend, SimpleNamespace(name="fake", devices=lambda: [info]))
    template = ByteTemplate(CallStream) if calls else ByteTemplate()
    identity = Identity(MODEL, "none", Path("nowhere"), frozenset(), MODEL)
    return LoadedModel(identity, backend, engine, TextTools(ByteTokenizer(), template), (device,))


@dataclass
class RunningServer:
    """The application on a port of its own, in a thread; a context manager."""

    models: Sequence[LoadedModel]
    settings: ServerSettings = field(default_factory=lambda: ServerSettings(allowed_hosts=LOOPBACK_HOSTS))
    url: str = ""

    def __enter__(self) -> Self:
        self._ready = threading.Event()
        self._clients: list[openai.OpenAI] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(30)
        self.http = httpx.Client(base_url=self.url, timeout=30, verify=False)  # making a TLS context takes long  # noqa: S501
        return self

    def __exit__(self, *error: object) -> None:
        for client in (self.http, *self._clients):
            client.close()
        self.call(self._stop)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        metrics = Metrics()
        self.loop = asyncio.get_running_loop()
        self.service = LocalService(self.models, self.settings.limits, metrics)
        self.service.start()
        listener = listen("127.0.0.1", 0)
        self.url = url_of(listener)
        config = uvicorn.Config(
            create_app(self.service, self.settings, metrics),
            log_config=None,
            lifespan="off",
            http=bounded_protocol(self.settings.limits),
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        while not self._server.started:
            await asyncio.sleep(0.01)
        self._ready.set()
        await serving
        await self.service.close()

    async def _stop(self) -> None:
        self.service.cancel_all()
        self._server.should_exit = True

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._server.server_state.connections)

    def call(self, work: Callable[[], Any]) -> Any:
        """Run a coroutine function on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(30)

    def openai(self, key: str = "no key", **more: Any) -> openai.OpenAI:
        """OpenAI's own client, closed with the server."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, **more)
        self._clients.append(client)
        return client

    def get(self, path: str, **more: Any) -> httpx.Response:
        """A plain request."""
        return self.http.get(path, **more)

    def post(self, body: Any, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        """A plain request."""
        headers = {"Content-Type": "application/json", **more.pop("headers", {})}
        # In ASCII, so that half a character can be sent.
        return self.http.post(path, content=json.dumps(body), headers=headers, **more)

    def chat(self, text: str = "Hello", **more: Any) -> httpx.Response:
        """Ask something."""
        return self.post({"model": self.service.model.name, "messages": [{"role": "user", "content": text}], **more})

    def metric(self, name: str) -> float:
        """A figure of /metrics, summed over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s: {what}"
        time.sleep(0.01)


def limits(**changes: Any) -> ServerSettings:
    """Settings with other limits."""
    return ServerSettings(allowed_hosts=LOOPBACK_HOSTS, limits=Limits(**changes))
