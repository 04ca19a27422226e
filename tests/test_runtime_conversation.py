"""Conversations: what is sent, what is shown, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.byte_chat import STOP, ByteTemplate, ByteTokenizer, CallStream, PlainStream
from tests.torch_session import TorchSession, open_session, random_decoder, tiny_config

from tpudeploy.contracts.chat import Answer, AnswerStream, Message, ToolCall
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError, SequenceTooLongError, UsageError
from tpudeploy.graph.decoder import Decoder
from tpudeploy.runtime.conversation import Conversation
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.reply import Reply
from tpudeploy.runtime.sampling import SamplingOptions

torch.set_num_threads(1)
SEQ = 120


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(tiny_config(vocab_size=261, num_layers=1))


@pytest.fixture
def session(decoder: Decoder) -> TorchSession:
    # Its script has a token for each launch of the output layer, so that must take one token.
    plan = NetPlan(seq_length=SEQ, prefill=(Stage(new_tokens=16, cache_length=SEQ),), verify=())
    return open_session(decoder, plan)


@pytest.fixture
def engine(session: TorchSession) -> Engine:
    return Engine(session)


def converse(
    engine: Engine,
    *,
    system: str = "",
    stream: type[AnswerStream] = PlainStream,
    tools: Sequence[dict[str, object]] = (),
    max_new_tokens: int | None = None,
) -> Conversation:
    options = GenerationOptions(max_new_tokens=max_new_tokens)
    return Conversation(engine, ByteTokenizer(), ByteTemplate(stream), system=system, tools=tools, options=options)


def say(session: TorchSession, text: str, *, stop: bool = True) -> None:
    """Have the model answer ``text``."""
    session.script[:] = [*text.encode(), *([STOP] if stop else [])]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def cached_text(engine: Engine) -> str:
    return "".join(chr(token) if token < 256 else "#" for token in engine.cache.ids)


def test_turns_accumulate(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, system="S")
    say(session, "hello")
    reply = chat.ask("hi")
    assert list(reply) == list("hello")
    assert (reply.answer, reply.result.finish_reason) == (Answer(content="hello"), "stop")
    say(session, "yes")
    assert "".join(chat.ask("more")) == "yes"
    assert chat.messages == (
        Message(role="system", content="S"),
        user("hi"),
        assistant("hello"),
        user("more"),
        assistant("yes"),
    )
    assert cached_text(engine) == "#S#hi#hello#more#yes"
    stats = chat.stats
    assert (stats.turns, stats.answer_tokens, stats.trimmed_turns, stats.seq_length) == (2, 8, 0, SEQ)
    assert stats.last is not None and stats.last.prompt_tokens == len("#S#hi#hello#more#")
    assert stats.reused_tokens == len("#S#hi#hello")
    assert stats.context_tokens == len("#S#hi#hello#more#yes")


def test_split_characters_are_shown_whole(engine: Engine, session: TorchSession) -> None:
    text = "é 你好 👍🏽!"
    say(session, text)
    pieces = list(converse(engine).ask("x"))
    assert pieces == list(text)


def test_a_character_cut_by_the_length_limit(engine: Engine, session: TorchSession) -> None:
    say(session, "ok你", stop=False)
    reply = converse(engine, max_new_tokens=4).ask("x")
    assert "".join(reply) == "ok\N{REPLACEMENT CHARACTER}"
    assert reply.result.finish_reason == "length"


def test_text_held_back_by_the_parser_is_shown_in_the_end(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, stream=CallStream)
    say(session, "one\ntwo")
    assert list(chat.ask("x")) == ["one\n", "two"]
    assert chat.messages[-1] == assistant("one\ntwo")


def test_tool_calls(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, stream=CallStream, tools=[{"name": "now"}])
    assert list(chat.messages) == [Message(role="system", content="", tools=({"name": "now"},))]
    say(session, "look:\nnow()")
    reply = chat.ask("time?")
    assert "".join(reply) == "look:\n"
    assert reply.answer.tool_call == ToolCall(name="now", arguments={}, raw="now()")
    say(session, "noon")
    assert "".join(chat.send(Message(role="observation", content="12:00"))) == "noon"
    assert chat.messages[1:] == (
        user("time?"),
        assistant("look:\n"),
        Message(role="assistant", content="now()", metadata="now"),
        Message(role="observation", content="12:00"),
        assistant("noon"),
    )


def test_several_calls_and_their_results(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, stream=CallStream, tools=[{"name": "now"}])
    say(session, "now()here()")
    reply = chat.ask("q")
    assert "".join(reply) == ""
    assert [call.name for call in reply.answer.tool_calls] == ["now", "here"]
    say(session, "noon at home")
    results = [Message(role="observation", content=text) for text in ("12:00", "home")]
    assert "".join(chat.send(*results)) == "noon at home"
    assert chat.messages[2:] == (
        Message(role="assistant", content="now()", metadata="now"),
        Message(role="assistant", content="here()", metadata="here"),
        *results,
        assistant("noon at home"),
    )
    assert chat.stats.turns == 2


def test_a_format_that_forces_no_tools_says_so(engine: Engine) -> None:
    with pytest.raises(UsageError, match="forces no tools"):
        converse(engine).send(user("q"), forced_tool="now")


class OldTemplate(ByteTemplate):
    """One of a plugin that knows nothing of forced tools."""

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:  # type: ignore[override]
        return super().encode(messages, add_generation_prompt=add_generation_prompt)

    def answer_stream(self) -> AnswerStream:  # type: ignore[override]
        return super().answer_stream()


def test_a_template_that_knows_no_forced_tools_works(engine: Engine, session: TorchSession) -> None:
    say(session, "hello")
    assert "".join(Conversation(engine, ByteTokenizer(), OldTemplate()).ask("hi")) == "hello"
    call = OldTemplate().tool_call_message("f", {"城": [1, None]})
    assert call == Message(role="assistant", content='{"城": [1, null]}', metadata="f")


def turn(number: int) -> tuple[str, str]:
    return f"q{number}".ljust(9, "."), f"a{number}".ljust(9, ".")


def test_the_oldest_turns_are_left_out(engine: Engine, session: TorchSession) -> None:
    """A turn is 20 tokens here; the room for an answer, and for turns to come, a quarter of 120 each."""
    chat = converse(engine, system="rules")
    # 121 - 30 less the system message's 6 and the new question's 11 leave room for three turns of 20; once a turn must
    # go, two stay.
    for number, earlier in enumerate([0, 1, 2, 3, 2, 3, 2, 3]):
        question, answer = turn(number)
        say(session, answer)
        reply = chat.ask(question)
        assert "".join(reply) == answer
        sent = cached_text(engine)
        assert sent.startswith(f"#rules#q{number - earlier}") and sent.endswith(f"{question}#{answer}")
        assert sent.count("#q") == earlier + 1
        assert chat.stats.trimmed_turns == number - earlier
        # What was sent before is never computed again, the system message not even where turns are left out.
        kept = len("#rules#q") if reply.trimmed_turns else len(sent) - len(f"#{question}#{answer}")
        assert reply.result.reused_tokens == (kept if number else 0)
    assert len(chat.messages) == 17  # nothing is lost
    assert chat.stats.context_tokens == engine.cache.length <= SEQ


@pytest.mark.parametrize(("length", "trimmed"), [(85, 0), (86, 1)])
def test_a_turn_is_left_out_just_when_it_must_be(
    engine: Engine, session: TorchSession, length: int, trimmed: int
) -> None:
    """``#a#b#``, the question and ``#`` may be 91 tokens, for an answer of 30 of which the last is not cached."""
    chat = converse(engine)
    say(session, "b")
    list(chat.ask("a"))
    say(session, "w" * 40, stop=False)
    reply = chat.ask("z" * length)
    assert reply.trimmed_turns == trimmed
    assert len("".join(reply)) == (30 if trimmed == 0 else 120 - (length + 2) + 1)


