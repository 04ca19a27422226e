"""An editor for messages, by prompt_toolkit: several lines, history, search, completion of commands.

Imported only where a person types: it takes a tenth of a second.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterable, Mapping
from os.path import commonprefix
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output

from tpudeploy.cli.line_history import LineHistory
from tpudeploy.cli.line_reader import CONTINUATION, PROMPT, LineReader, clean, is_open

_MENU_ROWS = 6


class LineEditor(LineReader):
    """Enter sends, Alt-Enter begins a line; what is pasted stays one message.

    :param history: a file that keeps what was typed; None keeps nothing.
    :param commands: what is completed, each with its meaning.
    """

    def __init__(self, history: Path | None, commands: Mapping[str, str]) -> None:
        output = Vt100_Output.from_pty(sys.stdout)
        # It asks the terminal where the cursor is; an answer that comes late would be taken for typed text.
        output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            history=_FileHistory(LineHistory(history)),
            completer=_CommandCompleter(commands),
            complete_while_typing=Condition(self._is_command),
            reserve_space_for_menu=_MENU_ROWS,
            multiline=True,
            enable_suspend=True,
            prompt_continuation=lambda _width, _line, wraps: "" if wraps else CONTINUATION,
            key_bindings=_bindings(commands),
            output=output,
        )

    def read(self) -> str:
        """See :meth:`LineReader.read`."""
        before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
        try:
            return clean(self._session.prompt(PROMPT))
        except SystemExit:
            # SIGTERM may come at any instruction, also where prompt_toolkit has not yet noted what it must undo.
            output = self._session.output
            output.disable_bracketed_paste()
            output.enable_autowrap()
            output.show_cursor()
            output.flush()
            if before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
            raise

    def _is_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


def _bindings(commands: Iterable[str]) -> KeyBindings:
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not searching the history, which has keys of its own

    @bindings.add("enter", filter=typing)
    @bindings.add("c-j", filter=typing)  # Enter, pressed before the editor was there
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("tab", filter=typing)
    def complete(event: KeyPressEvent) -> None:
        # At once: prompt_toolkit's own completion comes too late for an Enter that follows it.
        buffer = event.current_buffer
        typed = buffer.document.text_before_cursor
        common = commonprefix([word for word in commands if word.startswith(typed)])  # noqa: RUF071 - words, no paths
        if typed.startswith("/") and len(common) > len(typed):
            buffer.insert_text(common[len(typed) :])
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion()

    @bindings.add("c-c", filter=typing)
    @bindings.add("<sigint>", filter=typing)
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


class _CommandCompleter(Completer):
    """The first word of a message that begins with a slash."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """See prompt_toolkit."""
        typed = document.text_before_cursor
        if typed.startswith("/"):
            for command, meaning in self._commands.items():
                if command.startswith(typed):
                    yield Completion(command, start_position=-len(typed), display_meta=meaning)


class _FileHistory(History):
    def __init__(self, lines: LineHistory) -> None:
        super().__init__()
        self._lines = lines

    def load_history_strings(self) -> Iterable[str]:
        """Newest first, as prompt_toolkit wants it."""
        return reversed(self._lines.load())

    def store_string(self, string: str) -> None:
        """Keep what was sent."""
        self._lines.add(clean(string))
