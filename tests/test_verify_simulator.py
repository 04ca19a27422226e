"""Verification on the simulated chip: the same numbers as on the CPU, within what the chip's own types cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_graph import source_of
from tiny import write_checkpoint
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings
from tpudeploy.verify import Prompt, Verdict, VerifyOptions, verify_model

pytestmark = pytest.mark.toolchain


@pytest.mark.parametrize("quant", [QuantMode.F16, QuantMode.INT8])
def test_chip_and_cpu_agree(chip_settings: Settings, tmp_path: Path, quant: QuantMode) -> None:
    source = source_of(write_checkpoint(tmp_path / "model", seed=3))
    options = VerifyOptions(
        quant=quant,
        nets=NetPlan(seq_length=48, prefill=(Stage(new_tokens=16, cache_length=48),), verify=()),
        prompts=(Prompt(name="two-chunks", ids=tuple(range(20, 40))),),
        max_new_tokens=2,
    )
    backends = [registry().backend(name) for name in ("cpu", "simulator")]
    report = verify_model(source, options, backends, chip_settings, registry())
    exact, cpu, chip = report.targets
    assert (exact.name, cpu.name, chip.name) == ("onnx f32", f"cpu {quant.value}", f"simulator {quant.value}")
    assert report.verdict is Verdict.OK
    assert {row.net for row in chip.nets} == {row.net for row in cpu.nets} == {row.net for row in exact.nets}
    # The chip computes activations in 16 bits as well; quantized weights cost far more than that.
    for on_chip, on_cpu in zip(chip.nets, cpu.nets, strict=True):
        assert 1 - on_chip.cosine == pytest.approx(1 - on_cpu.cosine, rel=0.2, abs=2e-6)
    assert chip.prompts[0].answer_tokens == 2
    assert chip.prompts[0].cosine > 0.999
