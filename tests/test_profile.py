"""What the compiler's profile says of a net, and how it gets into a bundle."""

from __future__ import annotations

from pathlib import Path

from tpudeploy.compile.profile import PROFILE_NAME, parse_profile, read_profile, write_profile
from tpudeploy.contracts.bundle import CompilerInfo, NetProfile

RECORDED = """\
--------------------------------------
s: start time, b: bd_id, g: gdma_id, e: end time, t: cmd cost time, dr: direction, sz: memsize, bw: bandwidth
--------------------------------------
ENGINE_BD                                                   ENGINE_GDMA
                                                            RMSNorm_21|GDMA_TENSOR|s:37|b:0|g:2|e:73|t:37|dr:0|sz:512|bw:12.89
RMSNorm_21|AR|s:74|b:1|g:2|e:89|t:16
FAttention_77|STATIC_BC|s:625816|b:123|g:83|e:625816|t:1
Mul_107|AR|s:45216|b:258|g:71|e:45247|t:32                  Load_105|GDMA_TENSOR|s:45141|b:256|g:71|e:45215|t:75|dr:0|sz:1024|bw:12.72
                                                            Add_115|GDMA_MATRIX|s:51169|b:265|g:80|e:51540|t:372|dr:1|sz:512|bw:1.28
--------------------------------------
API_END total_cycle:51541|b:265|g:80
TCYC : 51541
GDMA SUMMARY : |dr[0] S2L:897354|dr[1] L2S:12544|dr[2] S2S:131392|dr[3] L2L:0
DDR BW USAGE : 33.10911518%
#######################################


flops: 1728612, runtime: 0.051541ms, ComputationAbility: 0.033539T
"""  # noqa: E501 - lines of model_deploy (TPU-MLIR 1.30.2) as they are

WANTED = NetProfile(
    total_cycles=51541,
    dma_cycles=37 + 75 + 372,
    arithmetic_cycles=16 + 1 + 32,
    read_bytes=897354,
    written_bytes=12544,
    copied_bytes=131392,
    operations=1728612,
)


def test_commands_of_both_engines_are_told_apart() -> None:
    assert parse_profile(RECORDED) == WANTED
    assert WANTED.moved_bytes == 897354 + 12544 + 2 * 131392


def test_a_net_of_two_parts_is_added_up() -> None:
    twice = parse_profile(RECORDED + RECORDED)
    assert twice is not None
    assert twice.total_cycles == 2 * 51541
    assert twice.moved_bytes == 2 * WANTED.moved_bytes


def test_what_is_no_profile_is_none(tmp_path: Path) -> None:
    assert parse_profile("") is None
    assert parse_profile("flops: 12, runtime: 1ms") is None
    write_profile(tmp_path)
    assert read_profile(tmp_path) is None


def test_a_profile_is_kept_beside_the_net(tmp_path: Path) -> None:
    (tmp_path / "compiler_profile_0.txt").write_text(RECORDED)
    write_profile(tmp_path)
    assert (tmp_path / PROFILE_NAME).is_file()
    assert read_profile(tmp_path) == WANTED


def test_compiler_info_of_older_bundles_is_read() -> None:
    old = {"name": "tpu-mlir", "version": "1.30.2", "cycles": {"lm_head": 9957}}
    info = CompilerInfo.model_validate(old)
    assert info.cycles["lm_head"] == 9957
    assert info.profiles == {}
