"""Reference data that is not part of the repository: vectors of the original code, and the authors' tokenizers.

It lies in a folder ``shared`` beside the repository, or where ``TPUDEPLOY_SHARED`` says. Tests that need it skip
where it is absent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("TPUDEPLOY_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def shared_path(*parts: str) -> Path:
    """A file or folder of the shared data; skips the test (or the module that is being collected) without it."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"shared data absent: {Path(*parts)}", allow_module_level=True)
    return path


def shared_json(*parts: str) -> Any:
    """A JSON file of the shared data; skips like :func:`shared_path`."""
    return json.loads(shared_path(*parts).read_text(encoding="utf-8"))
