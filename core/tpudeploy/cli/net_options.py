"""Options that shape a net set and its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tpudeploy.cli.options import parse_ids

if TYPE_CHECKING:
    from tpudeploy.contracts.net import Split, Stage
    from tpudeploy.contracts.net_plan import NetPlan

Prefill = Annotated[
    str,
    typer.Option(
        "--prefill",
        metavar="SxC,...",
        envvar="TPUDEPLOY_PREFILL",
        show_default=False,
        help="Prefill stages: S new tokens over a cache of C, for example 128x512; without it, a measured choice.",
    ),
]
DecodeCache = Annotated[
    str,
    typer.Option(
        "--decode-cache",
        metavar="C,...",
        envvar="TPUDEPLOY_DECODE_CACHE",
        show_default=False,
        help="Cache lengths of decode stages, for example 512,2048; without it, steps of four.",
    ),
]
VerifyNets = Annotated[
    str,
    typer.Option(
        "--verify-nets",
        metavar="SxC,...",
        envvar="TPUDEPLOY_VERIFY_NETS",
        show_default=False,
        help="Stages that verify drafts, S tokens over a cache of C, or none; "
        "without it, 16 over each cache length of decode.",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        envvar="TPUDEPLOY_FORMAT",
        help="bmodel, for chips and the simulator; or onnx, for the backend cpu.",
    ),
]
Chips = Annotated[
    int,
    typer.Option(
        "--devices",
        metavar="N",
        envvar="TPUDEPLOY_DEVICES",
        min=1,
        help="Divide the model over this many chips.",
    ),
]
SplitBy = Annotated[
    str,
    typer.Option(
        "--split",
        metavar="WAY",
        envvar="TPUDEPLOY_SPLIT",
        help="How several chips share the model: tensor (every layer, faster), or pipeline (layer after layer).",
    ),
]
KeepIntermediate = Annotated[
    bool,
    typer.Option(
        "--keep-intermediate",
        envvar="TPUDEPLOY_KEEP_INTERMEDIATE",
        show_default=False,
        help="Keep the pieces that the bundle was made of.",
    ),
]


@dataclass(frozen=True)
class NetChoice:
    """What the user says of the nets; the rest follows from the model.

    :param seq_length: None where it was not given.
    :param verify: None where it was not given.
    :param chips: how many chips the model is divided over, and ``split`` how.
    """

    seq_length: int | None
    prefill: tuple[Stage, ...]
    decode_cache: tuple[int, ...]
    verify: tuple[Stage, ...] | None
    chips: int
    split: Split

    def plan(self, model_length: int) -> NetPlan:
        """The net plan for a model; without a length, that of the largest stage, or the default if the model has it."""
        from tpudeploy.contracts.net_plan import DEFAULT_SEQ_LENGTH, NetPlan

        stages = (*self.prefill, *(self.verify or ()))
        largest = max((*self.decode_cache, *(stage.cache_length for stage in stages)), default=0)
        length = self.seq_length or largest or min(DEFAULT_SEQ_LENGTH, model_length)
        return NetPlan(
            seq_length=length, prefill=self.prefill, decode_cache_lengths=self.decode_cache, verify=self.verify
        )


def parse_nets(
    seq_length: int | None,
    prefill: str,
    decode_cache: str,
    chips: int = 1,
    split: str = "tensor",
    verify: str = "",
) -> NetChoice:
    """Read the options.

    :raises UsageError: a stage that is none.
    :raises UnknownNameError: no such way of dividing a model.
    """
    stages = _parse_stages(prefill)
    lengths = parse_ids(decode_cache, "--decode-cache") if decode_cache else ()
    return NetChoice(seq_length, stages, lengths, parse_verify(verify), chips, parse_split(split))


def parse_verify(text: str) -> tuple[Stage, ...] | None:
    """Stages of verify nets: empty for ``none``, None where nothing was said.

    :raises UsageError: a stage that is none.
    """
    if not text.strip():
        return None
    return () if text.strip().lower() == "none" else _parse_stages(text)


def parse_split(name: str) -> Split:
    """The way of dividing a model called ``name``; :raises UnknownNameError: there is none."""
    from tpudeploy.contracts.net import Split
    from tpudeploy.errors import UnknownNameError

    try:
        return Split(name.lower())
    except ValueError:
        raise UnknownNameError("way of dividing a model", name, [way.value for way in Split]) from None


def _parse_stages(text: str) -> tuple[Stage, ...]:
    return tuple(_parse_stage(part) for part in text.replace(",", " ").split())


def _parse_stage(text: str) -> Stage:
    from tpudeploy.contracts.net import Stage
    from tpudeploy.errors import UsageError

    new, times, cache = text.lower().partition("x")
    if not (times and new.isdecimal() and cache.isdecimal() and int(new) > 0):
        raise UsageError(f"{text!r} is no stage.", hint="Write new tokens x cache length, for example 128x512.")
    return Stage(new_tokens=int(new), cache_length=int(cache))
