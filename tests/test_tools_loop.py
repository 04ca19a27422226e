"""The loop of calls and results: what runs, what the model is told, and where it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event
from typing import Any

import pytest
import torch
from tests.byte_chat import STOP, ByteTemplate, ByteTokenizer, PlainStream
from tests.torch_session import TorchSession, open_session, random_decoder, tiny_config

from tpudeploy.contracts.chat import Answer, Message, ToolCall
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import SequenceTooLongError
from tpudeploy.runtime.conversation import Conversation
from tpudeploy.runtime.engine import Engine
from tpudeploy.tools.function import ToolFunction
from tpudeploy.tools.loop import Attendant, Outcome, Permission, Status, ToolLoop
from tpudeploy.tools.toolbox import Toolbox

torch.set_num_threads(1)
SEQ = 1600


class Calls(PlainStream):
    """An answer ``name=JSON`` on each of its lines is calls; anything else is text that is shown at its end."""

    def push(self, text: str) -> str:
        super().push(text)
        return ""

    def finish(self) -> Answer:
        said = super().finish().content
        if "=" not in said:
            return Answer(content=said)
        calls = [line.partition("=") for line in said.split("\n")]
        return Answer(content="", tool_calls=tuple(_call(name, raw) for name, _, raw in calls))


def _call(name: str, raw: str) -> ToolCall:
    try:
        return ToolCall(name=name, arguments=json.loads(raw), raw=raw)
    except ValueError:
        return ToolCall(name=name, arguments=None, raw=raw)


class Person(Attendant):
    """Allows what a test says, and remembers what it was told."""

    def __init__(self, permission: Permission | BaseException = Permission.YES) -> None:
        self.permission = permission
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.told: list[Outcome] = []
        self.gave_up = 0
        self.inside = 0

    def permit(self, function: ToolFunction, arguments: dict[str, Any]) -> Permission:
        self.asked.append((function.name, arguments))
        if isinstance(self.permission, BaseException):
            raise self.permission
        return self.permission

    def running(self) -> AbstractContextManager[object]:
        self.inside += 1
        return nullcontext()

    def tell(self, outcome: Outcome) -> None:
        self.told.append(outcome)

    def give_up(self, rounds: int) -> None:
        self.gave_up = rounds


@pytest.fixture(scope="module")
def session() -> TorchSession:
    plan = NetPlan(seq_length=SEQ, prefill=(Stage(new_tokens=64, cache_length=SEQ),), verify=())
    return open_session(random_decoder(tiny_config(vocab_size=261, num_layers=1, seq_length=SEQ)), plan)


def tools(**functions: Callable[..., object]) -> Toolbox:
    return Toolbox([ToolFunction.of(name, function, f"{name}:1") for name, function in functions.items()])


def loop_of(session: TorchSession, toolbox: Toolbox, person: Person, *, max_rounds: int = 8) -> ToolLoop:
    template = ByteTemplate(Calls)
    conversation = Conversation(Engine(session), ByteTokenizer(), template, tools=toolbox.schemas)
    return ToolLoop(conversation, toolbox, person, max_rounds=max_rounds)


def script(session: TorchSession, *answers: str) -> None:
    session.script[:] = [token for answer in answers for token in (*answer.encode(), STOP)]


def finish(loop: ToolLoop, question: str = "q") -> list[str]:
    return ["".join(reply) for reply in loop.ask(question)]


def sent(loop: ToolLoop) -> list[str]:
    """What the model was told of calls."""
    return [message.content for message in loop._conversation.messages if message.role == "observation"]


def double(x: int) -> int:
    return 2 * x


def test_question_call_result_answer(session: TorchSession) -> None:
    person = Person()
    loop = loop_of(session, tools(double=double), person)
    script(session, 'double={"x": 4}', "It is 8.")
    assert finish(loop) == ["", "It is 8."]
    assert person.asked == [("double", {"x": 4})]
    assert sent(loop) == ["8"]
    assert (loop.outcomes, loop.pending, person.inside) == (person.told, (), 1)
    assert loop.outcomes[0].as_dict() == {
        "name": "double",
        "arguments": {"x": 4},
        "raw": '{"x": 4}',
        "round": 1,
        "status": "ran",
        "result": "8",
    }
    assert loop._conversation.messages[-1] == Message(role="assistant", content="It is 8.")


def test_an_answer_without_calls_asks_nobody(session: TorchSession) -> None:
    person = Person()
    loop = loop_of(session, tools(double=double), person)
    script(session, "Hello.")
    assert finish(loop) == ["Hello."]
    assert (person.asked, loop.outcomes) == ([], [])


def fail() -> None:
    raise LookupError("no such\nthing")


def leave() -> None:
    raise SystemExit(2)


def hang() -> None:
    raise KeyboardInterrupt


class Mute(Exception):  # noqa: N818 - no matter
    def __str__(self) -> str:
        raise ValueError


def mute() -> None:
    raise Mute


def cancelled() -> None:
    raise asyncio.CancelledError("enough")  # no Exception


def halved() -> None:
    raise FileNotFoundError("caf\udce9")


def unspeakable() -> bytes:
    return b"\xff"


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ('missing={"x": 1}', Status.UNKNOWN, "There is no such tool. There are: double, fail"),
        ("double={x: 1}", Status.MALFORMED, "could not be read"),
        ("double={}", Status.INVALID, "x: Field required"),
        ('double={"x": "y"}', Status.INVALID, "x: Input should be a valid integer"),
        ("fail={}", Status.FAILED, "LookupError: no such\nthing"),
        ("leave={}", Status.FAILED, "SystemExit: 2"),
        ("hang={}", Status.INTERRUPTED, "The user stopped this call."),
        ("unspeakable={}", Status.FAILED, "utf-8"),
        ("mute={}", Status.FAILED, "Mute"),
        ("cancelled={}", Status.FAILED, "CancelledError: enough"),
        ("halved={}", Status.FAILED, "FileNotFoundError: caf\\udce9"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(session: TorchSession, said: str, status: Status, told: str) -> None:
    person = Person()
    functions = (double, fail, leave, hang, unspeakable, mute, cancelled, halved)
    toolbox = tools(**{function.__name__: function for function in functions})
    loop = loop_of(session, toolbox, person)
    script(session, said, "Sorry.")
    assert finish(loop) == ["", "Sorry."]
    assert [outcome.status for outcome in person.told] == [status]
    (result,) = sent(loop)
    assert told in json.loads(result)["error"]
    assert "Traceback" not in result and __file__ not in result
    assert bool(person.asked) == (status in (Status.FAILED, Status.INTERRUPTED))


def test_what_is_not_allowed_does_not_run(session: TorchSession) -> None:
    ran = []
    person = Person(Permission.NO)
    loop = loop_of(session, tools(note=lambda: ran.append(1)), person)
    script(session, "note={}", "As you like.")
    assert finish(loop) == ["", "As you like."]
    assert (ran, person.told[0].status, person.inside) == ([], Status.DECLINED, 0)
    assert "did not allow" in sent(loop)[0]


def test_where_nobody_can_be_asked_the_calls_are_the_answer(session: TorchSession) -> None:
    person = Person(Permission.NOBODY)
    loop = loop_of(session, tools(double=double), person)
    script(session, 'double={"x": 1}\ndouble={"x": 2}')
    assert finish(loop) == [""]
    assert [outcome.call.arguments for outcome in loop.pending] == [{"x": 1}, {"x": 2}]
    assert len(person.asked) == 1
    assert "result" not in loop.pending[0].as_dict()
    script(session, "Later.")
    assert finish(loop, "go on") == ["Later."]
    assert [message.role for message in loop._conversation.messages[1:]] == [
        "user",
        "assistant",
        "assistant",
        "observation",
        "observation",
        "user",
        "assistant",
    ]


def test_several_calls_run_in_order_and_their_results_go_together(session: TorchSession) -> None:
    loop = loop_of(session, tools(double=double), Person())
    script(session, 'double={"x": 1}\nmissing={}\ndouble={"x": 3}', "Done.")
    assert finish(loop) == ["", "Done."]
    assert [outcome.status for outcome in loop.outcomes] == [Status.RAN, Status.UNKNOWN, Status.RAN]
    assert [sent(loop)[0], sent(loop)[2]] == ["2", "6"]


def test_rounds_are_limited(session: TorchSession) -> None:
    person = Person()
    loop = loop_of(session, tools(double=double), person, max_rounds=2)
    script(session, *['double={"x": 1}'] * 5)
    assert finish(loop) == ["", "", ""]
    assert [outcome.status for outcome in loop.outcomes] == [Status.RAN, Status.RAN, Status.NOT_RUN]
    assert (person.gave_up, len(person.asked), len(loop.pending)) == (2, 2, 1)
    assert [outcome.round for outcome in loop.outcomes] == [1, 2, 3]


def test_an_interruption_of_the_question_leaves_no_call_without_a_result(session: TorchSession) -> None:
    loop = loop_of(session, tools(double=double), Person(KeyboardInterrupt()))
    script(session, 'double={"x": 1}\ndouble={"x": 2}')
    with pytest.raises(KeyboardInterrupt):
        finish(loop)
    assert len(sent(loop)) == 2


def test_the_programs_end_is_not_a_tools_failure(session: TorchSession) -> None:
    def end() -> None:
        raise SystemExit(143)

    loop = loop_of(session, tools(end=end), Person())
    script(session, "end={}")
    with pytest.raises(SystemExit):
        finish(loop)


def test_a_cancelled_answer_runs_nothing(session: TorchSession) -> None:
    person = Person()
    loop = loop_of(session, tools(double=double), person)
    script(session, 'double={"x": 1}')
    polls = iter([False] * 6 + [True] * 50)
    assert ["".join(reply) for reply in loop.ask("q", cancelled=lambda: next(polls))] == [""]
    assert person.asked == []


def test_a_long_result_is_cut_to_what_fits(session: TorchSession) -> None:
    loop = loop_of(session, tools(long=lambda: "好" * 5000), Person())
    script(session, "long={}", "Read.")
    assert finish(loop) == ["", "Read."]
    (result,) = sent(loop)
    assert result.startswith("好好") and result.endswith("left out]")
    assert len(result.encode()) < SEQ
    assert loop.outcomes[0].result == result


def test_a_conversation_that_holds_no_result_is_an_error(session: TorchSession) -> None:
    loop = loop_of(session, tools(long=lambda: "x" * 5000), Person())
    script(session, "long={}", "Read.")
    head = len(ByteTemplate().encode(loop._conversation.messages))
    with pytest.raises(SequenceTooLongError):
        finish(loop, "q" * (SEQ - head - 40))


def test_ctrl_c_at_the_very_end_of_a_call_runs_nothing(session: TorchSession) -> None:
    person = Person()
    loop = loop_of(session, tools(double=double), person)
    script(session, 'double={"x": 1}')
    stopped = Event()
    for reply in loop.ask("q", cancelled=stopped.is_set):
        list(reply)
        stopped.set()
    assert (person.asked, len(loop.pending), len(sent(loop))) == ([], 1, 1)
