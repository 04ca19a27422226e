"""The options of ``tpudeploy run`` that let the model call Python functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Tools = Annotated[
    list[Path] | None,
    typer.Option(
        "--tools",
        metavar="FILE.py",
        envvar="TPUDEPLOY_TOOLS",
        show_default=False,
        help="Let the model call the functions that this Python file defines; you are asked before each call, unless "
        "--yes. May be given several times.",
    ),
]
MaxToolRounds = Annotated[
    int,
    typer.Option(
        "--max-tool-rounds",
        metavar="N",
        envvar="TPUDEPLOY_MAX_TOOL_ROUNDS",
        min=1,
        help="Times that the model may ask for tools before it must have answered.",
    ),
]
