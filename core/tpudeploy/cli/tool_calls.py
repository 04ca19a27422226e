"""Tools at a terminal: what is called is shown and asked for, what came of it is told, all on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpudeploy.cli.interrupts import interrupt_raises
from tpudeploy.cli.terminal import escaped, print_note
from tpudeploy.cli.typeahead import forget_keys
from tpudeploy.tools.loop import Attendant, Outcome, Permission, Status, ToolLoop

if TYPE_CHECKING:
    from tpudeploy.runtime.conversation import Conversation
    from tpudeploy.tools.function import ToolFunction
    from tpudeploy.tools.toolbox import Toolbox

ROOM = 256
"""Tokens to have in store for calls, results and the answer to them, where the length is ours to choose."""
_SHOWN_RESULT = 300
_OUTCOMES = {
    Status.RAN: "{name}: {result}",
    Status.FAILED: "{name} failed: {result}",
    Status.INTERRUPTED: "{name} was stopped",
    Status.DECLINED: "{name} was not run",
    Status.MALFORMED: "the model called {name} in a way that cannot be read: {raw}",
    Status.INVALID: "the model called {name} with wrong arguments: {result}",
    Status.UNKNOWN: "the model called {name}, which is no tool here",
}


@dataclass(frozen=True)
class ToolSession:
    """The tools of one run of the program.

    :param yes: run them without asking.
    """

    toolbox: Toolbox
    yes: bool
    max_rounds: int

    def loop(self, conversation: Conversation) -> ToolLoop:
        """The loop of calls around a conversation to which the tools are offered."""
        return ToolLoop(conversation, self.toolbox, ToolTerminal(yes=self.yes), max_rounds=self.max_rounds)


def open_tools(files: Sequence[Path] | None, *, yes: bool, max_rounds: int, prompt_ids: str) -> ToolSession | None:
    """Load the files of ``--tools``; None without one.

    :raises UsageError: a file that cannot be used, or nothing that tools could be offered with.
    """
    if not files:
        return None
    from tpudeploy.errors import UsageError
    from tpudeploy.tools.toolbox import load_tools

    if prompt_ids:
        raise UsageError("--prompt-ids excludes --tools: ids are continued as they are.")
    return ToolSession(load_tools(files), yes, max_rounds)


def schemas(tools: ToolSession | None) -> tuple[dict[str, Any], ...]:
    """What a model is told of the tools; nothing without any."""
    return tools.toolbox.schemas if tools else ()


def answer_room(max_new_tokens: int | None, tools: ToolSession | None) -> int | None:
    """Tokens to have in store for an answer, with what tools say before it; None where that is not known."""
    from tpudeploy.launch.lengths import ANSWER_ROOM_TOKENS

    return (max_new_tokens or ANSWER_ROOM_TOKENS) + ROOM if tools else max_new_tokens


class ToolTerminal(Attendant):
    """Asks a person before each call, unless told to run them all."""

    def __init__(self, *, yes: bool) -> None:
        self._yes = yes
        self._always: set[str] = set()

    def permit(self, function: ToolFunction, arguments: dict[str, Any]) -> Permission:
        """Show the call and ask y/N/always; Ctrl-D is no.

        :raises KeyboardInterrupt: Ctrl-C instead of an answer.
        """
        call = describe(function.name, arguments)
        if self._yes or function.name in self._always:
            print_note(f"[{call}]")
            return Permission.YES
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            print_note(f"{call} was asked for, and nobody is here to allow it: --yes runs tools without asking.")
            return Permission.NOBODY
        with interrupt_raises():
            forget_keys()
            sys.stderr.write(f"Run {call}? [y/N/always] ")
            sys.stderr.flush()
            typed = sys.stdin.readline()
            if not typed.endswith("\n"):
                print_note("")  # Ctrl-D leaves the cursor behind the question
        answer = typed.strip().lower()
        if answer in ("a", "always"):
            self._always.add(function.name)
        return Permission.YES if answer in ("y", "yes", "a", "always") else Permission.NO

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ctrl-C stops the tool alone; what it prints is no part of the answer."""
        with interrupt_raises(), redirect_stdout(sys.stderr):
            yield

    def tell(self, outcome: Outcome) -> None:
        """One line of what became of a call; why calls are not run was said before."""
        if outcome.status is Status.NOT_RUN:
            return
        call = outcome.call
        result = outcome.result if len(outcome.result) <= _SHOWN_RESULT else f"{outcome.result[:_SHOWN_RESULT]}..."
        words = {"name": call.name, "raw": call.raw[:_SHOWN_RESULT], "result": result}
        print_note(f"[{escaped(_OUTCOMES[outcome.status].format_map(words))}]")

    def give_up(self, rounds: int) -> None:
        """Say how to let the model go on."""
        print_note(f"(the model asked for tools {rounds} times without an answer; --max-tool-rounds allows more)")


def describe(name: str, arguments: Mapping[str, Any]) -> str:
    """``get_weather {"city": "北京"}``, on one line, with nothing in it that a terminal obeys or hides."""
    return escaped(f"{name} {json.dumps(arguments, ensure_ascii=False)}")