def test_a_long_message_leaves_out_every_turn_but_its_own(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, system="rules")
    for number in range(3):
        say(session, turn(number)[1])
        list(chat.ask(turn(number)[0]))
    say(session, "fine")
    assert "".join(chat.ask("z" * 105)) == "fine"
    assert cached_text(engine) == f"#rules#{'z' * 105}#fine"
    say(session, "again", stop=False)
    with pytest.raises(SequenceTooLongError, match=r"128 tokens, .* 120"):
        chat.ask("y" * 120)
    assert chat.messages[-1] == assistant("fine")
    say(session, "back")
    assert "".join(chat.ask("short")) == "back"
    assert chat.stats.trimmed_turns == 4


def test_a_tool_result_keeps_its_question(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, stream=CallStream)
    for question, answer in ((turn(0)[0], turn(0)[1]), ("what" * 5, "now()")):
        say(session, answer)
        list(chat.ask(question))
    say(session, "ok")
    list(chat.send(Message(role="observation", content="r" * 50)))
    assert cached_text(engine).startswith(f"#{'what' * 5}#nownow()#rrr")
    assert chat.stats.trimmed_turns == 1


def test_an_answer_runs_into_the_length_limit(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine)
    say(session, "w" * 200, stop=False)
    reply = chat.ask("h" * 50)
    assert "".join(reply) == "w" * (SEQ - 52 + 1)
    assert reply.result.finish_reason == "length"
    session.script.clear()
    say(session, "go on")
    assert "".join(chat.ask("next")) == "go on"
    assert chat.stats.trimmed_turns == 1


