"""The compiler's own model of a net's time on the chip, as ``model_deploy`` leaves it beside a bmodel.

Its file lists every command of both engines, the arithmetic one on the left and the DMA engine on the right::

    A16MatMul_114|MM2|s:50482|...|t:64      Load_105|GDMA_TENSOR|s:45141|...|t:75|dr:0|sz:1024|...
    API_END total_cycle:51541|b:265|g:80
    GDMA SUMMARY : |dr[0] S2L:897354|dr[1] L2S:12544|dr[2] S2S:131392|dr[3] L2L:0
    flops: 1728612, runtime: 0.051541ms, ComputationAbility: 0.033539T

``t`` is a command's time in cycles, ``dr`` the direction of a transfer, S device memory and L the chip's own.
"""

from __future__ import annotations

import re
from pathlib import Path

from tpudeploy.contracts.bundle import NetProfile

PROFILE_NAME = "profile.json"
_SOURCE_NAME = "compiler_profile_0.txt"
_TOTAL = re.compile(r"total_cycle:(\d+)")
_COMMAND = re.compile(r"\|e:\d+\|t:(\d+)(\|dr:)?")
_TRAFFIC = re.compile(r"\b(S2L|L2S|S2S):(\d+)")
_OPERATIONS = re.compile(r"^flops: (\d+)", re.M)


def parse_profile(text: str) -> NetProfile | None:
    """Read a profile; a net of several parts has several, which are added up.

    :returns: None where it holds no total: an empty file, or a later compiler's form.
    """
    totals = _sum(_TOTAL.findall(text))
    if not totals:
        return None
    traffic = {"S2L": 0, "L2S": 0, "S2S": 0}
    for direction, size in _TRAFFIC.findall(text):
        traffic[direction] += int(size)
    commands = [(int(cycles), bool(transfer)) for cycles, transfer in _COMMAND.findall(text)]
    return NetProfile(
        total_cycles=totals,
        dma_cycles=sum(cycles for cycles, transfer in commands if transfer),
        arithmetic_cycles=sum(cycles for cycles, transfer in commands if not transfer),
        read_bytes=traffic["S2L"],
        written_bytes=traffic["L2S"],
        copied_bytes=traffic["S2S"],
        operations=_sum(_OPERATIONS.findall(text)),
    )


def write_profile(folder: Path) -> None:
    """Keep what the compiler's profile in its working folder says as ``profile.json``; ``null`` where there is none."""
    source = folder / _SOURCE_NAME
    profile = parse_profile(source.read_text(errors="replace")) if source.is_file() else None
    (folder / PROFILE_NAME).write_text(profile.model_dump_json() if profile else "null")


def read_profile(folder: Path) -> NetProfile | None:
    """What :func:`write_profile` kept."""
    text = (folder / PROFILE_NAME).read_text()
    return None if text == "null" else NetProfile.model_validate_json(text)


def _sum(numbers: list[str]) -> int:
    return sum(map(int, numbers))
