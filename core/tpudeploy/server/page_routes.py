"""The web page: files that ship with the package, served with headers that keep other hosts and other code out."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
# What index.html has in place of the folder of this release's files.
ASSETS_MARK = "{{assets}}"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text becomes HTML only through the two libraries that were chosen for it.
        "require-trusted-types-for 'script'",
        "trusted-types lit-html dompurify",
    )
)
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
YEAR_SECONDS = 365 * 24 * 3600


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent. ``packed`` is the same with gzip, where that is smaller."""

    data: bytes
    packed: bytes | None
    media_type: str
    etag: str


def page_routes(folder: Path = PAGE) -> Sequence[Route]:
    """Routes of the page at ``/`` and of its files, for a Starlette or FastAPI application.

    Files lie below a folder named by the digest of all of them, so browsers keep them for good and still load a new
    release's at once; the page itself is asked for each time. Addresses are relative: a proxy may put the whole
    application below a prefix. Raises OSError if the package's files are absent.
    """
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)}
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + contents[name] for name in sorted(contents))).hexdigest()
    assets = f"page/{digest[:16]}"
    index = _page_file(INDEX, contents.pop(INDEX).replace(ASSETS_MARK.encode(), assets.encode()))
    files = {name: _page_file(name, data) for name, data in contents.items()}

    async def show_page(request: Request) -> Response:
        return _answer(request, index, "no-cache")

    async def show_file(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            return Response("Not found\n", status_code=404, media_type="text/plain", headers=dict(SECURITY_HEADERS))
        return _answer(request, file, f"public, max-age={YEAR_SECONDS}, immutable")

    return (
        Route("/", show_page, methods=["GET", "HEAD"], include_in_schema=False),
        Route(f"/{assets}/{{name:path}}", show_file, methods=["GET", "HEAD"], include_in_schema=False),
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix in MEDIA_TYPES]


def _page_file(name: str, data: bytes) -> PageFile:
    packed = gzip.compress(data, mtime=0)
    return PageFile(
        data=data,
        packed=packed if len(packed) < len(data) else None,
        media_type=MEDIA_TYPES[Path(name).suffix],
        etag=hashlib.sha256(data).hexdigest()[:32],
    )


def _answer(request: Request, file: PageFile, caching: str) -> Response:
    use_gzip = file.packed is not None and "gzip" in request.headers.get("accept-encoding", "")
    etag = f'"{file.etag}{"-gzip" if use_gzip else ""}"'
    headers = {**SECURITY_HEADERS, "Cache-Control": caching, "ETag": etag, "Vary": "Accept-Encoding"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if use_gzip and file.packed is not None:
        return Response(file.packed, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.data, media_type=file.media_type, headers=headers)
