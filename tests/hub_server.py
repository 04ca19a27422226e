"""A local server that speaks both hubs' formats, counts what it hands out, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tpudeploy.contracts.adapter import ModelAdapter, ModelVariant
from tpudeploy.contracts.chat import ChatTemplate, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.weights import WeightTable
from tpudeploy.fetch import FetchPlan, Hub, fetch_checkpoint, plan_fetch
from tpudeploy.fetch.client import Retries
from tpudeploy.settings import Settings

REPOSITORY = "owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 10_000
BLOCK_BYTES = 1 << 14


@dataclass(frozen=True)
class Behaviour:
    """How to answer one request for a file."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop_after: int | None = None
    ignore_range: bool = False
    no_length: bool = False
    redirect: str = ""
    content_range: str = ""
    block_delay_s: float = 0.0


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    path: str
    headers: dict[str, str]

    @property
    def range_start(self) -> int:
        """Where the asked range begins; 0 without one."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


class FakeHub:
    """Files of one repository, and how to hand them out."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.etags: dict[str, str] = {}
        self.queue: dict[str, list[Behaviour]] = defaultdict(list)
        self.always: dict[str, Behaviour] = {}
        self.requests: list[Request] = []
        self.sent_bytes: dict[str, int] = defaultdict(int)
        self.extra_entries: list[dict[str, Any]] = []
        self.lies: dict[str, dict[str, Any]] = {}
        self.page_size = 1000
        self.address = ""

    def file_requests(self, path: str) -> list[Request]:
        """The requests for one file, redirects not counted twice."""
        return [
            request for request in self.requests if request.path.endswith(f"/{path}") and "/api/" not in request.path
        ]

    def etag(self, path: str) -> str:
        """What the server calls the content of a file."""
        return self.etags.get(path, f'"{hashlib.sha256(self.files[path]).hexdigest()}"')

    def hf_entry(self, path: str) -> dict[str, Any]:
        """A file in Hugging Face's listing."""
        data = self.files[path]
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": path}
        if len(data) >= LFS_BYTES:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        return entry | self.lies.get(path, {})

    def ms_entry(self, path: str) -> dict[str, Any]:
        """A file in ModelScope's listing."""
        data = self.files[path]
        entry = {"Name": Path(path).name, "Path": path, "Size": len(data), "Type": "blob"}
        return entry | {"Sha256": hashlib.sha256(data).hexdigest(), "Revision": COMMIT} | self.lies.get(path, {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        hub = self.server.hub
        hub.requests.append(Request(path, {name.lower(): value for name, value in self.headers.items()}))
        if queued := hub.queue.get(path):
            return self._answer(b"", queued.pop(0))
        if path == f"/api/models/{REPOSITORY}":
            return self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            return self._tree(parse_qs(parts.query))
        if path == f"/api/v1/models/{REPOSITORY}/repo/files":
            files = [hub.ms_entry(name) for name in hub.files] + hub.extra_entries
            folder = {"Name": "images", "Path": "images", "Type": "tree", "Size": 0, "Sha256": ""}
            return self._json({"Code": 200, "Success": True, "Message": "", "Data": {"Files": [folder, *files]}})
        for stem in (f"/{REPOSITORY}/resolve/{COMMIT}/", f"/models/{REPOSITORY}/resolve/master/", "/cdn/"):
            name = path.removeprefix(stem)
            if name != path and name in hub.files:
                queue = hub.queue[name]
                behaviour = queue.pop(0) if queue else hub.always.get(name, Behaviour())
                return self._answer(hub.files[name], behaviour, name)
        return self._answer(b"", Behaviour(status=404))

    def _tree(self, query: dict[str, list[str]]) -> None:
        hub = self.server.hub
        assert query["recursive"] == ["true"]
        start = int(query.get("cursor", ["0"])[0])
        entries = [{"type": "directory", "oid": "", "size": 0, "path": "images"}]
        entries += [hub.hf_entry(name) for name in hub.files] + hub.extra_entries
        stop = start + hub.page_size
        # As behind a mirror: the link names the original host.
        link = f'<https://hub.invalid/api/tree?recursive=true&cursor={stop}>; rel="next"' if stop < len(entries) else ""
        self._json(entries[start:stop], {"Link": link} if link else {})

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._answer(body, Behaviour(headers={"Content-Type": "application/json", **(headers or {})}))

    def _answer(self, data: bytes, how: Behaviour, name: str = "") -> None:
        if how.redirect:
            return self._head(302, {"Location": how.redirect, "Content-Length": "0"})
        data = data if how.body is None else how.body
        start, status = 0, how.status or 200
        headers = dict(how.headers)
        if name and status == 200:
            etag = self.server.hub.etag(name)
            headers["ETag"] = etag
            start = 0 if how.ignore_range else self._range(etag)
            if start > len(data) or (start and start == len(data)):
                status, data = 416, b""
            elif start:
                status = 206
                headers["Content-Range"] = how.content_range or f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        headers |= {"Connection": "close"} if how.no_length else {"Content-Length": str(len(body))}
        self._head(status, headers)
        self._body(body if how.drop_after is None else body[: how.drop_after], how, name)
        if how.drop_after is not None or how.no_length:
            self.close_connection = True
        return None

    def _range(self, etag: str) -> int:
        asked = self.headers.get("Range", "")
        if not asked or self.headers.get("If-Range", etag) != etag:
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _body(self, body: bytes, how: Behaviour, name: str) -> None:
        try:
            for start in range(0, len(body), BLOCK_BYTES):
                block = body[start : start + BLOCK_BYTES]
                self.wfile.write(block)
                self.server.hub.sent_bytes[name] += len(block)
                time.sleep(how.block_delay_s)
        except OSError:  # the client was killed
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class HubServer(ThreadingHTTPServer):
    """A server on a free port of this machine."""

    daemon_threads = True
    hub: FakeHub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, or refuses the certificate, is no concern of ours."""


@contextmanager
def serving(hub: FakeHub, tls: ssl.SSLContext | None = None) -> Iterator[FakeHub]:
    """Serve a hub until the end of the block.

    :param tls: speak HTTPS.
    """
    with HubServer(("127.0.0.1", 0), _Handler) as server:
        server.hub = hub
        hub.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class StubAdapter(ModelAdapter):
    """A family of which only names matter."""

    name = "stub"
    summary = "A stub."
    default_variant = "tiny"

    def variants(self) -> Sequence[ModelVariant]:
        return (variant(),)

    def read_config(self, config: Mapping[str, Any]) -> DecoderConfig:
        raise NotImplementedError

    def weight_table(self, config: DecoderConfig) -> WeightTable:
        raise NotImplementedError

    def chat_template(self, tokenizer: Tokenizer) -> ChatTemplate:
        raise NotImplementedError

    def load_tokenizer(self, folder: Path, config: DecoderConfig | None = None) -> Tokenizer:
        raise NotImplementedError

    def tokenizer_files(self) -> Sequence[str]:
        return ("tokenizer.model",)


def variant(**changes: Any) -> ModelVariant:
    """A variant that both hubs have."""
    config = DecoderConfig(
        num_layers=1,
        hidden_size=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        ffn_size=8,
        vocab_size=8,
        seq_length=8,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rotary_dim=2,
    )
    values: dict[str, Any] = {"name": "tiny", "config": config, "huggingface": REPOSITORY, "modelscope": REPOSITORY}
    return ModelVariant(**(values | changes))


def hub_settings(home: Path, hub: FakeHub, **changes: Any) -> Settings:
    """Settings whose hubs are both this one."""
    values = {"home": home, "hf_endpoint": hub.address, "modelscope_endpoint": hub.address} | changes
    return Settings(**values)


def sharded_files() -> dict[str, bytes]:
    """A repository as they are: small files, two shards with an index, and much that nobody needs."""
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
    return {
        ".gitattributes": b"*.bin filter=lfs\n",
        "config.json": b'{"model_type": "stub"}',
        "modeling_stub.py": b"raise SystemExit('never run this')\n",
        "pytorch_model.bin.index.json": b'{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}',
        "pytorch_model-00001-of-00001.bin": bytes(20_000),
        "images/logo.png": b"png",
        "model.safetensors.index.json": json.dumps(index).encode(),
        shards[0]: _noise(1, 700_000),
        shards[1]: _noise(2, 900_000),
        "tokenizer.model": _noise(3, 30_000),
    }


def needed(hub: FakeHub) -> dict[str, bytes]:
    """The files that a fetch should bring."""
    return {name: hub.files[name] for name in NEEDED}


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def incomplete(home: Path) -> Path:
    """Where the parts of the stub model lie."""
    return home / "models" / ".stub-tiny.incomplete"


QUICK = Retries(waits_s=(0.01, 0.01, 0.01), connect_timeout_s=5, stall_timeout_s=1)


def make_plan(hub: FakeHub, home: Path, which: Hub | None = Hub.HUGGINGFACE, **changes: Any) -> FetchPlan:
    """Plan to fetch the stub model."""
    return plan_fetch(StubAdapter(), variant(**changes), hub_settings(home, hub), which, retries=QUICK)


def fetch(hub: FakeHub, home: Path, which: Hub = Hub.HUGGINGFACE) -> Path:
    """Fetch the stub model."""
    return fetch_checkpoint(make_plan(hub, home, which), hub_settings(home, hub), retries=QUICK)


@pytest.fixture(name="hub")
def hub_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a sharded repository, reached without proxy or token."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with serving(FakeHub(sharded_files())) as served:
        yield served


NEEDED = (
    "config.json",
    "tokenizer.model",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)


def _noise(seed: int, size: int) -> bytes:
    return hashlib.shake_256(bytes([seed])).digest(size)
