"""What a hub holds of a repository: names, sizes and digests, in the formats of Hugging Face and of ModelScope."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tpudeploy.contracts.base import Value
from tpudeploy.fetch.client import HubClient
from tpudeploy.fetch.model import Checksum, FetchFile, Hub

T = TypeVar("T")

_MODELSCOPE_REVISION = "master"
_MOST_PAGES = 100
_DRIVE = re.compile(r"^[A-Za-z]:")


class Listing(Value):
    """The files of one revision of a repository."""

    revision: str
    files: tuple[FetchFile, ...]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _HfInfo(_Answer):
    sha: str = Field(pattern=r"^[0-9a-f]{40}$")


class _HfLfs(_Answer):
    oid: str
    size: int


class _HfEntry(_Answer):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: _HfLfs | None = None


class _MsFile(_Answer):
    path: str = Field(alias="Path")
    size: int = Field(alias="Size", default=0)
    type: str = Field(alias="Type", default="blob")
    sha256: str | None = Field(alias="Sha256", default=None)


class _MsData(_Answer):
    files: list[_MsFile] = Field(alias="Files")


class _MsAnswer(_Answer):
    message: str = Field(alias="Message", default="")
    data: _MsData | None = Field(alias="Data", default=None)


def list_repository(client: HubClient, repository: str) -> Listing:
    """Ask a hub for the files of a repository.

    :param repository: ``owner/name``.
    :raises FetchError: it cannot be had, is not as the hub's listings are, or names a file outside of the repository.
    """
    listing = _huggingface(client, repository) if client.hub is Hub.HUGGINGFACE else _modelscope(client, repository)
    for file in listing.files:
        if not is_safe(file.path):
            raise client.error(
                f"{client.endpoint}/{repository}", f"its listing names the file {file.path!r}, which is not one of it"
            )
    return listing


def is_safe(path: str) -> bool:
    """Whether a name stays inside the folder that it is put into, on any system."""
    if not path or not path.isprintable() or "\\" in path or _DRIVE.match(path):
        return False
    return not any(part in {"", ".", ".."} for part in path.split("/"))


def _huggingface(client: HubClient, repository: str) -> Listing:
    url = f"{client.endpoint}/api/models/{repository}"
    revision = _validated(client, url, _HfInfo, client.get_json(url)[0]).sha
    base = f"{client.endpoint}/{repository}/resolve/{revision}"
    files = tuple(
        FetchFile(
            path=entry.path,
            url=f"{base}/{quote(entry.path)}",
            size_bytes=entry.lfs.size if entry.lfs else entry.size,
            checksum=_checksum("sha256", entry.lfs.oid) if entry.lfs else _checksum("git-sha1", entry.oid),
        )
        for entry in _tree(client, f"{url}/tree/{revision}")
        if entry.type == "file"
    )
    return Listing(revision=revision, files=files)


def _tree(client: HubClient, url: str) -> Iterator[_HfEntry]:
    query: str | None = "recursive=true"
    for _ in range(_MOST_PAGES):
        page, following = client.get_json(f"{url}?{query}")
        yield from _validated(client, url, list[_HfEntry], page)
        if following is None:
            return
        # A mirror passes on the hub's own address: only what comes after the question mark is news.
        query = following.partition("?")[2]
    raise client.error(url, f"its listing has more than {_MOST_PAGES} pages")


def _modelscope(client: HubClient, repository: str) -> Listing:
    url = f"{client.endpoint}/api/v1/models/{repository}/repo/files?Revision={_MODELSCOPE_REVISION}&Recursive=true"
    answer = _validated(client, url, _MsAnswer, client.get_json(url)[0])
    if answer.data is None:
        raise client.error(url, answer.message or "its answer holds no files")
    base = f"{client.endpoint}/models/{repository}/resolve/{_MODELSCOPE_REVISION}"
    files = tuple(
        FetchFile(
            path=file.path,
            url=f"{base}/{quote(file.path)}",
            size_bytes=file.size,
            checksum=_checksum("sha256", file.sha256 or ""),
        )
        for file in answer.data.files
        if file.type == "blob"
    )
    return Listing(revision=_MODELSCOPE_REVISION, files=files)


def _checksum(kind: str, value: str) -> Checksum | None:
    return Checksum.model_validate({"kind": kind, "value": value.lower()}) if value else None


def _validated(client: HubClient, url: str, kind: type[T], answer: Any) -> T:
    try:
        return TypeAdapter(kind).validate_python(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise client.error(url, f"it did not answer as {client.hub.title} does: {place}: {first['msg']}") from error
