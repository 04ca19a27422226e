"""GLM-4-0414 on the simulated chip: four norms a layer and BF16 activations, beside the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm4_checkpoints import random_authors, to_0414, write_checkpoint
from glm4_files import AUTHORS_CONFIG, native_config
from tpudeploy.compile.source import open_source
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings
from tpudeploy.verify import Prompt, Verdict, VerifyOptions, verify_model
from tpudeploy_glm4.adapter import GLM4

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


def test_chip_and_cpu_agree(chip_settings: Settings, tmp_path: Path) -> None:
    config = AUTHORS_CONFIG | {"num_layers": 1, "hidden_size": 128, "ffn_hidden_size": 192, "kv_channels": 32}
    tensors = to_0414(random_authors(config), config)
    folder = write_checkpoint(tmp_path / "model", native_config(config, model_type="glm4"), tensors)
    source = open_source(GLM4(), GLM4().variants()[0], chip_settings, model_dir=folder)
    options = VerifyOptions(
        quant=QuantMode.INT8,
        nets=NetPlan(seq_length=48, prefill=(Stage(new_tokens=16, cache_length=48),), verify=()),
        prompts=(Prompt(name="two-chunks", ids=tuple(range(20, 40))),),
        max_new_tokens=2,
    )
    backends = [registry().backend(name) for name in ("cpu", "simulator")]
    report = verify_model(source, options, backends, chip_settings, registry())
    exact, cpu, chip = report.targets
    assert report.verdict is Verdict.OK
    assert source.adapter.half is DType.BF16
    assert {row.net for row in chip.nets} == {row.net for row in cpu.nets} == {row.net for row in exact.nets}
    assert chip.prompts[0].cosine > 0.99
