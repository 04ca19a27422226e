"""``tpudeploy run --tools``: the whole dialogue with both demos, the question before a call, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_support import Done, Terminal, environment, run_cli, run_program
from tpudeploy.contracts.chat import Message
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.plugins import registry
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.settings import Settings
from tpudeploy.tools.toolbox import load_tools

EXAMPLES = Path(__file__).parent.parent / "examples"
ENGLISH, CHINESE = EXAMPLES / "weather.py", EXAMPLES / "weather_zh.py"
LONDON = "What is the weather in London today?"
PARIS = "Is it cold in Paris today?"
ASKS = "[y/N/always] "

TROUBLE = '''
import time

def get_weather(city: str, days: int = 1) -> str:
    """Look up the weather of a city

    Args:
        city: The city
        days: Number of days
    """
    print("printed by the tool")
    if city == "London":
        raise LookupError("no such city \\x1b[31m")
    print("waiting", flush=True)
    time.sleep(600)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which both demos were compiled once, for conversations with tools."""
    folder = tmp_path_factory.mktemp("home")
    for model in ("chatglm3", "glm4"):
        done = run_program("run", f"{model}:demo", "--tools", ENGLISH, "--yes", LONDON, env=environment(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "London today: rain, 15 degrees.\n"
    return folder


def run(home: Path, *arguments: str | Path, model: str = "chatglm3:demo") -> Done:
    return run_cli("run", model, "--backend", "cpu", *arguments, env=environment(home))


def as_json(home: Path, *arguments: str | Path, model: str = "chatglm3:demo") -> dict[str, Any]:
    done = run(home, *arguments, "--json", model=model)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.parametrize("model", ["chatglm3:demo", "glm4:demo"])
@pytest.mark.parametrize(
    ("file", "question", "city", "answer"),
    [
        (ENGLISH, PARIS, "Paris", "Paris today: cloudy, 12 degrees."),
        (CHINESE, "北京今天天气怎么样？", "北京", "北京今天晴，气温 26 度。"),
        (CHINESE, "上海天气怎么样？", "上海", "上海今天小雨，气温 19 度。"),
    ],
)
def test_question_call_result_answer(home: Path, model: str, file: Path, question: str, city: str, answer: str) -> None:
    said = as_json(home, "--tools", file, "--yes", question, model=model)
    assert said["text"] == answer
    assert "tool_call" not in said
    (call,) = said["tool_calls"]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": city, "days": 1})
    assert (call["status"], call["round"]) == ("ran", 1)
    assert json.loads(call["result"])["city"] == city


def test_calls_and_results_are_notes_beside_the_answer(home: Path) -> None:
    done = run(home, "--tools", ENGLISH, "--yes", LONDON)
    assert done.stdout == "London today: rain, 15 degrees.\n"
    assert '[get_weather {"city": "London", "days": 1}]' in done.stderr
    assert '[get_weather: {"city": "London", "weather": "rain", "temperature": 15}]' in done.stderr


def test_without_a_terminal_nothing_runs_unless_told_to(home: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "tools.py"
    source = ENGLISH.read_text(encoding="utf-8")
    file.write_text(source.replace("    weather, temp", f"    open({str(marker)!r}, 'w').close()\n    weather, temp"))
    done = run(home, "--tools", file, LONDON)
    assert done.returncode == 0
    assert done.stdout == '[calls get_weather with {"city": "London", "days": 1}]\n'
    assert "--yes runs tools without asking" in done.stderr
    said = as_json(home, "--tools", file, LONDON)
    assert said["tool_call"]["arguments"] == {"city": "London", "days": 1}
    assert said["tool_calls"][0]["status"] == "not run"
    assert not marker.exists()
    assert run(home, "--tools", file, "--yes", LONDON).returncode == 0
    assert marker.exists()


def test_an_answer_without_a_call_is_as_without_tools(home: Path) -> None:
    said = as_json(home, "--tools", ENGLISH, "Hello")
    assert said["text"].startswith("Hello! I am chatglm3:demo")
    assert said["tool_calls"] == []


def test_a_tool_that_fails_is_told_and_prints_nothing_into_the_answer(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "trouble.py"
    file.write_text(TROUBLE, encoding="utf-8")
    done = run(home, "--tools", file, "--yes", "--json", LONDON)
    (call,) = json.loads(done.stdout)["tool_calls"]
    assert call["status"] == "failed"
    assert json.loads(call["result"]) == {"error": "LookupError: no such city \x1b[31m"}
    assert "printed by the tool" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_used_is_one_error(home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("\ndef f(x): ...\n", encoding="utf-8")
    for arguments, error in (
        (("--tools", broken, "q"), f"error: {broken}:2: f: the parameter x has no type.\n"),
        (("--tools", tmp_path / "none.py", "q"), f"error: {tmp_path / 'none.py'} is not there.\n"),
        (("--tools", ENGLISH, "--tools", ENGLISH, "q"), f"error: {ENGLISH}:8: there is a tool get_weather in"),
        (("--tools", ENGLISH, "--prompt-ids", "1,2"), "error: --prompt-ids excludes --tools"),
    ):
        done = run(home, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(error), done.stderr
        assert done.stdout == ""


def test_a_person_is_asked_and_may_say_no_or_always(home: Path) -> None:
    with Terminal("run", "chatglm3:demo", "--backend", "cpu", "--tools", ENGLISH, env=environment(home)) as chat:
        chat.expect(">>> ")
        chat.type(f"{LONDON}\n")
        assert 'Run get_weather {"city": "London", "days": 1}?' in chat.expect(ASKS)
        chat.type("\n")
        chat.expect("[get_weather was not run]")
        chat.expect(">>> ")
        chat.type("/reset\n")
        chat.expect(">>> ")
        chat.type(f"{LONDON}\n")
        chat.expect(ASKS)
        chat.type("always\n")
        chat.expect("London today: rain, 15 degrees.")
        chat.expect(">>> ")
        chat.type("/reset\n")
        chat.expect(">>> ")
        chat.type(f"{PARIS}\n")
        assert ASKS not in chat.expect("Paris today: cloudy, 12 degrees.")
        chat.expect(">>> ")
        chat.type("\x04")
        assert chat.wait() == 0


@pytest.mark.parametrize("keys", ["\x04", "\udcff\n"], ids=["Ctrl-D", "no UTF-8"])
def test_no_answer_to_the_question_is_no(home: Path, keys: str) -> None:
    env = environment(home, PYTHONIOENCODING="utf-8:strict")
    with Terminal("run", "chatglm3:demo", "--backend", "cpu", "--tools", ENGLISH, LONDON, env=env) as once:
        once.expect(ASKS)
        once.type(keys)
        once.expect("\n[get_weather was not run]\n")
        assert once.wait() == 0


def test_ctrl_c_stops_the_tool_and_the_conversation_goes_on(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "trouble.py"
    file.write_text(TROUBLE, encoding="utf-8")
    with Terminal("run", "chatglm3:demo", "--backend", "cpu", "--tools", file, env=environment(home)) as chat:
        chat.expect(">>> ")
        chat.type(f"{PARIS}\n")
        chat.expect(ASKS)
        chat.type("y\n")
        chat.expect("waiting")
        chat.type("\x03")
        chat.expect("[get_weather was stopped]", timeout_s=10)
        chat.expect(">>> ")
        chat.type(f"{PARIS}\n")
        chat.expect(ASKS)
        chat.type("\x03")
        chat.expect("(stopped)", timeout_s=10)
        chat.expect(">>> ")
        chat.type("\x04")
        assert chat.wait() == 0
    assert "Traceback" not in chat.seen


def test_ctrl_c_at_the_question_ends_a_single_question(home: Path) -> None:
    with Terminal(
        "run", "chatglm3:demo", "--backend", "cpu", "--tools", ENGLISH, LONDON, env=environment(home)
    ) as once:
        once.expect(ASKS)
        once.type("\x03")
        assert once.wait() == 130
    assert "Traceback" not in once.seen


@pytest.mark.parametrize("name", ["chatglm3:demo", "glm4:demo"])
def test_a_forced_tool_is_called_whatever_was_said(home: Path, name: str) -> None:
    """As a client does with ``tool_choice``: the prompt begins the call, and the model fills in the arguments."""
    request = LaunchRequest(model=name, backend="cpu", seq_length=1024)
    target = open_target(request, Settings(home=home), registry())
    tools = load_tools([ENGLISH]).schemas
    with target.load() as model:
        conversation = model.conversation(tools=tools, options=GenerationOptions())
        for question in (PARIS, "Hello"):
            conversation.reset()
            reply = conversation.send(Message(role="user", content=question), forced_tool="get_weather")
            assert "".join(reply) == ""
            call = reply.answer.tool_call
            assert call is not None and call.arguments is not None
            assert (call.name, call.arguments["days"]) == ("get_weather", 1)
            assert set(call.arguments) == {"city", "days"}
            if question == PARIS:
                assert call.arguments["city"] == "Paris"
        again = conversation.send(Message(role="observation", content="{}"))
        list(again)
        # The call in history is what the model wrote: most of it need not be computed again.
        assert again.result.reused_tokens > again.result.prompt_tokens - 60
