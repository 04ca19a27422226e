"""Which certificates are trusted: a network with its own authority says so in the environment."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""The first that is set counts."""


def trusted_certificates() -> ssl.SSLContext:
    """Certificates of the file or folder that the environment names, else the system's and certifi's.

    :raises ValueError: the environment names what holds no certificates.
    """
    for variable in CA_VARIABLES:
        if named := os.environ.get(variable, ""):
            return _context_of(Path(named), variable)
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(cafile=certifi.where())
    return context


def _context_of(path: Path, variable: str) -> ssl.SSLContext:
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=str(path))
        return ssl.create_default_context(cafile=str(path))
    except OSError as error:
        raise ValueError(f"{variable} names {path}, which holds no certificates ({error.strerror or error})") from error
