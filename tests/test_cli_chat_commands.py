"""Commands of a conversation, and conversations that are gone on with: -c, /save, /load, and disks that refuse."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_support import Terminal, environment, run_program

PROMPT = ">>> "
MODEL = "chatglm3:demo"
HELLO = "I am chatglm3:demo, a very small demo model."


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo was compiled."""
    folder = tmp_path_factory.mktemp("home")
    assert run_program("run", MODEL, "--no-store", "Hello", env=environment(folder)).returncode == 0
    assert not (folder / "conversations").exists()
    return folder


@pytest.fixture
def home(compiled: Path, tmp_path: Path) -> Path:
    """A home that has the compiled demo and no conversation."""
    for name in ("bundles", "stages", "verified"):
        if (compiled / name).exists():
            (tmp_path / name).symlink_to(compiled / name)
    return tmp_path


class Person:
    """Somebody who types lines and reads what is said to each."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.greeting = terminal.expect(PROMPT)

    def say(self, text: str) -> str:
        self.terminal.type(f"{text}\n")
        return self.terminal.expect(PROMPT)

    def leave(self) -> None:
        self.terminal.type("\x04")
        assert self.terminal.wait() == 0
        assert "Traceback" not in self.terminal.seen


def sit_down(home: Path, *options: str, **variables: str) -> Terminal:
    return Terminal("run", *options, env=environment(home, **variables))


@pytest.fixture
def person(home: Path) -> Iterator[Person]:
    with sit_down(home, MODEL) as terminal:
        yield Person(terminal)


def kept(home: Path) -> list[dict[str, object]]:
    files = sorted((home / "conversations").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(file.read_text()) for file in files]


def said(home: Path) -> list[str]:
    """What the newest kept conversation holds, message by message."""
    messages = kept(home)[-1]["messages"]
    assert isinstance(messages, list)
    return [f"{message['role']}: {message['content']}" for message in messages]


def test_system_undo_and_retry(person: Person, home: Path) -> None:
    assert "There is no system message." in person.say("/system")
    assert "你是助手。" in person.say("/system 你是助手。")
    assert "there is no question" in person.say("/undo")
    assert "there is no question" in person.say("/retry")
    person.say("Hello")
    person.say("你好")
    assert [line.partition(":")[0] for line in said(home)] == ["system", "user", "assistant", "user", "assistant"]
    before = said(home)
    person.say("/retry")
    assert said(home) == before  # greedy: the same again
    assert "Taken back: 你好" in person.say("/undo")
    assert said(home) == before[:3]
    assert "no system message" in person.say('/system ""')
    assert said(home) == before[1:3]
    assert "needs a value" in person.say("/set top_k")
    assert "stands alone" in person.say("/stats now")
    assert "Did you mean /stats" in person.say("/stat")
    assert said(home) == before[1:3]  # none of these was taken for a message
    person.say('"""/etc"""')
    assert said(home)[-2] == "user: /etc"
    person.say("/reset")
    person.say("Hello")
    assert [len(chat["messages"]) for chat in kept(home)] == [4, 2]  # type: ignore[arg-type]
    person.leave()


def test_settings(person: Person, home: Path) -> None:
    shown = person.say("/set")
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "draft", "greedy", "markdown"):
        assert name in shown
    assert "error: temperature must be a number or none, not 'hot'." in person.say("/set temperature hot")
    assert "error: top_p must be over 0 and at most 1, not 3.0." in person.say("/set top_p 3")
    assert "Did you mean top_k?" in person.say("/set topk 3")
    assert "max_new_tokens is 3." in person.say("/set max_new_tokens 3")
    assert "ended by the length limit" in person.say("Hello")
    assert "max_new_tokens is none." in person.say("/set max_new_tokens default")
    assert HELLO in person.say("/retry")
    assert "store is off." in person.say("/set store off")
    person.say("你好")
    assert len(said(home)) == 2
    person.leave()


def test_saving_and_loading(person: Person, home: Path) -> None:
    assert "nothing to save" in person.say("/save x")
    assert "No conversation is saved." in person.say("/list")
    person.say("/set seed 7")
    person.say("Hello")
    assert "no name" in person.say("/save ../x")
    assert "/load 问候 brings it back" in person.say("/save 问候")
    person.say("你好")
    assert "Saved" in person.say("/save")  # the same name again
    person.say("/reset")
    person.say("/set seed none")
    person.say("What can you do?")
    assert "already" in person.say("/save 问候")
    shown = person.say("/list")
    assert "问候" in shown and "What can you do?" in shown and "damaged" not in shown
    loaded = person.say("/load 问候") + person.terminal.expect(PROMPT)  # it shows the last question and answer
    assert "2 questions" in loaded and "演示模型" in loaded
    assert "seed" in person.say("/set") and "7" in person.say("/set").partition("seed")[2].splitlines()[0]
    person.say("Hello")
    assert [line for line in said(home) if line.startswith("user")] == ["user: Hello", "user: 你好", "user: Hello"]
    assert "unknown conversation 'nothing'" in person.say("/load nothing")
    assert "is deleted" in person.say("/delete 问候")
    assert "unknown conversation" in person.say("/load 问候")
    person.leave()


def test_going_on_with_the_last_conversation(home: Path) -> None:
    env = environment(home)
    nothing = run_program("run", MODEL, "-c", "Hello", env=env)
    assert nothing.returncode == 2
    assert "there is no conversation to continue" in nothing.stderr
    assert run_program("run", MODEL, "--system", "规则", "Hello", env=env).returncode == 0
    once = run_program("run", "-c", "What can you do?", env=env)  # the model is the conversation's
    assert once.returncode == 0 and "Nothing else." in once.stdout
    assert said(home)[0] == "system: 规则" and len(said(home)) == 5
    with sit_down(home, MODEL, "-c", "--temperature", "0.5") as terminal:
        person = Person(terminal)
        assert "2 questions" in person.greeting
        shown = person.terminal.expect(PROMPT)
        assert shown.startswith("What can you do?\n") and "Nothing else." in shown
        assert "0.5" in person.say("/set").partition("temperature")[2].splitlines()[0]
        person.say("/set top_k 1")
        assert HELLO in person.say("Hello")
        person.leave()
    assert len(said(home)) == 7 and len(kept(home)) == 1
    settings = kept(home)[0]["settings"]
    assert isinstance(settings, dict) and (settings["temperature"], settings["top_k"]) == (0.5, 1)
    as_json = run_program("run", MODEL, "-c", "--json", "--greedy", "Hello", env=env)
    assert HELLO in json.loads(as_json.stdout)["text"] and len(said(home)) == 9
    assert run_program("run", MODEL, "--json", "你好", env=env).returncode == 0
    assert len(kept(home)) == 1  # what programs ask is not kept


def test_nothing_is_kept_where_it_was_turned_off(home: Path) -> None:
    assert run_program("run", MODEL, "Hello", env=environment(home, TPUDEPLOY_NO_STORE="1")).returncode == 0
    with sit_down(home, MODEL, "--no-store") as terminal:
        person = Person(terminal)
        person.say("Hello")
        person.leave()
    assert not (home / "conversations").exists() and not (home / "chat-history").exists()


def test_a_damaged_conversation_is_one_clear_error(home: Path) -> None:
    folder = home / "conversations"
    folder.mkdir()
    bad = folder / "20990101-000000-0000.json"
    bad.write_text('{"version": 1, "messages": "no"')
    for prompt in ((), ("Hello",)):
        done = run_program("run", MODEL, "-c", *prompt, env=environment(home))
        assert done.returncode == 8
        assert done.stderr.count("error:") == 1 and str(bad) in done.stderr and "Traceback" not in done.stderr
    with sit_down(home, MODEL) as terminal:
        person = Person(terminal)
        assert "(damaged)" in person.say("/list")
        assert "damaged" in person.say(f"/load {bad.stem}")
        assert HELLO in person.say("Hello")
        person.leave()


def test_a_disk_that_takes_nothing_costs_only_the_keeping(home: Path) -> None:
    (home / "conversations").write_text("a file where a folder should be: as good as a home that is only read")
    with sit_down(home, MODEL) as terminal:
        person = Person(terminal)
        assert "not kept" in person.say("Hello")
        assert "not kept" not in person.say("你好")
        assert "error:" in person.say("/save x")
        person.leave()
    done = run_program("run", MODEL, "Hello", env=environment(home))
    assert done.returncode == 0 and "not kept" not in done.stderr


def test_a_full_disk_costs_only_the_keeping(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))  # inherited by the program: no file grows beyond it
    try:
        with sit_down(home, MODEL) as terminal:
            person = Person(terminal)
            assert "not kept" not in person.say("Hello")
            assert "not kept" in person.say("请使用C++写一段冒泡排序算法。")
            assert HELLO in person.say("Hello")
            person.leave()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said(home)) == 2  # as it was before the disk was full
    assert not list(home.glob("conversations/.*.incomplete"))


def test_another_model_goes_on_and_says_so(home: Path) -> None:
    env = environment(home)
    assert run_program("run", MODEL, "Hello", env=env).returncode == 0
    other = run_program("run", "glm4:demo", "-c", "你好", env=env)
    assert other.returncode == 0, other.stderr
    assert "held with chatglm3:demo so far" in other.stderr and "glm4:demo" in other.stdout
    assert kept(home)[-1]["model"] == "glm4:demo" and len(said(home)) == 4