@pytest.mark.parametrize("how", ["close", "callable", "interrupt", "another question", "reset"])
def test_a_cancelled_answer_stays_as_far_as_it_was_shown(engine: Engine, session: TorchSession, how: str) -> None:
    chat = converse(engine)
    say(session, "one")
    list(chat.ask("first"))
    say(session, "two three")
    stop = False
    reply = chat.ask("second", cancelled=lambda: stop)
    shown = "".join(next(reply) for _ in range(3))
    if how == "close":
        reply.close()
        reply.close()
    elif how == "callable":
        stop = True
        assert list(reply) == []
    elif how == "interrupt":
        session.before_launch = interrupt
        with pytest.raises(KeyboardInterrupt):
            list(reply)
        session.before_launch = ignore
    elif how == "reset":
        chat.reset()
        assert (len(chat.messages), chat.stats.turns) == (0, 0)
        return
    say(session, "four")
    assert "".join(chat.ask("third")) == "four"
    assert (shown, reply.shown, reply.answer) == ("two", "two", Answer(content="two"))
    assert reply.result.finish_reason == "cancelled"
    assert chat.messages[2:] == (user("second"), assistant("two"), user("third"), assistant("four"))
    assert list(reply) == []


def interrupt(name: str) -> None:
    raise KeyboardInterrupt(name)


def fail(name: str) -> None:
    raise BackendError(f"{name} failed.")


def ignore(name: str) -> None:
    """Let the net run."""


def test_a_cancelled_answer_of_which_nothing_was_shown_leaves_no_trace(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, stream=CallStream)
    say(session, "one")
    list(chat.ask("first"))
    before, stats = chat.messages, chat.stats
    say(session, "never shown")
    polls = iter([False, False, False, True])
    assert list(chat.ask("second", cancelled=lambda: next(polls))) == []
    assert list(chat.ask("second", cancelled=lambda: True)) == []
    chat.ask("never iterated")
    session.before_launch = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("third"))
    session.before_launch = fail
    with pytest.raises(BackendError):
        list(chat.ask("fourth"))
    session.before_launch = ignore
    assert (chat.messages, chat.stats) == (before, stats)
    say(session, "well")
    assert "".join(chat.ask("fifth")) == "well"


