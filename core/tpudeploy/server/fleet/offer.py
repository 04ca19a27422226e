"""What every replica is told to load, and where a machine finds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tpudeploy import __version__
from tpudeploy.contracts.bundle import MANIFEST_NAME
from tpudeploy.errors import BundleError, UsageError
from tpudeploy.launch.bundles import find_bundle, local_bundles
from tpudeploy.launch.candidates import manifest_of
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.settings import Settings

_SHOWN = 12


@dataclass(frozen=True)
class Offer:
    """A bundle, and what is to run it.

    :param place: its folder on the machine of the server.
    :param digest: SHA-256 of its manifest, which holds those of every file: equal ones are equal bundles.
    :param backend: a backend's name, or ``auto``: each machine chooses.
    :param session_bytes: host memory of each replica for conversations; None: see :class:`PrefixStore`.
    :param version: tpudeploy's.
    """

    name: str
    place: str
    digest: str
    backend: str
    session_bytes: int | None = None
    version: str = __version__


def offer_of(bundle: Bundle, backend: str, session_bytes: int | None = None) -> Offer:
    """The offer of a bundle of this machine."""
    manifest = (bundle.folder / MANIFEST_NAME).read_bytes()
    return Offer(bundle.folder.name, str(bundle.folder), hashlib.sha256(manifest).hexdigest(), backend, session_bytes)


def find_offered(offer: Offer, settings: Settings, node: str) -> Path:
    """The folder of the same bundle on this machine: at the same place, or anywhere in the local store.

    :param node: this machine's name, for errors.
    :raises UsageError: another tpudeploy than the server's.
    :raises BundleError: this machine has no such bundle.
    """
    if offer.version != __version__:
        raise UsageError(
            f"the machine {node} has tpudeploy {__version__}, the server has {offer.version}.",
            hint="Install the same version on every machine of the cluster.",
        )
    found = next((path for path in _candidates(offer, settings) if _digest(path) == offer.digest), None)
    if found is None:
        there = Path(offer.place).exists()
        raise BundleError(
            f"the machine {node} does not have the bundle {offer.name} (manifest {offer.digest[:_SHOWN]})"
            + (f": what lies in {offer.place} is another one." if there else "."),
            hint="Bring the same bundle there: `tpudeploy pull ADDRESS`, or a shared folder at the same path.",
        )
    return find_bundle(found, settings)


def _candidates(offer: Offer, settings: Settings) -> Iterator[Path]:
    place = Path(offer.place)
    if place.exists():
        yield place
    yield from local_bundles(settings)


def _digest(path: Path) -> str:
    manifest = manifest_of(path)
    return hashlib.sha256(manifest).hexdigest() if manifest is not None else ""
