"""Options of the commands. Each has an environment variable; the command line wins over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tpudeploy.cli import completion

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="For example chatglm3 or chatglm3:demo.", autocompletion=completion.models),
]
OptionalModel = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        show_default=False,
        help="For example chatglm3 or chatglm3:demo; not needed with --bundle.",
        autocompletion=completion.models,
    ),
]
ModelDir = Annotated[
    Path | None,
    typer.Option(
        "--model-dir", metavar="DIR", envvar="TPUDEPLOY_MODEL_DIR", help="A checkpoint folder of your own; only read."
    ),
]
Quant = Annotated[
    str,
    typer.Option(
        "--quant",
        metavar="MODE",
        envvar="TPUDEPLOY_QUANT",
        show_default=False,
        help="none, f16, bf16, int8 or int4; without it, what suits the model.",
        autocompletion=completion.quant_modes,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        envvar="TPUDEPLOY_BACKEND",
        help="auto, cpu, simulator, or another that `tpudeploy plugins` lists.",
        autocompletion=completion.backends,
    ),
]
Devices = Annotated[
    str,
    typer.Option("--device", metavar="ID,...", envvar="TPUDEPLOY_DEVICE", help="Device ids, one a chip of the bundle."),
]
SeqLength = Annotated[
    int | None,
    typer.Option(
        "--seq-length",
        metavar="TOKENS",
        envvar="TPUDEPLOY_SEQ_LENGTH",
        min=1,
        show_default=False,
        help="Tokens of prompt and answer; without it 512, or more where the prompt or --max-new-tokens asks for it.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        envvar="TPUDEPLOY_JOBS",
        min=1,
        show_default=False,
        help="Slices to work on at once; without it, what cores and memory allow.",
    ),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", envvar="TPUDEPLOY_YES", show_default=False, help="Answer every question with yes."),
]
Json = Annotated[
    bool, typer.Option("--json", envvar="TPUDEPLOY_JSON", show_default=False, help="Print one JSON document.")
]


def _use_toolchain(folder: Path | None) -> Path | None:
    # Settings are read wherever a toolchain is needed, backends included; the variable is how all of them hear of it.
    if folder is not None:
        os.environ["TPUDEPLOY_TOOLCHAIN"] = str(folder.absolute())
    return folder


Toolchain = Annotated[
    Path | None,
    typer.Option(
        "--toolchain",
        metavar="DIR",
        envvar="TPUDEPLOY_TOOLCHAIN",
        callback=_use_toolchain,
        help="Use the TPU-MLIR in this folder instead of the private one.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        envvar="TPUDEPLOY_FORCE",
        show_default=False,
        help="Make it again, or replace it, even if it is there.",
    ),
]


def _go_offline(wanted: bool) -> bool:
    # As with the toolchain: settings are read wherever they are needed, the variable is how all hear of it.
    if wanted:
        os.environ["TPUDEPLOY_OFFLINE"] = "1"
    return wanted


Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="TPUDEPLOY_OFFLINE",
        show_default=False,
        callback=_go_offline,
        help="Never touch the network; what is missing is named.",
    ),
]
Hub = Annotated[
    str,
    typer.Option(
        "--hub",
        metavar="NAME",
        envvar="TPUDEPLOY_HUB",
        show_default=False,
        help="Where to fetch missing weights: huggingface or modelscope; without it, the first that answers.",
    ),
]

Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="PATH",
        envvar="TPUDEPLOY_BUNDLE",
        help="Take this compiled bundle as it is: a folder, a file, or its name in the local store.",
    ),
]
VerifyFiles = Annotated[
    bool,
    typer.Option(
        "--verify-files",
        envvar="TPUDEPLOY_VERIFY_FILES",
        show_default=False,
        help="Read every file of the bundle and compare digests, even where it was done before and nothing changed.",
    ),
]
Bmodel = Annotated[
    Path | None,
    typer.Option(
        "--bmodel",
        metavar="FILE",
        envvar="TPUDEPLOY_BMODEL",
        help="Run a bmodel that others made, for example with llm_convert: a file, or the name of a pulled one.",
    ),
]
TokenizerDir = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer-dir",
        metavar="DIR",
        # Not the variable of `tokenize`: whoever has set that may still run a model by its name.
        envvar="TPUDEPLOY_BMODEL_TOKENIZER_DIR",
        help="The tokenizer's files for --bmodel; without it, those of the model's weights on this machine.",
    ),
]
Mask = Annotated[
    str,
    typer.Option(
        "--mask",
        metavar="MARK",
        envvar="TPUDEPLOY_MASK",
        show_default=False,
        help="How the --bmodel marks hidden positions, one or negative; without it, its nets are asked.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", envvar="TPUDEPLOY_OUTPUT", help="A new or empty folder.")
]
OptionalOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        envvar="TPUDEPLOY_OUTPUT",
        help="Also put the bundle into this new or empty folder, to take it to a device.",
    ),
]


_MOST_DIGITS = 18
_MOST_SHOWN = 100


def parse_ids(text: str, what: str) -> tuple[int, ...]:
    """``1,2,3`` or ``1 2 3`` as numbers. :raises UsageError: anything else."""
    from tpudeploy.errors import UsageError

    words = text.replace(",", " ").split()
    # Python reads no number of thousands of digits; nothing here has more than a few.
    if not words or not all(word.isdecimal() and len(word) <= _MOST_DIGITS for word in words):
        raise UsageError(f"{what} takes whole numbers with commas between them, not {text[:_MOST_SHOWN]!r}.")
    return tuple(int(word) for word in words)
