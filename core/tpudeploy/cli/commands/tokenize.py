"""``tpudeploy tokenize``: texts and conversations to token ids, without any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tpudeploy.cli import options
from tpudeploy.cli.terminal import print_json


def tokenize(
    model: options.Model,
    tokenizer_dir: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer-dir",
            metavar="DIR",
            envvar="TPUDEPLOY_TOKENIZER_DIR",
            help="Folder of the tokenizer's files; without it, the model's checkpoint on this machine.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", envvar="TPUDEPLOY_TEXT", help="One plain text, encoded without prefix."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="FILE",
            envvar="TPUDEPLOY_BATCH",
            help='JSON lines, \'-\' for stdin: {"text"} or {"messages", "add_generation_prompt"}.',
        ),
    ] = None,
) -> None:
    """Print token ids as JSON, a line for each text or conversation: {"ids", "text"}, the latter decoded again."""
    from tpudeploy.cli.jsonl import open_lines
    from tpudeploy.errors import UsageError
    from tpudeploy.launch.tokens import encode_batch, encode_line, tokenizer_for
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    if text is not None and batch is not None:
        raise UsageError("--text and --batch exclude each other.")
    if text is None and batch is None:
        raise UsageError("there is nothing to encode.", hint="Give --text or --batch.")
    tools = tokenizer_for(model, tokenizer_dir, registry(), load_settings())
    if text is not None:
        print_json(encode_line({"text": text}, tools), indent=None)
    elif batch is not None:
        with open_lines(batch) as lines:
            for encoded in encode_batch(lines, tools, name=batch):
                print_json(encoded, indent=None)
