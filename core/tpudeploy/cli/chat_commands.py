"""What a person may say to the program instead of the model: words that begin with a slash."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpudeploy.cli.answer import describe_result
from tpudeploy.cli.chat_keeper import Resumed, when
from tpudeploy.cli.chat_settings import SETTINGS, shown
from tpudeploy.cli.chat_store import check_name, snapshot
from tpudeploy.cli.line_reader import unquote
from tpudeploy.cli.terminal import print_facts, print_line, print_table, printable
from tpudeploy.errors import UsageError

if TYPE_CHECKING:
    from tpudeploy.cli.chat import Chat

_LONGEST_TITLE = 40
_KEYS = (
    ("Enter", "sends; Alt-Enter begins a new line"),
    ('"""', "begins a message of several lines, and ends it"),
    ("Up, Ctrl-R", "earlier messages, and a search in them"),
    ("Ctrl-C", "stops the answer; while typing, clears the line"),
    ("Ctrl-D", "leaves"),
)


class Leave(Exception):  # noqa: N818 - no error
    """The person leaves."""


@dataclass(frozen=True)
class Command:
    """A word with a slash.

    :param usage: what follows the word; empty where nothing may.
    """

    run: Callable[[Chat, str], None]
    meaning: str
    usage: str = ""


def run_command(chat: Chat, text: str) -> bool:
    """Do what ``text`` says, if it is a command: a slash, one word, and what belongs to it.

    :returns: whether it is one; ``/etc/hosts`` is none, nor is a message of several lines.
    :raises UsageError: no command of that name, or one that takes no more words.
    :raises Leave: the person leaves.
    """
    word, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if not (word[:1] == "/" and word[1:].isalpha()) or ("\n" in text and '"""' not in text):
        return False
    command = COMMANDS.get(_OTHER_WORDS.get(word, word))
    if command is None:
        guess = difflib.get_close_matches(word, COMMANDS, n=1)
        raise UsageError(
            f"There is no command {word}; /help lists them.{f' Did you mean {guess[0]}?' if guess else ''}",
            hint='A message that begins with a slash goes between """ and """.',
        )
    if rest and not command.usage:
        raise UsageError(f"{word} stands alone.", hint='A message that begins with a slash goes between """ and """.')
    command.run(chat, rest)
    return True


def _help(chat: Chat, rest: str) -> None:
    print_facts([(f"{word} {command.usage}".strip(), command.meaning) for word, command in COMMANDS.items()] + [*_KEYS])


def _reset(chat: Chat, rest: str) -> None:
    chat.conversation.reset()
    chat.keeper.begin()
    chat.name = ""
    print_line("The conversation is forgotten.")


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.conversation.system = "" if rest == '""' else unquote(rest)
        chat.keep()
    print_line(printable(chat.conversation.system) or "There is no system message.")


def _set(chat: Chat, rest: str) -> None:
    name, _, text = rest.partition(" ")
    if name and not text.strip():
        raise UsageError(f"/set {name} needs a value.", hint="/set alone lists what there is.")
    if name:
        chat.change_setting(name, text.strip())
        print_line(f"{name} is {shown(chat.settings.values[name])}.")
        return
    rows = [(name, shown(value), SETTINGS[name].meaning) for name, value in chat.settings.values.items()]
    names, values = (max(len(row[i]) for row in rows) for i in (0, 1))
    print_facts([(f"{name:<{names}}  {value:<{values}}", meaning) for name, value, meaning in rows])


def _stats(chat: Chat, rest: str) -> None:
    stats = chat.conversation.stats
    print_line(
        f"{stats.turns} answers, {stats.prompt_tokens} prompt tokens ({stats.reused_tokens} reused), "
        f"{stats.answer_tokens} answer tokens; {stats.context_tokens} of {stats.seq_length} tokens in use."
    )
    if stats.last is not None:
        print_line(f"Last answer: {describe_result(stats.last)}.")
    memory = chat.model.engine.session.memory()
    print_line(
        f"Device memory: {memory.weights_bytes / 1e6:.1f} MB weights, {memory.buffers_bytes / 1e6:.1f} MB buffers."
    )


def _undo(chat: Chat, rest: str) -> None:
    dropped = chat.conversation.drop_last_turn()
    if dropped is None:
        raise UsageError("there is no question to take back.")
    chat.keep()
    print_line(f"Taken back: {_title(dropped.content)}")


def _retry(chat: Chat, rest: str) -> None:
    before = chat.conversation.messages
    question = chat.conversation.drop_last_turn()
    if question is None:
        raise UsageError("there is no question to answer again.")
    left = len(chat.conversation.messages)
    try:
        chat.say(question.content)
    finally:
        if len(chat.conversation.messages) == left:  # no answer came of it: the one before stays
            chat.conversation.restore(before)


def _save(chat: Chat, rest: str) -> None:
    if not chat.conversation.messages:
        raise UsageError("there is nothing to save yet.")
    name = rest or chat.name or time.strftime("%Y%m%d-%H%M%S")
    check_name(name)
    now = snapshot(chat.model.model, chat.conversation.messages, chat.settings.stored)
    chat.keeper.store.save(name, now, replace=name == chat.name)
    chat.name = name
    print_line(f"Saved. /load {name} brings it back.")


def _load(chat: Chat, rest: str) -> None:
    if not rest:
        _list(chat, rest)
        return
    store = chat.keeper.store
    saved = store.is_saved(rest)  # then what is said from now on is kept beside it, until it is saved again
    chat.take_up(Resumed(chat_id="" if saved else rest, chat=store.load(rest)))
    chat.name = rest if saved else ""


def _list(chat: Chat, rest: str) -> None:
    entries = chat.keeper.store.entries()
    if not entries:
        print_line("No conversation is saved.")
        return
    rows = [
        (
            entry.name,
            "yes" if entry.saved else "",
            entry.chat.model if entry.chat else "",
            when(entry.modified),
            _title(entry.chat.title) if entry.chat else "(damaged)",
        )
        for entry in entries
    ]
    print_table(("name", "saved", "model", "changed", "begins with"), rows)


def _delete(chat: Chat, rest: str) -> None:
    if not rest:
        raise UsageError("/delete needs a name.", hint="/list shows them.")
    chat.keeper.store.delete(rest)
    if chat.name == rest:
        chat.name = ""
    print_line(f"{printable(rest)} is deleted.")


def _exit(chat: Chat, rest: str) -> None:
    raise Leave


def _title(text: str) -> str:
    words = printable(" ".join(text.split()))
    return words if len(words) <= _LONGEST_TITLE else f"{words[:_LONGEST_TITLE]}..."


COMMANDS: Mapping[str, Command] = {
    "/help": Command(_help, "this help"),
    "/reset": Command(_reset, "forget the conversation and begin another"),
    "/system": Command(_system, 'show or replace the system message; "" removes it', "[TEXT]"),
    "/set": Command(_set, "show settings, or change one; the value default puts it back", "[NAME VALUE]"),
    "/undo": Command(_undo, "take back the last question and its answer"),
    "/retry": Command(_retry, "answer the last question again"),
    "/stats": Command(_stats, "tokens and speed so far"),
    "/save": Command(_save, "keep the conversation under a name", "[NAME]"),
    "/load": Command(_load, "go on with a conversation that was kept", "[NAME]"),
    "/list": Command(_list, "the conversations that were kept"),
    "/delete": Command(_delete, "remove one of them", "NAME"),
    "/exit": Command(_exit, "leave"),
}
_OTHER_WORDS = {"/bye": "/exit", "/quit": "/exit", "/?": "/help", "/clear": "/reset"}
