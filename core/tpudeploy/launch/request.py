"""What a user asks for, before anything is looked up."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.net import Split

AUTO_BACKEND = "auto"


class LaunchRequest(Value):
    """A model to run, in the user's words; empty means "choose for me".

    :param model: family with or without a variant, for example ``chatglm3:6b``; may be empty where a bundle is given.
    :param bundle: a compiled bundle to run as it is.
    :param bmodel: a bmodel that others made, to run as it is.
    :param tokenizer_dir: folder of the tokenizer for it.
    :param mask: how it marks hidden positions, ``one`` or ``negative``; empty asks the file itself.
    :param model_dir: the user's own checkpoint folder.
    :param quant: name of a quantization mode.
    :param backend: name of a backend, or ``auto``.
    :param devices: device ids, one a chip; empty takes as many as the model needs, from the first on.
    :param split: how to divide a model over several chips, where it is still to be built.
    :param force: make a bundle of the local store again, even if it is there.
    :param verify_files: read every file of a bundle, even those that were found right before and look the same.
    :param seq_length: tokens that prompt and answer may have together; None lets it follow from the prompt.
    """

    model: str = ""
    bundle: Path | None = None
    bmodel: Path | None = None
    tokenizer_dir: Path | None = None
    mask: str = ""
    model_dir: Path | None = None
    quant: str = ""
    backend: str = AUTO_BACKEND
    devices: tuple[int, ...] = ()
    split: Split = Split.TENSOR
    force: bool = False
    verify_files: bool = False
    seq_length: int | None = Field(default=None, gt=0)
