"""``tpudeploy verify``: a table for people, JSON for programs, an exit code for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_support import environment, run_cli, run_program
from tpudeploy import verify
from tpudeploy.contracts.net import NetKind, Stage
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.verify import NetRow, PromptRow, Skipped, TargetReport, Verdict, VerifyOptions, VerifyReport
from tpudeploy.verify.limits import LIMITS


def net(verdict: Verdict, layer: int = 0) -> NetRow:
    return NetRow(
        net=f"block_kv_{layer}",
        kind=NetKind.PREFILL,
        layer=layer,
        stage=Stage(new_tokens=128, cache_length=512),
        output="output_states",
        cosine=0.5 if verdict is Verdict.WORSE else 1.0,
        max_error=None if verdict is Verdict.WORSE else 1e-6,
        verdict=verdict,
    )


def report(verdict: Verdict) -> VerifyReport:
    prompt = PromptRow(
        prompt="greeting[bold]",
        prompt_tokens=7,
        answer_tokens=4,
        agreement=0.75,
        first_divergence=3,
        cosine=0.99,
        worst_cosine=0.98,
        regret=0.01,
        verdict=Verdict.OK,
    )
    target = TargetReport(
        name="cpu int8",
        backend="cpu",
        quant="int8",
        bundle="there",
        limits=LIMITS[QuantMode.INT8],
        nets=(net(Verdict.OK), net(verdict, layer=1)),
        prompts=(prompt,),
        elapsed_s=1.0,
    )
    skipped = Skipped(what="onnx f32", reason="no room")
    return VerifyReport(model="m", quant="int8", seq_length=512, targets=(target,), skipped=(skipped,), elapsed_s=2.0)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "home")


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.OK, 0), (Verdict.WORSE, 1)])
def test_the_table_and_the_exit_code(
    verdict: Verdict, code: int, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[VerifyOptions] = []

    def verified(source: Any, options: VerifyOptions, *rest: Any) -> VerifyReport:
        asked.append(options)
        return report(verdict)

    monkeypatch.setattr(verify, "verify_model", verified)
    done = run_cli("verify", "chatglm3:demo", "--quant", "int4", "--seq-length", "64", "--max-new-tokens", "3", env=env)
    assert done.returncode == code
    for part in ("cpu int8", "greeting[bold]", "75%", "128x512", "Not compared: onnx f32: no room"):
        assert part in done.stdout
    assert (verdict.value.upper() in done.stdout) and (("not finite" in done.stdout) is (code == 1))
    assert asked[0].quant is QuantMode.INT4
    assert (asked[0].nets.seq_length, asked[0].max_new_tokens) == (64, 3)
    every = run_cli("verify", "chatglm3:demo", "--every-net", env=env).stdout
    assert "block_kv_0" in every
    assert "block_kv_1" in every
    said = run_cli("verify", "chatglm3:demo", "--json", env=env)
    assert said.returncode == code
    assert json.loads(said.stdout)["verdict"] == verdict.value


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "unknown model"),
        (["chatglm3:demo", "--backend", "gpu"], 2, "unknown backend"),
        (["chatglm3:demo", "--quant", "int2"], 2, "unknown quantization mode"),
        (["chatglm3"], 4, "not on this machine"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, env: dict[str, str]) -> None:
    done = run_cli("verify", *arguments, env=env)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_the_demo_is_as_close_as_it_should_be(env: dict[str, str]) -> None:
    options = ["--backend", "cpu", "--quant", "int8", "--seq-length", "256", "--max-new-tokens", "4", "--json"]
    done = run_program("verify", "chatglm3:demo", *options, env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [target["name"] for target in said["targets"]] == ["onnx f32", "cpu int8"]
    assert all(target["nets"] and target["prompts"] for target in said["targets"])
