"""Encrypted hubs: certificates of the user's own network, and redirects that would leave encryption."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import (
    Behaviour,
    FakeHub,
    content,
    fetch,
    hub_fixture,
    make_plan,
    needed,
    serving,
    sharded_files,
)
from tpudeploy.errors import FetchError

__all__ = ["hub_fixture"]

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine with its key, made on the spot."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "hub.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub", "-keyout", str(path)]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{path}.crt"]
    subprocess.run([openssl, "req", *options, *names], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def secure_hub(hub: FakeHub, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with serving(FakeHub(sharded_files()), tls) as served:
        yield served


def test_unknown_authority_is_refused_at_once(secure_hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"CERTIFICATE_VERIFY_FAILED.*name its file in SSL_CERT_FILE"):
        make_plan(secure_hub, tmp_path)
    assert secure_hub.requests == []


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_authority_that_the_environment_names(
    secure_hub: FakeHub, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"{certificate}.crt")
    assert content(fetch(secure_hub, tmp_path)) == needed(secure_hub)


def test_redirect_out_of_encryption_is_refused(
    secure_hub: FakeHub, hub: FakeHub, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    secure_hub.always["config.json"] = Behaviour(redirect=f"{hub.address}/cdn/config.json")
    with pytest.raises(FetchError, match="not encrypted"):
        fetch(secure_hub, tmp_path)
