"""A conversation whose device fails: an answer that could not be, and a device that is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from tests.byte_chat import STOP, ByteTemplate, ByteTokenizer
from tests.torch_session import TorchSession, open_session, random_decoder, tiny_config

from tpudeploy.cli.chat import Chat
from tpudeploy.cli.chat_keeper import ChatKeeper
from tpudeploy.cli.chat_settings import ChatSettings
from tpudeploy.cli.chat_store import ChatStore
from tpudeploy.cli.line_reader import LineReader
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError
from tpudeploy.launch import LoadedModel
from tpudeploy.plugins import registry
from tpudeploy.runtime.conversation import Conversation
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions


class Lines(LineReader):
    """A person who types these lines, each once something was done to the session."""

    def __init__(self, session: TorchSession, lines: Sequence[str]) -> None:
        self._session = session
        self._lines = list(lines)

    def read(self) -> str:
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        self._session.script[:] = [*b"fine", STOP]
        self._session.before_launch = fail if line == "fail" else ignore
        return line


@dataclass
class Model:
    """As much of a loaded model as a conversation asks for."""

    engine: Engine
    model: str = "tiny:1"

    @staticmethod
    def with_stops(options: GenerationOptions) -> GenerationOptions:
        return options


failed: list[str] = []


def fail(name: str) -> None:
    failed.append(name)
    raise BackendError(f"device 0 refused to run net {name}.", hint="Reset it.")


def ignore(name: str) -> None:
    """Let the net run."""


def converse(
    home: Path,
    lines: Sequence[str],
    *,
    lost: bool,
    monkeypatch: pytest.MonkeyPatch,
    reader: type[Lines] = Lines,
) -> Conversation:
    plan = NetPlan(seq_length=120, prefill=(Stage(new_tokens=16, cache_length=120),), verify=())
    session = open_session(random_decoder(tiny_config(vocab_size=261, num_layers=1)), plan)
    failed.clear()
    if lost:
        sync = session.sync

        def check() -> None:
            if failed:
                raise BackendError("device 0 failed earlier.")
            sync()

        monkeypatch.setattr(session, "sync", check)
    engine = Engine(session)
    settings = ChatSettings(registry(), markdown=False)
    conversation = Conversation(engine, ByteTokenizer(), ByteTemplate(), options=settings.options)
    model = cast(LoadedModel, Model(engine))
    keeper = ChatKeeper(ChatStore(home))
    Chat(model, conversation, reader(session, lines), settings, keeper).run()
    return conversation


def test_an_answer_that_could_not_be_leaves_the_conversation_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["hello", "fail", "/retry", "again"]
    conversation = converse(tmp_path, lines, lost=False, monkeypatch=monkeypatch)
    assert [message.content for message in conversation.messages] == ["hello", "fine", "again", "fine"]
    said = capsys.readouterr()
    assert said.out.split() == ["fine"] * 3
    assert said.err.count("error: device 0 refused to run net") == 1
    assert ChatStore(tmp_path).last()[1].messages == conversation.messages


def test_a_lost_device_ends_with_one_error_and_the_conversation_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match="device 0 refused to run net") as caught:
        converse(tmp_path, ["hello", "fail", "never read"], lost=True, monkeypatch=monkeypatch)
    assert caught.value.hint == "Reset it. The conversation is kept: --continue goes on with it."
    assert "error" not in capsys.readouterr().err  # whoever runs the command tells it, once
    assert [message.content for message in ChatStore(tmp_path).last()[1].messages] == ["hello", "fine"]


class FailingRetry(Lines):
    """The device fails when an answer is to be made again."""

    def read(self) -> str:
        line = super().read()
        self._session.before_launch = fail if line == "/retry" else ignore
        return line


def test_retry_keeps_the_answer_where_no_other_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["hello", "/retry"]
    conversation = converse(tmp_path, lines, lost=False, monkeypatch=monkeypatch, reader=FailingRetry)
    assert [message.content for message in conversation.messages] == ["hello", "fine"]
