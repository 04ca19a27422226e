"""Lines of a file or of stdin, as bytes: their encoding is checked where their number is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def open_lines(name: str) -> Iterator[IO[bytes]]:
    """Open a file, or stdin for ``-``. :raises UsageError: it cannot be read."""
    from tpudeploy.errors import UsageError

    if name == "-":
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror}.") from error
        yield file
