"""``tpudeploy estimate``: for people, programs and browsers, from a name, a config.json or a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_support import Done, environment, run_cli
from conftest import link_toolchain
from shared_data import shared_json
from tiny import CONFIG, write_checkpoint
from tpudeploy.compile.toolchain import Toolchain
from tpudeploy.estimate.report import Estimate
from tpudeploy.pack import pack_file
from tpudeploy.runtime.bundle_store import open_bundle, read_manifest, write_manifest

NETS = ("--prefill", "128x512", "--decode-cache", "512")


def ok(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_name_is_enough(tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = ok(run_cli("estimate", "chatglm3", "--quant", "int8", *NETS, "--json", env=environment(home)))
    assert Estimate.model_validate(found).source.value == "roofline"
    assert found["title"] == "chatglm3:6b"
    # Full-width nets as compiled: 28 x 4.015 + 5.173 ms a token, 28 x 5.244 + 5.173 ms for 128 tokens.
    assert found["tokens_per_s"] == pytest.approx(8.50, rel=0.05)
    assert found["first_token_s"] == pytest.approx(0.152, rel=0.05)
    assert found["bytes_per_token"] == pytest.approx(6.27e9, rel=0.01)
    assert 0.7 < found["limit_share"] < 0.9
    assert found["device_memory_bytes"][0] > 6.5e9
    assert [prompt["prompt_tokens"] for prompt in found["prompts"]] == [128, 512]
    assert not home.exists()  # nothing is fetched, built or kept


def test_for_people(tmp_path: Path) -> None:
    said = run_cli("estimate", "glm4", "--devices", "2", "--prompt", "20,300", env=environment(tmp_path))
    assert said.returncode == 0, said.stderr
    for text in ("glm4:9b-chat in int8", "2 chips (tensor)", "first token", "share of limit", "exchanges", "lm_head"):
        assert text in said.stdout
    assert said.stderr == ""


def test_what_does_not_fit_is_told_so(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert "does not fit" not in run_cli("estimate", "glm4:9b-chat-1m", env=env).stdout
    said = run_cli("estimate", "glm4:9b-chat-1m", "--prompt", "1000000", env=env)
    assert "does not fit, a chip has 17.2 GB at most" in said.stdout


def test_lengths_that_are_asked_for_make_the_nets_as_long(tmp_path: Path) -> None:
    def length(*options: str) -> int:
        found = ok(run_cli("estimate", "chatglm3", *options, "--json", env=environment(tmp_path)))
        return int(found["seq_length"])

    assert length() == 512
    assert length("--prompt", "600") == 1024
    assert length("--context", "5000") == 8192
    assert length("--seq-length", "256") == 256
    assert length("--prefill", "128x2048") == 2048


@pytest.mark.parametrize("key", ["THUDM/chatglm3-6b", "THUDM/glm-4-9b-chat"])
def test_a_published_config_gives_what_its_name_gives(key: str, tmp_path: Path) -> None:
    """What a plugin knows of a published model is what its config.json says."""
    config = shared_json("golden", "configs.json")[key]
    family = "chatglm3" if "chatglm3" in key else "glm4"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm"} | config))
    env = environment(tmp_path / "home")
    by_name = ok(run_cli("estimate", family, "--json", env=env))
    by_config = ok(run_cli("estimate", family, "--model-dir", tmp_path, "--json", env=env))
    assert by_config | {"title": by_name["title"]} == by_name


def test_speculation_is_estimated_where_nets_check_drafts(tmp_path: Path) -> None:
    env = environment(tmp_path)
    found = ok(run_cli("estimate", "chatglm3", "--tokens-per-pass", "2.5", "--json", env=env))
    (check,) = found["speculation"]
    # Full-width nets as compiled: 28 x 4.439 + 5.198 ms a pass of 8 tokens.
    assert check["pass_s"] == pytest.approx(0.1295, rel=0.05)
    assert check["tokens_per_s"] == pytest.approx(2.5 / check["pass_s"])
    done = run_cli("estimate", "chatglm3", "--tokens-per-pass", "2.5", "--verify-nets", "none", env=env)
    assert (done.returncode, "check no drafted tokens" in done.stderr) == (2, True)


def test_more_tokens_than_a_pass_can_give(tmp_path: Path) -> None:
    done = run_cli("estimate", "chatglm3", "--tokens-per-pass", "400", env=environment(tmp_path))
    assert (done.returncode, "a pass gives" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name either a model or a --bundle"),
        (("chatglm3", "--bundle", "x"), 2, "name either"),
        (("chatglm5",), 2, "unknown model 'chatglm5'"),
        (("chatglm3:7b",), 2, "unknown variant of chatglm3"),
        (("chatglm3", "--quant", "int3"), 2, "unknown quantization mode"),
        (("chatglm3", "--prompt", "many"), 2, "--prompt takes whole numbers"),
        (("chatglm3", "--prompt", "-5"), 2, "--prompt takes whole numbers"),
        (("chatglm3", "--prompt", "0"), 2, "1 token or more"),
        (("chatglm3", "--prompt", "9" * 5000), 2, "--prompt takes whole numbers"),
        (("chatglm3", "--context", "1.5"), 2, "--context takes whole numbers"),
        (("chatglm3", "--prompt", "600", "--seq-length", "512"), 2, "600 tokens is over the sequence length 512"),
        (("chatglm3", "--prompt", "9000"), 2, "this model holds 8192"),
        (("chatglm3", "--seq-length", "9000"), 2, "8192 tokens"),
        (("chatglm3", "--devices", "3"), 2, "cannot be divided over 3 chips"),
        (("chatglm3", "--host-ms", "-1"), 2, "--host-ms takes milliseconds"),
        (("chatglm3", "--host-ms", "nan"), 2, "--host-ms takes milliseconds"),
        (("chatglm3", "--chart", "chart.png"), 2, "does not end in .html"),
        (("chatglm3", "--chart", "/nowhere/chart.html"), 8, "cannot write /nowhere/chart.html"),
        (("chatglm3", "--model-dir", "/nowhere"), 4, "no checkpoint folder"),
        (("--bundle", "nothing-like-it"), 6, "there is no bundle"),
        (("--bundle", "x", "--prefill", "128x512"), 2, "exclude each other"),
    ],
)
def test_one_clear_error(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    done = run_cli("estimate", *arguments, env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    done = run_cli("estimate", "chatglm3", "--model-dir", tmp_path, env=environment(tmp_path))
    assert (done.returncode, f"{tmp_path} has no config.json" in done.stderr) == (4, True)


def test_the_chart_is_one_file(tmp_path: Path) -> None:
    chart = tmp_path / "time.html"
    done = run_cli("estimate", "glm4", "--chart", chart, "--json", env=environment(tmp_path / "home"))
    found = ok(done)
    assert done.stderr == f"chart: {chart}\n"
    page = chart.read_text(encoding="utf-8")
    assert f"{found['tokens_per_s']:.2f} tokens/s" in page
    assert page.count("<svg role=") == 2


def test_a_cpu_bundle_is_estimated_as_its_model_is(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    env = environment(tmp_path / "home")
    options = ("--quant", "int8", "--seq-length", "64", "--prefill", "32x64", "--decode-cache", "64")
    built = run_cli("compile", "chatglm3", "--model-dir", checkpoint, *options, "--format", "onnx", env=env)
    assert built.returncode == 0, built.stderr
    bundle = Path(built.stdout.strip())
    of_bundle = ok(run_cli("estimate", "--bundle", bundle, "--json", env=env))
    of_model = ok(run_cli("estimate", "chatglm3", "--model-dir", checkpoint, *options, "--json", env=env))
    assert "for the CPU" in of_bundle["note"]
    assert of_bundle["source"] == "roofline"
    for key in ("contexts", "prompts", "tokens_per_s", "first_token_s", "bytes_per_token", "limit_share"):
        assert of_bundle[key] == of_model[key]
    opened = open_bundle(bundle)
    packed = pack_file(opened, opened.manifest, tmp_path / "tiny.tpubundle").path
    assert ok(run_cli("estimate", "--bundle", packed, "--json", env=env)) == of_bundle
    for wrong in (("--quant", "int4"), ("--seq-length", "128")):
        assert run_cli("estimate", "--bundle", bundle, *wrong, env=env).returncode == 2
    done = run_cli("estimate", "--bundle", bundle, "--prompt", "65", env=env)
    assert (done.returncode, "over the sequence length 64" in done.stderr) == (2, True)


@pytest.mark.toolchain
def test_a_chip_bundle_is_estimated_by_its_compiler(tmp_path: Path, installed_toolchain: Toolchain) -> None:
    home = link_toolchain(tmp_path / "home").home
    env = environment(home)
    checkpoint = write_checkpoint(tmp_path / "model")
    options = ("--quant", "int8", "--seq-length", "64", "--prefill", "16x64", "--decode-cache", "64")
    built = run_cli("compile", "chatglm3", "--model-dir", checkpoint, *options, env=env)
    assert built.returncode == 0, built.stderr
    bundle = Path(built.stdout.strip())
    found = ok(run_cli("estimate", "--bundle", bundle, "--prompt", "16,40", "--host-ms", "0", "--json", env=env))
    manifest = read_manifest(bundle)
    cycles = manifest.compiler.cycles
    assert (found["source"], found["note"]) == ("profile", "")
    assert found["compiler"] == f"tpu-mlir {installed_toolchain.version}"
    layers = range(int(CONFIG["num_layers"]))
    token = cycles["embedding_cache"] + sum(cycles[f"block_cache_{layer}"] for layer in layers) + cycles["lm_head"]
    assert found["tokens_per_s"] == pytest.approx(1e9 / token)
    first = cycles["embedding"] + sum(cycles[f"block_kv_{layer}"] for layer in layers) + cycles["lm_head"]
    assert found["first_token_s"] == pytest.approx(first / 1e9)
    (decode,) = (net for net in found["nets"] if net["net"] == "block_cache_i")
    assert 0 < decode["arithmetic_s"] < decode["dma_s"] < decode["seconds"]
    # As an older tpudeploy left it: cycles and no profiles.
    old = manifest.compiler.model_copy(update={"profiles": {}})
    write_manifest(bundle, manifest.model_copy(update={"compiler": old, "format_version": 2}))
    older = ok(run_cli("estimate", "--bundle", bundle, "--prompt", "16,40", "--host-ms", "0", "--json", env=env))
    assert (older["source"], older["tokens_per_s"]) == ("cycles", found["tokens_per_s"])
    # Or a compiler whose profile nobody can read: told is what the shapes say.
    none = old.model_copy(update={"cycles": {}})
    write_manifest(bundle, manifest.model_copy(update={"compiler": none}))
    unknown = ok(run_cli("estimate", "--bundle", bundle, "--json", env=env))
    assert unknown["source"] == "roofline"
    assert "does not hold the compiler's cycles" in unknown["note"]
