"""``list-models``, ``show``, ``compile`` and ``export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_support import environment, run_cli, run_program
from tiny import write_checkpoint

MODES = ["none", "f16", "bf16", "int8", "int4"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "home")


def printed(*arguments: str | Path, env: dict[str, str]) -> Any:
    done = run_cli(*arguments, "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_list_models_tells_what_each_needs_and_what_is_here(env: dict[str, str]) -> None:
    models = {entry["name"]: entry for entry in printed("list-models", env=env)["models"]}
    big, demo = models["chatglm3:6b"], models["chatglm3:demo"]
    assert big["parameters"] == 6_243_584_000
    assert (big["context_tokens"], big["default"], big["fetchable"], big["checkpoint"]) == (8192, True, True, None)
    assert [entry["mode"] for entry in big["quant"]] == MODES
    assert [entry["mode"] for entry in big["quant"] if entry["default"]] == ["int8"]
    totals = {entry["mode"]: entry["memory"]["total_bytes"] for entry in big["quant"]}
    assert totals["none"] > totals["f16"] == totals["bf16"] > totals["int8"] > totals["int4"]
    assert demo["ships_with_plugin"]
    assert Path(demo["checkpoint"]).is_dir()
    assert not models["chatglm3:6b-128k"]["fetchable"]


@pytest.mark.parametrize(("name", "guess"), [("chatglm", "chatglm3"), ("chatglm3:dmo", "demo")])
def test_a_name_that_is_nearly_right(name: str, guess: str, env: dict[str, str]) -> None:
    done = run_cli("show", name, env=env)
    assert done.returncode == 2
    assert f"Did you mean {guess}?" in done.stderr
    assert "Did you mean" not in run_cli("show", "nonsense", env=env).stderr


def test_list_models_as_a_table(env: dict[str, str]) -> None:
    done = run_cli("list-models", env=env)
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["model", "params", "context", *MODES, "here"]
    assert any(row.startswith("chatglm3:6b ") and "7.0 GB*" in row for row in rows)
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_bundles_are_listed_with_their_models(env: dict[str, str], tmp_path: Path) -> None:
    compiled = run_program("compile", "chatglm3:demo", "--format", "onnx", "--quant", "int4", env=env)
    assert compiled.returncode == 0, compiled.stderr
    folder = write_checkpoint(tmp_path / "own")
    own = run_program("compile", "chatglm3", "--model-dir", folder, "--format", "onnx", "--quant", "f16", env=env)
    assert own.returncode == 0, own.stderr
    broken = tmp_path / "home" / "bundles" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    catalogue = printed("list-models", env=env)
    (demo,) = (entry for entry in catalogue["models"] if entry["name"] == "chatglm3:demo")
    (bundle,) = demo["bundles"]
    assert (bundle["quant"], bundle["format"], bundle["seq_length"]) == ("int4", "onnx", 512)
    assert bundle["folder"] == compiled.stdout.strip()
    others = {Path(bundle["folder"]).name: bundle for bundle in catalogue["other_bundles"]}
    assert "not JSON" in others.pop("broken")["error"]
    assert [bundle["folder"] for bundle in others.values()] == [own.stdout.strip()]
    table = run_cli("list-models", env=env).stdout
    assert "built in, int4 onnx" in table
    names = {line.split()[0]: line.split()[1:] for line in table.partition("\nBundles")[2].splitlines()[1:]}
    assert names["name"] == ["model", "mode", "tokens", "chips", "size"]
    assert names[Path(bundle["folder"]).name][:5] == ["chatglm3:demo", "int4", "onnx", "512", "1"]
    assert names[Path(own.stdout.strip()).name][:3] == ["chatglm3", "f16", "onnx"]
    assert "not JSON" in table


def test_show_tells_the_decoder_the_nets_and_the_checkpoint(env: dict[str, str]) -> None:
    shown = printed("show", "chatglm3:demo", env=env)
    assert shown["config"]["num_layers"] == 2
    assert {net["name"] for net in shown["nets"]} >= {"embedding", "block_kv_i", "block_cache_i", "lm_head"}
    assert [net["count"] for net in shown["nets"] if net["name"] == "block_kv_i"] == [2]
    assert Path(shown["entry"]["checkpoint"]).is_dir()
    text = run_cli("show", "chatglm3:demo", env=env).stdout
    for part in ("parameters", "context", "attention", "block_cache_i", "history_k", shown["entry"]["checkpoint"]):
        assert part in text


def test_show_patches_with_reason_and_undo(env: dict[str, str]) -> None:
    patches = printed("show", "chatglm3", "--patches", env=env)
    names = [patch["name"] for patch in patches]
    assert names == ["static-seq-length", "additive-mask", "explicit-attention", "half-split-rope"]
    assert all(patch["reason"] and patch["undo"] and patch["changes"] for patch in patches)
    text = run_cli("show", "chatglm3", "--patches", env=env).stdout
    for patch in patches:
        for part in ("name", "reason", "undo", "changes"):
            assert patch[part] in text


def test_show_looks_into_a_folder(env: dict[str, str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "own", num_layers=3)
    shown = printed("show", "chatglm3", "--model-dir", folder, "--seq-length", "128", "--quant", "none", env=env)
    assert (shown["config"]["num_layers"], shown["seq_length"], shown["quant"]) == (3, 128, "none")
    assert shown["entry"]["checkpoint"] == str(folder)
    too_long = run_cli("show", "chatglm3", "--model-dir", folder, "--seq-length", "512", env=env)
    assert too_long.returncode == 2
    assert "over this model's 256" in too_long.stderr


def test_compile_prints_the_folder_and_reuses_it(env: dict[str, str], tmp_path: Path) -> None:
    options = [
        "--format",
        "onnx",
        "--quant",
        "none",
        "--seq-length",
        "64",
        "--prefill",
        "16x64",
        "--decode-cache",
        "32,64",
        "--verify-nets",
        "4x64",
    ]
    command = ["compile", "chatglm3:demo", *options]
    first = run_program(*command, env=env)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["nets"]["seq_length"] == 64
    stages = {(net["stage"]["new_tokens"], net["stage"]["cache_length"]) for net in manifest["nets"]["nets"]}
    assert {(16, 64), (1, 32), (1, 64), (4, 64)} <= stages
    assert (8, 64) not in stages
    assert "[1/4] slice" in first.stderr
    assert "\x1b" not in first.stderr
    again = run_program(*command, "--json", "--output", tmp_path / "out", env=env)
    said = json.loads(again.stdout)
    assert said["reused"]
    assert said["bundle"] == str(tmp_path / "out")
    names = {path.name for path in folder.rglob("*")}
    assert {path.name for path in (tmp_path / "out").rglob("*")} == names
    done = run_cli("run", "--bundle", tmp_path / "out", "Hello", "--max-new-tokens", "3", env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compile", "chatglm3:demo", "--format", "elf"], 2, "unknown bundle format 'elf'"),
        (["compile", "chatglm3:demo", "--format", "onnx", "--prefill", "12"], 2, "'12' is no stage"),
        (["compile", "chatglm3:demo", "--format", "onnx", "--prefill", "0x12"], 2, "'0x12' is no stage"),
        (["compile", "chatglm3:demo", "--format", "onnx", "--seq-length", "99999"], 2, "99999"),
        (["compile", "chatglm3:demo", "--jobs", "0"], 2, "--jobs"),
        (["compile", "chatglm3:demo", "--quant", "int3"], 2, "unknown quantization mode"),
        (["compile", "chatglm3"], 4, "not on this machine"),
        (["export", "chatglm3", "--output", "x"], 4, "not on this machine"),
        (["export", "chatglm3:demo"], 2, "--output"),
        (["show", "nonsense"], 2, "unknown model"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, env: dict[str, str]) -> None:
    done = run_cli(*arguments, env=env)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


@pytest.mark.parametrize("command", [["compile", "--format", "onnx"], ["export"]])
def test_a_folder_that_holds_something_is_not_written_to(
    command: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    done = run_program(*command, "chatglm3:demo", "--output", tmp_path / "mine", env=env)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize("command", [["run", "Hello"], ["compile", "--format", "onnx"]])
def test_a_home_that_cannot_be_made_is_one_error(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    name, *rest = command
    done = run_cli(name, "chatglm3:demo", *rest, env=environment(home))
    assert (done.returncode, done.stdout) == (8, "")
    assert f"the folder {home} cannot be made: Not a directory" in done.stderr


def test_without_a_toolchain_compile_says_how_to_get_one(env: dict[str, str], tmp_path: Path) -> None:
    done = run_program("compile", "chatglm3:demo", env=env | {"PATH": str(tmp_path)})
    assert done.returncode == 5
    assert "toolchain install" in done.stderr


def test_export_writes_checked_slices(env: dict[str, str], tmp_path: Path) -> None:
    done = run_program("export", "chatglm3:demo", "--output", tmp_path / "onnx", "--seq-length", "64", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'onnx'}\n"
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {"embedding.onnx", "block_kv_0.onnx", "block_cache_1.onnx", "lm_head.onnx"} <= names
    assert "compared with the torch reference" in done.stderr
