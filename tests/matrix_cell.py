"""One cell of the matrix in a process of its own, as the vendor's libraries like it: prints the answer's ids as JSON.

python matrix_cell.py BACKEND BUNDLE TOKENS PROMPT_ID,...
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

from sail_support import fake_sail
from tpudeploy.compile.toolchain import find_toolchain
from tpudeploy.errors import TpuDeployError
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.kv_rows import Piece, Rows, slice_rows
from tpudeploy.settings import load_settings


def answer(backend: str, folder: Path, tokens: int, prompt: list[int]) -> list[int]:
    """Open the bundle on the backend and answer greedily; where it has a verify net, that must say the same."""
    options = GenerationOptions(max_new_tokens=tokens, drafter=None)
    with open_engine(open_bundle(folder), registry().backend(backend)) as engine:
        ids = [event.token_id for event in generate(engine, prompt, options)]
        check_rows(engine, ids)
        engine.reuse([*prompt, ids[0]])
        if engine.draft_limit() > 0:
            assert engine.verify(ids[:2]).argmax(axis=-1).tolist() == ids[1:3], "the verify net chooses others"
        return ids


def check_rows(engine: Engine, ids: list[int]) -> None:
    """Rows that are copied from every chip come back to the last bit, in two pieces, and the nets go on from them."""
    cache = engine.cache
    state, rows = cache.state, cache.read_rows(0)
    assert cache.ids[-1] == ids[-2] and all(array.any() for array in rows)
    middle = cache.length // 2
    engine.forget()
    assert not any(array.any() for array in _rows_anyway(engine, len(state.ids)))
    pieces = (Piece(0, slice_rows(rows, 0, middle)), Piece(middle, slice_rows(rows, middle, len(state.ids))))
    cache.restore(state, pieces)
    assert all(np.array_equal(now, then) for now, then in zip(cache.read_rows(0), rows, strict=True))
    cache.rollback(1)
    assert int(engine.forward([ids[-2]])[0].argmax()) == ids[-1], "another token follows than before"


def _rows_anyway(engine: Engine, count: int) -> Rows:
    engine.cache.extend([0] * count)
    rows = engine.cache.read_rows(0)
    engine.cache.truncate(0)
    return rows


def main(backend: str, folder: str, tokens: str, prompt: str) -> int:
    """Run one cell; exit code 1 with the error's text where it fails as users would see it."""
    sailing = fake_sail(find_toolchain(load_settings())) if backend.startswith("sail") else contextlib.nullcontext()
    try:
        with sailing as sail:
            if sail is not None:
                sail.DEVICES = 2  # both are the simulator's one chip
            ids = answer(backend, Path(folder), int(tokens), [int(word) for word in prompt.split(",")])
    except TpuDeployError as error:
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
        return 1
    print("ids:", json.dumps(ids))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
