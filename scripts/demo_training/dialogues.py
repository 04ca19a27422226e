"""The dialogues that the demo model learns: where they lie, and how ChatGLM3 reads their messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.contracts.chat import Message

DEMO_FOLDER = Path(__file__).parents[2] / "plugins/chatglm3/tpudeploy_chatglm3/demo"
DIALOGUES_FILE = DEMO_FOLDER / "dialogues.json"
CHECKPOINT_FOLDER = DEMO_FOLDER / "checkpoint"


@dataclass(frozen=True)
class Dialogue:
    """A named conversation whose assistant messages are the expected answers."""

    name: str
    messages: tuple[Message, ...]

    @property
    def question(self) -> str:
        """The first thing that the user says."""
        return next(message.content for message in self.messages if message.role == "user")

    @property
    def is_single_turn(self) -> bool:
        """Whether it is one question and one answer, with nothing before them."""
        return [message.role for message in self.messages] == ["user", "assistant"]


def load_dialogues(path: Path = DIALOGUES_FILE) -> list[Dialogue]:
    """Read the dialogues that ship with the ChatGLM3 plugin."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [
        Dialogue(entry["name"], tuple(Message.model_validate(item) for item in entry["messages"])) for entry in entries
    ]


def message_text(message: Message) -> str:
    """The content as ChatGLM3 reads it: a system message carries its tools as indented JSON."""
    if not message.tools:
        return message.content
    return message.content + "\n" + json.dumps(list(message.tools), indent=4, ensure_ascii=False)
