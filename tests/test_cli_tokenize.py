"""``tpudeploy tokenize``: the vectors of the original code, and lines that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_support import environment, run_cli, run_program
from shared_data import shared_json, shared_path

DEMO = ("tokenize", "chatglm3:demo")
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "home")


def lines(*objects: object) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects)


def parse(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_texts_of_the_original_tokenizer(env: dict[str, str], tmp_path: Path) -> None:
    vectors = shared_json("golden", "chatglm3_tokenizer.json")["texts"]
    batch = tmp_path / "batch.jsonl"
    batch.write_text(lines(*({"text": vector["text"]} for vector in vectors)), encoding="utf-8")
    folder = shared_path("tokenizers", "chatglm3")
    done = run_cli("tokenize", "chatglm3", "--tokenizer-dir", folder, "--batch", batch, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    said = parse(done.stdout)
    assert [line["ids"] for line in said] == [vector["ids"] for vector in vectors]
    assert [line["text"] for line in said] == [vector["decoded"] for vector in vectors]


def test_conversations_of_the_original_tokenizer(env: dict[str, str]) -> None:
    vectors = shared_json("golden", "chatglm3_tokenizer.json")["chats"]
    keys = ("messages", "add_generation_prompt")
    batch = lines(*({key: vector[key] for key in keys} for vector in vectors))
    folder = shared_path("tokenizers", "chatglm3")
    done = run_program("tokenize", "chatglm3", "--tokenizer-dir", folder, "--batch", "-", env=env, stdin=batch)
    assert (done.returncode, done.stderr) == (0, "")
    said = parse(done.stdout)
    assert [line["ids"] for line in said] == [vector["ids"] for vector in vectors]
    assert [line["text"] for line in said] == [vector["text"] for vector in vectors]


def test_one_text(env: dict[str, str]) -> None:
    done = run_cli(*DEMO, "--text", "[bold]你好[/bold]", env=env)
    (said,) = parse(done.stdout)
    assert said["text"].strip() == "[bold]你好[/bold]"
    assert "你好" in done.stdout


def test_every_text_is_one_line_of_output(env: dict[str, str]) -> None:
    text = "a\nb\r\u2028c\u2029d\x85e\x0bf\x1cg"
    done = run_cli("tokenize", "chatglm3:demo", "--batch", "-", env=env, stdin=lines({"text": text}))
    assert len(done.stdout.splitlines()) == 1


def test_a_generation_prompt_is_there_unless_it_is_refused(env: dict[str, str]) -> None:
    batch = lines(HELLO, HELLO | {"add_generation_prompt": True}, HELLO | {"add_generation_prompt": False})
    default, with_it, without = (
        line["ids"] for line in parse(run_cli(*DEMO, "--batch", "-", env=env, stdin=batch).stdout)
    )
    assert default == with_it
    assert default[:-1] == without


def test_blank_lines_a_mark_and_foreign_fields_are_passed_over(env: dict[str, str]) -> None:
    batch = "\ufeff" + lines({"text": "a", "id": 7}) + "\n  \n" + lines({"text": ""})
    done = run_cli(*DEMO, "--batch", "-", env=env, stdin=batch)
    assert done.returncode == 0
    assert len(parse(done.stdout)) == 2
    assert parse(done.stdout)[1] == {"ids": [], "text": ""}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "object"),
        ("{}", 'either "text" or "messages"'),
        ('{"text": "a", "messages": []}', 'either "text" or "messages"'),
        ('{"text": 1}', "text: "),
        ('{"messages": "x"}', "messages: "),
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "messages.0.role: "),
        ('{"messages": [{"role": "user"}]}', "messages.0.content: "),
        ('{"messages": [{"role": "user", "content": "x", "typo": 1}]}', "messages.0.typo: "),
        ('{"messages": [{"role": "user", "content": "x", "metadata": "a\\nb"}]}', "metadata must be one line"),
        ('{"messages": [{"role": "user", "content": "x", "tools": [{}]}]}', "tools belong in a system message"),
        ('{"messages": [], "add_generation_prompt": "yes"}', "add_generation_prompt: "),
        ('{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "it is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_one_error_with_its_number(line: str | bytes, message: str, env: dict[str, str]) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    stdin = b'{"text": "good"}\n\n' + data + b'\n{"text": "not reached"}\n'
    done = run_cli(*DEMO, "--batch", "-", env=env, stdin=stdin)
    assert done.returncode == 2
    assert len(parse(done.stdout)) == 1
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: -, line 3: ")
    assert message in first
    assert len(rest) <= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "there is nothing to encode"),
        (["--text", "a", "--batch", "-"], 2, "exclude each other"),
        (["--batch", "nowhere.jsonl"], 2, "nowhere.jsonl cannot be read: No such file"),
        (["--text", "a", "--tokenizer-dir", "nowhere"], 4, "cannot be read"),
    ],
)
def test_other_mistakes(arguments: list[str], code: int, message: str, env: dict[str, str]) -> None:
    done = run_cli(*DEMO, *arguments, env=env)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_a_model_without_a_tokenizer_here(env: dict[str, str]) -> None:
    done = run_cli("tokenize", "chatglm3:6b", "--text", "a", env=env)
    assert done.returncode == 4
    assert "--tokenizer-dir" in done.stderr
