"""``tpudeploy bench`` as users call it: on the CPU, on bmodels of others, interrupted, and asked for what cannot be."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from cli_support import Terminal, environment, run_cli, run_program
from test_foreign_llm_convert import TOKENIZER, unpacked
from tiny import write_checkpoint
from tpudeploy.settings import Settings

FAST = ("--runs", "2", "--warmup", "0", "--max-new-tokens", "4", "--draft", "none")
COLUMNS = "platform", "test program", "model", "first token latency(s)", "token per second(tokens/s)"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled and measured once."""
    folder = tmp_path_factory.mktemp("home")
    done = run_program("bench", "chatglm3:demo", "--backend", "cpu", *FAST, env=environment(folder))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("NOT A CHIP")
    assert all(column in lines[2] for column in COLUMNS)
    assert "chatglm3:demo int8" in lines[3] and "question" in lines[3]
    assert "\x1b" not in done.stdout + done.stderr
    return folder


def test_json(home: Path) -> None:
    lengths = ("--prompt-lengths", "16,512", "--context-lengths", "64")
    done = run_cli("bench", "chatglm3:demo", "--backend", "cpu", *FAST, *lengths, "--json", env=environment(home))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["quant"], told["backend"]) == ("chatglm3:demo", "int8", "cpu")
    assert told["hardware"] is False and "NOT A CHIP" in done.stderr
    assert told["seq_length"] == 512  # a prompt of 512 does not ask for a longer model
    assert told["load_s"] > 0 and told["weights_bytes"] > 0 and told["published"] == []
    assert [row["test"] for row in told["rows"]] == ["question", "prompt 16", "prompt 512", "context 64"]
    assert [row["prompt_tokens"] for row in told["rows"]][1:] == [16, 512, 61]
    for row in told["rows"]:
        assert len(row["first_token_s"]["values"]) == 2
        assert row["first_token_s"]["minimum"] > 0
        assert (row["tokens_per_s"] is None) == (row["test"] == "prompt 512")
    assert told["rows"][3]["new_tokens"] == [4, 4]


def test_markdown_and_csv_of_a_bundle(home: Path) -> None:
    (bundle,) = (home / "bundles").iterdir()
    options = ("--bundle", bundle, "--backend", "cpu", *FAST, "--platform", "my desk")
    done = run_cli("bench", *options, "--markdown", env=environment(home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| platform | test program | model | first token latency(s) |")
    assert "| my desk | tpudeploy " in done.stdout and "**NOT A CHIP" in done.stdout
    done = run_cli("bench", *options, "--csv", "--question", "Hello", env=environment(home))
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["platform"], row["test"], row["runs"], row["hardware"]) == ("my desk", "question", "2", "False")


def test_drafts_are_compared(home: Path) -> None:
    options = ("bench", "chatglm3:demo", "--backend", "cpu", "--runs", "1", "--warmup", "0", "--max-new-tokens", "4")
    done = run_cli(*options, "--json", env=environment(home))
    assert done.returncode == 0, done.stderr
    assert [row["variant"] for row in json.loads(done.stdout)["rows"]] == ["none", "prompt-lookup"]
    done = run_cli(*options, "--draft", "prompt-lookup", env=environment(home))
    assert "question" in done.stdout and "no drafts" not in done.stdout
    done = run_cli(*options, "--draft", "nobody", env=environment(home))
    assert done.returncode == 2 and "nobody" in done.stderr


def test_without_a_tokenizer_only_lengths_are_measured(home: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", seq_length=64)
    options = ("chatglm3", "--model-dir", folder, "--quant", "none", "--backend", "cpu", *FAST)
    done = run_program("bench", *options, env=environment(home))
    assert done.returncode == 2
    assert "no tokenizer" in done.stderr and "--prompt-lengths" in done.stderr
    done = run_cli("bench", *options, "--prompt-lengths", "3", "--json", env=environment(home))
    assert done.returncode == 0, done.stderr
    assert [row["test"] for row in json.loads(done.stdout)["rows"]] == ["prompt 3"]
    assert "question is left out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chatglm3:demo", "--json", "--csv"], 2, "exclude each other"),
        (["chatglm3:demo", "--prompt-lengths", "16,x"], 2, "--prompt-lengths takes whole numbers"),
        (["chatglm3:demo", "--context-lengths", "0"], 2, "from 1 on"),
        (["chatglm3:demo", "--question", ""], 2, "nothing to measure"),
        (["chatglm3:demo", "--runs", "0"], 2, "--runs"),
        (["chatglm3:demo", "--backend", "cpu", "--prompt-lengths", "100000"], 2, "100000"),
        (["chatglm3:demo", "--backend", "cpu", "--seq-length", "64", "--prompt-lengths", "65"], 2, "65"),
        (["chatglm3:dmo"], 2, "Did you mean demo"),
        (["--bundle", "nothing"], 6, "no bundle nothing"),
        (["chatglm3", "--bmodel", "nothing.bmodel"], 6, "no file nothing.bmodel"),
        ([], 2, "no model was named"),
        (["chatglm3"], 4, "not on this machine"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(home: Path, arguments: list[str], code: int, message: str) -> None:
    done = run_cli("bench", *arguments, "--offline", env=environment(home))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_shows_the_runs_that_were_finished(home: Path) -> None:
    env = environment(home, TERM="xterm")
    command = ("bench", "chatglm3:demo", "--backend", "cpu", "--runs", "100000", "--max-new-tokens", "2")
    with Terminal(*command, env=env) as terminal:
        while not re.search(r"run ([3-9]|\d\d) of", terminal.seen):  # not every one is drawn
            terminal.expect("question, ")
        terminal.type("\x03")
        terminal.expect("token per second(tokens/s)")
        terminal.expect("question")
        terminal.expect("interrupted: the tests that are missing were not finished.")
        assert terminal.wait() == 130


def test_a_device_that_fails_leaves_the_runs_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tpudeploy.errors import BackendError
    from tpudeploy.runtime.engine import Engine

    forgotten = 0
    original = Engine.forget

    def failing(engine: Engine) -> None:
        nonlocal forgotten
        forgotten += 1
        if forgotten == 4:  # the first is no run: it looks whether drafts can be verified
            raise BackendError("device 0 was lost.", hint="Reset it.")
        original(engine)

    monkeypatch.setattr(Engine, "forget", failing)
    command = ("bench", "chatglm3:demo", "--backend", "cpu", "--runs", "5", "--warmup", "0", "--max-new-tokens", "2")
    done = run_cli(*command, "--draft", "none", "--json", env=environment(home))
    assert done.returncode == 7
    assert "error: device 0 was lost." in done.stderr
    told = json.loads(done.stdout)
    assert told["interrupted"] is True
    assert len(told["rows"][0]["new_tokens"]) == 2


@pytest.mark.toolchain
def test_a_bmodel_of_others(tmp_path: Path, chip_settings: Settings) -> None:
    path = unpacked(tmp_path, "llm_convert-static")
    options = ("--tokenizer-dir", TOKENIZER, "--runs", "1", "--warmup", "0", "--max-new-tokens", "2", "--ignore-eos")
    done = run_cli(
        *("bench", "chatglm3", "--bmodel", path, "--backend", "simulator", *options, "--json"),
        env=environment(chip_settings.home),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == f"chatglm3 ({path.name})" and told["quant"] == "bmodel"
    assert told["hardware"] is False and told["platform"] == "BM1684X (simulated)"
    assert told["rows"][0]["new_tokens"] == [2]
