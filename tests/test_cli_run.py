"""``tpudeploy run``, as a process: answers, JSON, lengths, bundles, and every way to ask wrongly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_support import Terminal, environment, run_cli, run_program
from shared_data import shared_json, shared_path
from tiny import write_checkpoint

GREETING = "Hello! I am chatglm3:demo"
KEYS = {
    "model",
    "quant",
    "backend",
    "token_ids",
    "text",
    "finish_reason",
    "prompt_tokens",
    "first_token_s",
    "tokens_per_s",
    "passes",
    "tokens_per_pass",
    "drafted_tokens",
    "accepted_tokens",
    "recomputed_tokens",
    "seq_length",
    "bundle",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled once."""
    folder = tmp_path_factory.mktemp("home")
    done = run_program("run", "chatglm3:demo", "--backend", "cpu", "Hello", env=environment(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(GREETING)
    return folder


@pytest.fixture(scope="module")
def demo_bundle(home: Path) -> Path:
    """The demo's bundle."""
    return Path(answer(home, "chatglm3:demo", "Hello")["bundle"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), seq_length=2048)


def answer(home: Path, *arguments: str | Path, stdin: str | bytes = b"") -> dict[str, Any]:
    """The one JSON object that the command prints; what must be built first is built in a process of its own."""
    run = run_program if "--model-dir" in arguments else run_cli
    done = run("run", *arguments, "--json", env=environment(home), stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.parametrize("prompt", ["rand1", "rand5", "rand100"])
def test_greedy_tokens_are_those_of_the_original_code(prompt: str, home: Path) -> None:
    golden = shared_json("golden", "tiny-chatglm3", "golden.json")
    ids = ",".join(map(str, golden["prompts"][prompt]))
    folder = shared_path("golden", "tiny-chatglm3")
    options = [
        "--greedy",
        "--ignore-eos",
        "--max-new-tokens",
        "32",
        "--quant",
        "none",
        "--backend",
        "cpu",
        "--prompt-ids",
    ]
    said = answer(home, "chatglm3", *options, ids, "--model-dir", folder)
    assert set(said) == KEYS
    assert said["token_ids"] == golden["greedy"][prompt]["new_tokens"]
    assert said["prompt_tokens"] == len(golden["prompts"][prompt])
    assert (said["backend"], said["quant"], said["finish_reason"]) == ("cpu", "none", "length")
    assert said["text"] is None  # that folder holds no tokenizer
    assert said["first_token_s"] > 0
    assert said["tokens_per_s"] > 0


def test_the_answer_is_on_stdout_and_all_else_on_stderr(home: Path) -> None:
    done = run_program("run", "chatglm3:demo", "Hello", env=environment(home))
    assert done.returncode == 0
    assert done.stdout.startswith(GREETING)
    assert done.stdout.endswith("\n")
    assert "tokens/s" not in done.stdout
    assert "tokens/s" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_json_has_the_answer_and_where_it_came_from(home: Path, demo_bundle: Path) -> None:
    said = answer(home, "chatglm3:demo", "你好", "--quant", "int8")
    assert set(said) == KEYS
    assert (said["model"], said["quant"], said["finish_reason"]) == ("chatglm3:demo", "int8", "stop")
    assert "你好" in said["text"]
    assert said["bundle"] == str(demo_bundle)


@pytest.mark.parametrize("arguments", [["-"], []])
def test_the_prompt_may_come_from_stdin(arguments: list[str], home: Path) -> None:
    assert GREETING in answer(home, "chatglm3:demo", *arguments, stdin="Hello\n")["text"]


def test_prompt_ids_are_continued_as_they_are(home: Path) -> None:
    text = answer(home, "chatglm3:demo", "Hello")
    tokenized = run_cli(
        "tokenize",
        "chatglm3:demo",
        "--batch",
        "-",
        env=environment(home),
        stdin='{"messages": [{"role": "user", "content": "Hello"}]}',
    )
    ids = json.loads(tokenized.stdout)["ids"]
    same = answer(home, "chatglm3:demo", "--prompt-ids", ",".join(map(str, ids)))
    assert same["token_ids"] == text["token_ids"]
    assert same["text"].strip() == text["text"]


def test_without_a_tokenizer_ids_are_the_answer(home: Path, tiny: Path) -> None:
    options = ["--prompt-ids", "5 6 7", "--max-new-tokens", "4", "--quant", "none"]
    said = answer(home, "chatglm3", "--model-dir", tiny, *options)
    done = run_program("run", "chatglm3", "--model-dir", tiny, *options, env=environment(home))
    assert done.stdout == ",".join(map(str, said["token_ids"])) + "\n"
    done = run_cli("run", "chatglm3", "--model-dir", tiny, "--quant", "none", "Hello", env=environment(home))
    assert done.returncode == 4
    assert "no tokenizer" in done.stderr
    assert "--prompt-ids" in done.stderr


def test_sampling_is_repeatable_by_its_seed_and_greedy_wins(home: Path) -> None:
    def ids(*options: str) -> list[int]:
        found: list[int] = answer(home, "chatglm3:demo", "Hello", "--ignore-eos", "--max-new-tokens", "40", *options)[
            "token_ids"
        ]
        return found

    greedy = ids()
    hot = ["--temperature", "3"]
    assert ids(*hot, "--seed", "1") == ids(*hot, "--seed", "1")
    assert ids(*hot, "--seed", "1") != ids(*hot, "--seed", "2")
    assert ids(*hot, "--seed", "1", "--greedy") == greedy
    assert ids("--top-p", "0.99", "--seed", "5") == ids("--top-p", "0.99", "--temperature", "1", "--seed", "5")
    assert ids("--top-k", "1") == greedy
    assert ids("--repetition-penalty", "2") != greedy
    assert ids("--presence-penalty", "2") != greedy
    assert ids("--frequency-penalty", "2", "--draft", "none") == ids("--frequency-penalty", "2") != greedy


@pytest.mark.parametrize(
    ("prompt_tokens", "options", "seq_length", "new_tokens"),
    [
        (3, ["--max-new-tokens", "4"], 512, 4),
        (500, ["--max-new-tokens", "13"], 512, 13),
        (500, ["--max-new-tokens", "14"], 1024, 14),
        (300, ["--max-new-tokens", "900"], 2048, 900),
        (2047, ["--max-new-tokens", "50"], 2048, 2),
        (2048, [], 2048, 1),
        (60, ["--seq-length", "64", "--max-new-tokens", "20"], 64, 5),
    ],
)
def test_the_sequence_length_follows_from_the_prompt(
    prompt_tokens: int, options: list[str], seq_length: int, new_tokens: int, home: Path, tiny: Path
) -> None:
    ids = ",".join(str(3 + index % 300) for index in range(prompt_tokens))
    said = answer(
        home, "chatglm3", "--model-dir", tiny, "--quant", "none", "--ignore-eos", "--prompt-ids", ids, *options
    )
    assert said["seq_length"] == seq_length
    assert len(said["token_ids"]) == new_tokens
    assert said["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("prompt_tokens", "options", "message"),
    [
        (2049, [], "the prompt has 2049 tokens, but this model holds 2048"),
        (65, ["--seq-length", "64"], "the prompt has 65 tokens, but --seq-length is 64"),
        (3, ["--seq-length", "4096"], "sequence length 4096 is over this model's 2048"),
    ],
)
def test_what_does_not_fit_is_refused(
    prompt_tokens: int, options: list[str], message: str, home: Path, tiny: Path
) -> None:
    ids = ",".join(["5"] * prompt_tokens)
    done = run_cli("run", "chatglm3", "--model-dir", tiny, "--prompt-ids", ids, *options, env=environment(home))
    assert done.returncode == 2
    assert message in done.stderr


def test_a_bundle_runs_without_its_model_being_named(home: Path, demo_bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(demo_bundle, tmp_path / "a bundle")
    for arguments in (["Hello"], ["chatglm3", "Hello"], ["chatglm3:demo", "Hello"]):
        said = answer(tmp_path / "empty", "--bundle", moved, *arguments)
        assert GREETING in said["text"]
        assert said["bundle"] == str(moved)
    assert GREETING in answer(tmp_path / "empty", "--bundle", moved, stdin="Hello")["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chatglm3:6b", "Hello"], "is of the variant demo, but 6b was asked for"),
        (["--quant", "int4", "Hello"], "is quantized as int8, but int4 was asked for"),
        (["--seq-length", "128", "Hello"], "is of the sequence length 512, but 128 was asked for"),
        (["--model-dir", ".", "Hello"], "exclude each other"),
    ],
)
def test_a_bundle_that_is_not_what_was_asked_for(
    arguments: list[str], message: str, home: Path, demo_bundle: Path
) -> None:
    done = run_cli("run", "--bundle", demo_bundle, *arguments, env=environment(home))
    assert done.returncode == 2
    assert message in done.stderr


def test_a_damaged_bundle_is_refused(home: Path, demo_bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(demo_bundle, tmp_path / "bundle")
    largest = max((path for path in moved.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.unlink()  # it may be a link
    largest.write_bytes(data)
    done = run_cli("run", "--bundle", moved, "Hello", env=environment(home))
    assert done.returncode == 6
    assert "corrupt" in done.stderr
    assert largest.name in done.stderr
    done = run_cli("run", "--bundle", tmp_path / "none", "Hello", env=environment(home))
    assert done.returncode == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense", "Hello"], 2, "unknown model 'nonsense'"),
        (["chatglm3:7b", "Hello"], 2, "unknown variant of chatglm3 '7b'"),
        (["chatglm3:demo", "Hello", "--quant", "int2"], 2, "unknown quantization mode 'int2'"),
        (["chatglm3:demo", "Hello", "--backend", "gpu"], 2, "unknown backend 'gpu'"),
        (["chatglm3:demo", "Hello", "--device", "x"], 2, "--device takes whole numbers"),
        (["chatglm3:demo", "Hello", "--device", "1"], 7, "no device 1"),
        (["chatglm3:demo", "--prompt-ids", "1,x"], 2, "--prompt-ids takes whole numbers"),
        (["chatglm3:demo", "--prompt-ids", "-1"], 2, "--prompt-ids takes whole numbers"),
        (["chatglm3:demo", "--prompt-ids", "99999"], 2, "token ids must lie between 0 and"),
        (["chatglm3:demo", "Hello", "--prompt-ids", "1"], 2, "--prompt-ids excludes PROMPT"),
        (["chatglm3:demo", "--system", "x", "--prompt-ids", "1"], 2, "--prompt-ids excludes PROMPT"),
        (["chatglm3:demo", ""], 2, "the prompt is empty"),
        (["chatglm3:demo"], 2, "the prompt is empty"),
        (["Hello"], 2, "unknown model 'Hello'"),
        ([], 2, "no model was named"),
        (["chatglm3:demo", "Hello", "--top-p", "2"], 2, "top_p must be"),
        (["chatglm3:demo", "Hello", "--temperature", "-1"], 2, "temperature must be"),
        (["chatglm3:demo", "Hello", "--model-dir", "nowhere"], 4, "there is no checkpoint folder nowhere"),
    ],
)
def test_every_way_to_ask_wrongly(arguments: list[str], code: int, message: str, home: Path) -> None:
    stdin = "Hello" if not arguments else ""
    done = run_cli("run", *arguments, env=environment(home), stdin=stdin)
    assert (done.returncode, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) <= 2


def test_stdin_that_is_no_text(home: Path) -> None:
    done = run_cli("run", "chatglm3:demo", env=environment(home), stdin=b"\xff\xfe\x00")
    assert done.returncode == 2
    assert "stdin is not UTF-8" in done.stderr


def test_missing_weights_are_one_message_with_every_way_out(home: Path) -> None:
    done = run_cli("run", "chatglm3", "--quant", "int8", "Hello", env=environment(home))
    assert (done.returncode, done.stdout) == (4, "")
    message, hint = done.stderr.splitlines()
    assert "chatglm3:6b" in message
    for way in ("--yes", "--model-dir", "chatglm3:demo"):
        assert way in hint


def test_in_a_terminal_missing_weights_are_offered(tmp_path: Path) -> None:
    env = environment(tmp_path, TPUDEPLOY_OFFLINE="1")
    with Terminal("run", "chatglm3", "Hello", env=env) as terminal:
        terminal.expect("offline")
        terminal.expect("chatglm3:demo")
        assert terminal.wait() == 4


def test_what_cannot_be_fetched_says_why(home: Path) -> None:
    done = run_cli("run", "chatglm3:6b-128k", "--yes", "Hello", env=environment(home))
    assert done.returncode == 4
    assert "128K" in done.stderr.splitlines()[0]


def test_a_finished_bundle_needs_no_framework(demo_bundle: Path, tmp_path: Path) -> None:
    """What a device runs: the bundle, the command line, a backend; onnx is onnxruntime's business alone."""
    code = (
        "import sys\n"
        "from tpudeploy.cli.main import run_command\n"
        f"code = run_command(['run', '--bundle', {str(demo_bundle)!r}, '--json', 'Hello'])\n"
        "heavy = {'torch', 'transformers', 'onnx', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported: {heavy}' if heavy else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), check=False
    )
    assert done.returncode == 0, done.stderr
    assert GREETING in json.loads(done.stdout)["text"]


def test_importing_the_launch_room_needs_no_framework() -> None:
    code = (
        "import sys, tpudeploy.launch, tpudeploy.launch.catalogue, tpudeploy.launch.description, tpudeploy.doctor\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'safetensors', 'typer', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
