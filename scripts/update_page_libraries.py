"""Fetch the web page's libraries again, exactly as their authors published them.

    python scripts/update_page_libraries.py            # fetch what is pinned below, refuse anything else
    python scripts/update_page_libraries.py --accept   # after a version was changed below: print its new digest

Needs npm (its own configuration says which registry), and only here: the files are committed, so neither users nor CI
fetch anything. ``libraries.json`` beside them holds their digests, which a test checks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "core" / "tpudeploy" / "server" / "page" / "vendor"


@dataclass(frozen=True)
class Library:
    """A package of npm. ``files`` maps a path inside it to the one below the library's folder."""

    folder: str
    package: str
    version: str
    licence: str
    sha256: str
    files: dict[str, str]


LIBRARIES = (
    Library(
        folder="lit-html",
        package="lit-html",
        version="3.3.3",
        licence="BSD-3-Clause",
        sha256="ae004138a6327c362fee8e48db2a8ee9619a6ca3014c802857395e6ac447a0eb",
        files={
            name: name
            for name in (
                "LICENSE",
                "lit-html.js",
                "directive.js",
                "directive-helpers.js",
                "directives/live.js",
                "directives/repeat.js",
            )
        },
    ),
    Library(
        folder="marked",
        package="marked",
        version="18.2.1",
        licence="MIT",
        sha256="d66c5213fc203466186060105b01f51896764ba64b3797d2620d02e28e34b8ca",
        files={"LICENSE": "LICENSE", "lib/marked.esm.js": "marked.esm.js"},
    ),
    Library(
        folder="dompurify",
        package="dompurify",
        version="3.4.18",
        licence="Apache-2.0 OR MPL-2.0",
        sha256="8b86f79c6481fec23dd81d4de32179422668912ed033c0c47e786a6e70cb3379",
        files={"LICENSE": "LICENSE", "dist/purify.es.mjs": "purify.es.mjs"},
    ),
    Library(
        folder="highlight",
        package="@highlightjs/cdn-assets",
        version="11.12.0",
        licence="BSD-3-Clause",
        sha256="b8a006d30f45afe783072569f3d69c5b60c0e7b9ca28cd474e12f2584e2a3bd9",
        files={"LICENSE": "LICENSE", "es/highlight.min.js": "highlight.min.js"},
    ),
)


def main() -> int:
    """Replace the vendor folder by what was fetched; exit code 1 on a digest that is not the pinned one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="take packages whose digest is not the pinned one")
    accept = parser.parse_args().accept
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "vendor"
        records = []
        for library in LIBRARIES:
            tarball = _pack(library, Path(folder))
            digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
            if digest != library.sha256:
                print(f"{library.package} {library.version} has the digest {digest}, not {library.sha256}")
                if not accept:
                    return 1
            records.append(_unpack(library, tarball, fresh))
        text = json.dumps(records, indent=2) + "\n"
        (fresh / "libraries.json").write_text(text, encoding="utf-8")
        shutil.rmtree(VENDOR, ignore_errors=True)
        shutil.copytree(fresh, VENDOR)
    print(f"{len(records)} libraries in {VENDOR}")
    return 0


def _pack(library: Library, folder: Path) -> Path:
    name = f"{library.package}@{library.version}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", name], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    return folder / packed.stdout.strip().splitlines()[-1]


def _unpack(library: Library, tarball: Path, vendor: Path) -> dict[str, object]:
    digests = {}
    with tarfile.open(tarball) as archive:
        for inside, name in library.files.items():
            member = archive.extractfile(f"package/{inside}")
            assert member is not None, f"{library.package} has no file {inside}"
            data = member.read()
            path = vendor / library.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            digests[f"{library.folder}/{name}"] = hashlib.sha256(data).hexdigest()
    return {
        "package": library.package,
        "version": library.version,
        "licence": library.licence,
        "tarball_sha256": library.sha256,
        "files": digests,
    }


if __name__ == "__main__":
    sys.exit(main())
