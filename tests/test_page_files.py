"""The page's files: how they are served, what they may refer to, and the libraries among them."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from tpudeploy.server.page_routes import PAGE, page_routes

VENDOR = PAGE / "vendor"
OWN = sorted(path for path in PAGE.rglob("*") if path.is_file() and VENDOR not in path.parents)
SCRIPTS = [path for path in OWN if path.suffix == ".js"]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes()))


def asset(client: TestClient, name: str) -> str:
    """The address of a file, as the page names it."""
    found = re.search(r'"(page/[0-9a-f]{16}/)icon\.svg"', client.get("/").text)
    assert found is not None
    return f"/{found.group(1)}{name}"


def test_the_page_lets_nothing_in_and_is_asked_for_each_time(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405


def test_files_are_kept_for_good_under_a_name_that_changes_with_them(client: TestClient, tmp_path: Path) -> None:
    answer = client.get(asset(client, "app/main.js"))
    assert answer.content == (PAGE / "app" / "main.js").read_bytes()
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    (tmp_path / "index.html").write_text("{{assets}}", encoding="utf-8")
    (tmp_path / "a.js").write_text("1", encoding="utf-8")
    before = TestClient(Starlette(routes=page_routes(tmp_path))).get("/").text
    (tmp_path / "a.js").write_text("2", encoding="utf-8")
    assert TestClient(Starlette(routes=page_routes(tmp_path))).get("/").text != before


def test_a_proxy_can_put_the_page_below_a_prefix() -> None:
    client = TestClient(Starlette(routes=[Mount("/chat", routes=page_routes())]))
    (script,) = re.findall(r'type="module" src="([^"/][^"]*)"', client.get("/chat/").text)
    assert client.get(f"/chat/{script}").status_code == 200
    api = (PAGE / "app" / "api.js").read_text(encoding="utf-8")
    assert '"/v1' not in api and '"v1/chat/completions"' in api


def test_files_are_packed_for_those_who_unpack(client: TestClient) -> None:
    address = asset(client, "vendor/highlight/highlight.min.js")
    with client.stream("GET", address, headers={"accept-encoding": "gzip"}) as packed:
        data = b"".join(packed.iter_raw())
    plain = client.get(address, headers={"accept-encoding": "identity"})
    assert gzip.decompress(data) == plain.content
    assert len(data) < len(plain.content) / 2
    assert packed.headers["etag"] != plain.headers["etag"]


@pytest.mark.parametrize(
    "name", ["nothing.js", "../page_routes.py", "%2e%2e/page_routes.py", "vendor/marked/LICENSE", ""]
)
def test_other_files_are_not_served(client: TestClient, name: str) -> None:
    assert client.get(asset(client, name)).status_code == 404


def test_own_files_name_no_other_host_and_run_no_text() -> None:
    for path in OWN:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]", text), path
        assert not re.search(
            r"\beval\(|new Function|innerHTML\s*=|insertAdjacentHTML|document\.write|unsafeHTML", text
        ), path
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", index)


def test_every_file_that_is_named_is_there() -> None:
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    named = [PAGE / name for name in re.findall(r"\{\{assets\}\}/([^\"]+)", index)]
    for script in SCRIPTS:
        imports = re.findall(r'(?:from|import) "([^"]+)"', script.read_text(encoding="utf-8"))
        named += [(script.parent / name).resolve() for name in imports]
    assert len(named) > 40
    assert [path for path in named if not path.is_file()] == []


def test_both_languages_say_everything_and_nothing_is_said_for_nobody() -> None:
    english, chinese = (
        dict(re.findall(r'^  (\w+):\s*"(.*)",$', (PAGE / "text" / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("en.js", "zh.js")
    )
    english |= dict(
        re.findall(r'^  (\w+):\n    "(.*)",$', (PAGE / "text" / "en.js").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[key])), key
    code = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS if path.parent.name == "app")
    used = set(re.findall(r'\bt\(\s*"(\w+)"', code))
    assert used <= english.keys()
    built = ("suggestion", "choice_", "key", "error")
    silent = [key for key in english if not re.search(rf'"{key}"', code)]
    assert [
        key for key in silent if not key.startswith(built) and not re.search(rf"\b{key.removesuffix('_help')}\b", code)
    ] == []


def test_libraries_are_those_that_were_published() -> None:
    libraries = json.loads((VENDOR / "libraries.json").read_text(encoding="utf-8"))
    listed = {name: digest for library in libraries for name, digest in library["files"].items()}
    present = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "libraries.json"
    }
    assert present == listed
    for library in libraries:
        assert library["licence"] and any(name.endswith("/LICENSE") for name in library["files"]), library["package"]
