"""The smallest build backend that pip accepts, so that the test needs no network and no build tool."""

from __future__ import annotations

import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any


def build_wheel(directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Zip the package with the metadata that pyproject.toml gives."""
    settings = ConfigParser()  # it reads as much of TOML as this needs, on every Python
    settings.read("pyproject.toml")
    project = {key: value.strip('"') for key, value in settings["project"].items()}
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    plugins = {key: value.strip('"') for key, value in settings["project.entry-points.tpudeploy"].items()}
    points = "[tpudeploy]\n" + "".join(f"{key} = {value}\n" for key, value in plugins.items())
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    files = {
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": points,
        f"{stem}.dist-info/RECORD": "",
    }
    name = f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(Path(directory) / name, "w") as wheel:
        for path in sorted(Path().glob("tpudeploy_*/*.py")):
            wheel.write(path)
        for member, content in files.items():
            wheel.writestr(member, content)
    return name