def test_a_failure_in_the_middle_drops_the_turn(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine)
    say(session, "some words")
    reply = chat.ask("x")
    next(reply)
    session.before_launch = fail
    with pytest.raises(BackendError):
        next(reply)
    reply.close()
    assert chat.messages == ()


def test_reset_keeps_the_system_message_and_its_rows(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, system="a long system message")
    say(session, "one")
    list(chat.ask("first"))
    chat.reset()
    say(session, "two")
    reply = chat.ask("fresh")
    assert "".join(reply) == "two"
    assert reply.result.reused_tokens == len("#a long system message#f")
    assert chat.messages == (Message(role="system", content="a long system message"), user("fresh"), assistant("two"))


def test_the_last_turn_is_dropped(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, system="S")
    assert chat.drop_last_turn() is None
    for question, answer in (("first", "one"), ("second", "two")):
        say(session, answer)
        list(chat.ask(question))
    assert chat.drop_last_turn() == user("second")
    assert chat.messages == (Message(role="system", content="S"), user("first"), assistant("one"))
    assert chat.stats.turns == 2  # what it cost was spent
    say(session, "three")
    reply = chat.ask("third")
    assert "".join(reply) == "three"
    assert cached_text(engine) == "#S#first#one#third#three"
    assert reply.result.reused_tokens == len("#S#first#one#")


def test_dropping_a_turn_drops_what_its_tools_said(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, stream=CallStream)
    say(session, "now()")
    list(chat.ask("time?"))
    say(session, "noon")
    list(chat.send(Message(role="observation", content="12:00")))
    assert chat.drop_last_turn() == user("time?")
    assert chat.messages == () and chat.drop_last_turn() is None


def test_turns_that_were_left_out_are_sent_again_when_there_is_room(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine)
    say(session, "one")
    list(chat.ask("first"))
    say(session, "two")
    list(chat.ask("z" * 110))
    assert chat.stats.trimmed_turns == 1
    assert chat.drop_last_turn() == user("z" * 110)
    assert chat.stats.trimmed_turns == 0
    say(session, "three")
    list(chat.ask("third"))
    assert cached_text(engine) == "#first#one#third#three"


def test_a_system_message_is_replaced(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine, system="old")
    say(session, "one")
    list(chat.ask("first"))
    chat.system = "new"
    assert (chat.system, chat.messages[0]) == ("new", Message(role="system", content="new"))
    say(session, "two")
    list(chat.ask("second"))
    assert cached_text(engine) == "#new#first#one#second#two"
    chat.system = ""
    assert chat.system == "" and chat.messages[0] == user("first")
    tools = converse(engine, system="old", tools=[{"name": "now"}])
    tools.system = ""
    assert tools.messages == (Message(role="system", content="", tools=({"name": "now"},)),)


@pytest.mark.parametrize("system", ["", "S"])
def test_messages_are_restored(engine: Engine, session: TorchSession, system: str) -> None:
    head = [Message(role="system", content=system)] if system else []
    history = [*head, user("first"), assistant("one"), user("second"), assistant("two")]
    chat = converse(engine, system="another")
    say(session, "never kept")
    list(chat.ask("gone"))
    chat.restore(history)
    assert chat.messages == tuple(history) and chat.system == system
    say(session, "three")
    list(chat.ask("third"))
    assert cached_text(engine) == f"{'#S' if system else ''}#first#one#second#two#third#three"
    with pytest.raises(UsageError, match="first"):
        chat.restore([user("x"), Message(role="system", content="late")])
    assert len(chat.messages) == len(history) + 2  # as it was
    chat.restore([])
    assert chat.messages == () and chat.system == ""


