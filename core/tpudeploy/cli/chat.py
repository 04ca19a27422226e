"""The interactive conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpudeploy.cli.answer import describe_call
from tpudeploy.cli.answer_view import answer_view
from tpudeploy.cli.chat_commands import COMMANDS, Leave, run_command
from tpudeploy.cli.chat_keeper import ChatKeeper, Resumed, take_up
from tpudeploy.cli.interrupts import interrupt_sets_flag
from tpudeploy.cli.line_reader import PROMPT, LineReader, line_reader, unquote
from tpudeploy.cli.outcome import print_error
from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import print_line, print_note, printable
from tpudeploy.cli.tool_calls import answer_room, schemas
from tpudeploy.cli.typeahead import keys_wait
from tpudeploy.errors import BackendError, TpuDeployError
from tpudeploy.settings import load_settings

if TYPE_CHECKING:
    from tpudeploy.cli.chat_settings import ChatSettings
    from tpudeploy.cli.tool_calls import ToolSession
    from tpudeploy.launch import LoadedModel, Target
    from tpudeploy.runtime.conversation import Conversation
    from tpudeploy.runtime.reply import Reply
    from tpudeploy.runtime.writer import Cancelled
    from tpudeploy.tools.loop import ToolLoop

HISTORY = "chat-history"


def chat(
    target: Target,
    settings: ChatSettings,
    keeper: ChatKeeper,
    *,
    system: str,
    resumed: Resumed | None = None,
    tools: ToolSession | None = None,
) -> None:
    """Load the model and converse until the user leaves.

    :param system: text of the system message; empty: that of ``resumed``, or none.
    :param resumed: what to go on with; its settings are in ``settings`` already.
    """
    text = target.require_text()  # a missing tokenizer is told before anything is compiled
    head = len(text.prompt_ids("", system=system, tools=schemas(tools)))
    room = answer_room(settings.options.max_new_tokens, tools)
    with BuildProgress() as line, keys_wait():
        line.prepare()
        model = target.load(prompt_tokens=head, max_new_tokens=room, progress=line)
    history = load_settings().home / HISTORY if keeper.enabled else None
    reader = line_reader(history, {word: command.meaning for word, command in COMMANDS.items()})
    with model:
        print_line(f"{model.title}, {model.quant} on {model.backend.name}. /help for help, Ctrl-D to leave.")
        conversation = model.conversation(system=system, tools=schemas(tools), options=settings.options)
        talk = Chat(model, conversation, reader, settings, keeper, tools.loop(conversation) if tools else None)
        if resumed is not None:
            talk.take_up(resumed.without_settings())
            conversation.system = system or conversation.system
        talk.run()


class Chat:
    """One conversation at a terminal.

    :ivar name: under which it was saved or loaded last; empty for none.
    """

    def __init__(
        self,
        model: LoadedModel,
        conversation: Conversation,
        reader: LineReader,
        settings: ChatSettings,
        keeper: ChatKeeper,
        tools: ToolLoop | None = None,
    ) -> None:
        self.model = model
        self._tools = tools
        self.conversation = conversation
        self.settings = settings
        self.keeper = keeper
        self.name = ""
        self._reader = reader

    def run(self) -> None:
        """Read, answer, until Ctrl-D or ``/exit``."""
        while True:
            try:
                text = self._reader.read()
                if unquote(text).strip():
                    self._take(text)
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                print_line("(Ctrl-D or /exit leaves)")

    def _take(self, text: str) -> None:
        """A command, or a message."""
        try:
            if not run_command(self, text):
                self.say(unquote(text))
        except BackendError as error:
            self._tell_of_device(error)
        except TpuDeployError as error:
            print_error(error.message, error.hint)

    def say(self, text: str) -> None:
        """Say something as the user: the one place where answers are made, shown and kept.

        :raises TpuDeployError: there is no answer; the conversation is as it was.
        """
        before, trimmed = self.conversation.messages, self.conversation.stats.trimmed_turns
        try:
            with interrupt_sets_flag() as stopped:
                for reply in self._replies(text, stopped.is_set):
                    self._show(reply)
                    self._remark(reply)
        except KeyboardInterrupt:  # instead of an answer to the question whether a tool may run
            print_note("\n(stopped)")
        except TpuDeployError:
            if self.conversation.messages != before:
                self.conversation.restore(before)
            raise
        if self.conversation.stats.trimmed_turns > trimmed:
            print_note("(the oldest turns no longer fit and are not sent; /reset forgets them all)")
        self.keep()

    def _replies(self, text: str, cancelled: Cancelled) -> Iterator[Reply]:
        """One reply, or with tools as many as it takes."""
        if self._tools is not None:
            return self._tools.ask(text, cancelled=cancelled)
        return iter([self.conversation.ask(text, cancelled=cancelled)])

    def _show(self, reply: Reply) -> None:
        view = answer_view(markdown=self.settings.markdown)
        try:
            with keys_wait():
                for piece in reply:
                    view.push(piece)
        except KeyboardInterrupt:
            reply.close()
        finally:
            if reply.shown or not reply.answer.tool_calls:
                view.close()

    def keep(self) -> bool:
        """Write the conversation to disk, unless that was turned off. :returns: whether it is there."""
        return self.keeper.keep(self.model.model, self.conversation.messages, self.settings.stored)

    def change_setting(self, name: str, text: str) -> None:
        """Change a setting. :raises UsageError: it cannot be so; everything is as it was."""
        before = self.settings.values
        self.settings.set(name, text)
        try:
            self.conversation.options = self.model.with_stops(self.settings.options)
        except TpuDeployError:
            self.settings.restore(before)
            raise
        self.keeper.enabled = self.settings.store

    def take_up(self, resumed: Resumed) -> None:
        """Go on with a conversation that was kept, its settings included, and show how it ended."""
        take_up(self.conversation, resumed.chat, self.model.model)
        self.keeper.resume(resumed)
        for problem in self.settings.restore(resumed.chat.settings):
            print_note(f"({printable(problem)})")
        self.conversation.options = self.model.with_stops(self.settings.options)
        self._show_last_turn()

    def _show_last_turn(self) -> None:
        messages = self.conversation.messages
        start = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages))
        for message in messages[start:]:
            if message.role == "user":
                print_line(PROMPT + printable(message.content))
            elif message.role == "assistant" and not message.metadata:
                view = answer_view(markdown=self.settings.markdown)
                view.push(message.content)
                view.close()

    def _tell_of_device(self, error: BackendError) -> None:
        """An answer failed: go on, unless the device is lost."""
        try:
            self.model.engine.session.sync()
        except BackendError:
            kept = "The conversation is kept: --continue goes on with it." if self.keep() else ""
            raise BackendError(error.message, hint=f"{error.hint} {kept}".strip()) from error
        print_error(error.message, error.hint)

    def _remark(self, reply: Reply) -> None:
        for call in reply.answer.tool_calls if self._tools is None else ():
            print_line(describe_call(call))
        if reply.result.finish_reason == "cancelled":
            print_note("(stopped)")
        elif reply.result.finish_reason == "length":
            print_note("(ended by the length limit)")
        if reply.result.draft_problem:
            print_note(f"({reply.result.draft_problem})")
