"""Keeping one conversation as it grows, and going on with one that was kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpudeploy.cli.chat_store import ChatStore, StoredChat, snapshot
from tpudeploy.cli.terminal import print_note, printable
from tpudeploy.errors import StorageError

if TYPE_CHECKING:
    from tpudeploy.cli.chat_settings import Value
    from tpudeploy.contracts.chat import Message
    from tpudeploy.runtime.conversation import Conversation


@dataclass(frozen=True)
class Resumed:
    """A conversation to go on with.

    :param chat_id: where it is kept; empty where it is to be kept anew.
    """

    chat_id: str
    chat: StoredChat

    def without_settings(self) -> Resumed:
        """The same, where its settings are in use already."""
        return Resumed(self.chat_id, self.chat.model_copy(update={"settings": {}}))


def resume_last(store: ChatStore, given: Collection[str]) -> Resumed:
    """The last conversation.

    :param given: names of settings that were given anew: they are not taken from it.
    :raises UsageError: nothing is kept.
    :raises StorageError: its file is damaged or cannot be read.
    """
    chat_id, last = store.last()
    settings = {name: value for name, value in last.settings.items() if name not in given}
    return Resumed(chat_id, last.model_copy(update={"settings": settings}))


class ChatKeeper:
    """Writes one conversation after each of its turns.

    :param store: the conversations of this home.
    :param enabled: whether anything is written.
    :param quiet: say nothing where the disk does not take it.
    """

    def __init__(self, store: ChatStore, *, enabled: bool = True, quiet: bool = False) -> None:
        self.store = store
        self.enabled = enabled
        self._quiet = quiet
        self._id = ""
        self._revision = ""

    def begin(self) -> None:
        """What comes is another conversation, in a file of its own."""
        self._id = self._revision = ""

    def resume(self, resumed: Resumed) -> None:
        """Go on in the file of a conversation."""
        self._id, self._revision = resumed.chat_id, resumed.chat.revision

    def keep(self, model: str, messages: Sequence[Message], settings: dict[str, Value]) -> bool:
        """Write the conversation as it is now. A disk that does not take it is told once and no reason to stop.

        :returns: whether it is kept.
        """
        if not self.enabled:
            return False
        if not self._id and not any(message.role == "user" for message in messages):
            return False  # nothing was said yet; but what was kept and is taken back must not stay on disk
        chat = snapshot(model, messages, settings)
        try:
            kept = self.store.keep(self._id, chat, seen=self._revision)
        except StorageError as error:
            if not self._quiet:
                print_note(f"(this conversation is not kept: {error})")
            self._quiet = True
            return False
        if self._id and kept != self._id:
            print_note("(another terminal went on with this conversation; what was said here is kept beside it)")
        self._id, self._revision, self._quiet = kept, chat.revision, False
        return True


def take_up(conversation: Conversation, chat: StoredChat, model: str) -> None:
    """Have ``conversation`` go on with what was kept, and say so.

    :param model: which one answers from now on.
    """
    conversation.reset()
    conversation.restore(chat.messages)
    count = f"{chat.turns} question{'s' if chat.turns != 1 else ''}"
    held = "" if chat.model == model else f", held with {printable(chat.model)} so far"
    print_note(f"(continues a conversation of {count}{held})")


def when(timestamp: float) -> str:
    """A time of this machine's clock, for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))