def test_a_history_that_is_too_long_is_sent_as_far_as_it_fits(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine)
    turns = [message for n in range(10) for message in (user(turn(n)[0]), assistant(turn(n)[1]))]
    chat.restore(turns)
    say(session, "ok")
    assert "".join(chat.ask("q")) == "ok"
    assert len(chat.messages) == 22 and 0 < chat.stats.trimmed_turns < 10


def test_options_are_replaced(engine: Engine, session: TorchSession) -> None:
    chat = converse(engine)
    chat.options = GenerationOptions(max_new_tokens=2)
    say(session, "long answer")
    assert "".join(chat.ask("x")) == "lo"
    with pytest.raises(UsageError):
        chat.options = GenerationOptions(sampling=SamplingOptions(logit_bias={100_000: 1.0}))
    assert chat.options.max_new_tokens == 2


def test_a_reply_without_a_conversation(engine: Engine, session: TorchSession) -> None:
    """What a server does, which is handed the whole history each time."""
    say(session, "hello")
    template = ByteTemplate()
    options = GenerationOptions(stop_ids=template.stop_ids)
    reply = Reply(generate(engine, template.encode([user("hi")]), options), ByteTokenizer(), template)
    assert reply.shown == "" and "".join(reply) == "hello" == reply.shown
    reply.close()
    assert reply.result.finish_reason == "stop"


def test_which_text_a_token_brought(engine: Engine, session: TorchSession) -> None:
    """Tokens that complete no character bring none; what is held back comes with the token that settles it."""
    say(session, "h€\nx€")
    reply = converse(engine, stream=CallStream).ask("hi")
    steps = list(reply.tokens())
    brought = [step.text for step in steps]
    assert brought == ["", "", "", "", "h€\n", "", "", "", "", "x€"]
    assert [step.event.token_id for step in steps if step.event] == list("h€\nx€".encode())
    assert [step.event is None for step in steps] == [False] * 9 + [True]
    assert reply.answer.content == reply.shown == "h€\nx€"


def test_tokens_and_pieces_are_one_iteration(engine: Engine, session: TorchSession) -> None:
    say(session, "hello")
    reply = converse(engine).ask("hi")
    assert next(reply) == "h"
    assert next(reply.tokens()).text == "e"
    assert "".join(reply) == "llo"
    assert list(reply.tokens()) == []
    assert reply.answer.content == "hello"


def test_the_demo_model_talks() -> None:
    """The demo's own weights, tokenizer and template over the engine, against the plainest decoding there is."""
    from tpudeploy.checkpoint.reader import Checkpoint
    from tpudeploy.checkpoint.weights import ModelWeights
    from tpudeploy.graph.reference import greedy, load_decoder
    from tpudeploy_chatglm3.adapter import ChatGLM3

    folder = Path(__file__).parents[1] / "plugins/chatglm3/tpudeploy_chatglm3/demo/checkpoint"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the demo checkpoint is not in this tree")
    adapter, checkpoint = ChatGLM3(), Checkpoint(folder)
    config = adapter.read_config(checkpoint.config)
    demo = load_decoder(ModelWeights(checkpoint, config, adapter.weight_table(config)))
    tokenizer = adapter.load_tokenizer(folder, config)
    template = adapter.chat_template(tokenizer)
    options = GenerationOptions(max_new_tokens=24)
    engine = Engine(open_session(demo, NetPlan(seq_length=256)))
    chat = Conversation(engine, tokenizer, template, options=options)
    for question in ("你好", "What can you do?"):
        prompt = template.encode([*chat.messages, user(question)])
        expected = greedy(demo, prompt, 24)
        stops = [index for index, token in enumerate(expected) if token in template.stop_ids]
        expected = expected[: stops[0]] if stops else expected
        reply = chat.ask(question)
        text = "".join(reply)
        assert reply.result.token_ids == tuple(expected)
        assert text == reply.answer.content == tokenizer.decode(expected).strip()
    assert chat.stats.reused_tokens > 0
