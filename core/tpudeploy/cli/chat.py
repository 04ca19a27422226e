"""The interactive conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpudeploy.cli.answer import describe_call
from tpudeploy.cli.answer_view import answer_view
from tpudeploy.cli.chat_commands import COMMANDS, Leave, run_command
from tpudeploy.cli.chat_keeper import ChatKeeper, Resumed, take_up
from tpudeploy.cli.interrupts import interrupt_sets_flag
from tpudeploy.cli.line_reader import PROMPT, LineReader, line_reader
from tpudeploy.cli.outcome import print_error
from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import print_line, print_note, printable
from tpudeploy.cli.typeahead import keys_wait
from tpudeploy.contracts.chat import Message
from tpudeploy.errors import BackendError, TpuDeployError
from tpudeploy.settings import load_settings

if TYPE_CHECKING:
    from tpudeploy.cli.chat_settings import ChatSettings
    from tpudeploy.launch import LoadedModel, Target
    from tpudeploy.runtime.conversation import Conversation
    from tpudeploy.runtime.reply import Reply

HISTORY = "chat-history"


def chat(
    target: Target, settings: ChatSettings, keeper: ChatKeeper, *, system: str, resumed: Resumed | None = None
) -> None:
    """Load the model and converse until the user leaves.

    :param system: text of the system message; empty: that of ``resumed``, or none.
    :param resumed: what to go on with; its settings are in ``settings`` already.
    """
    target.require_text()  # a missing tokenizer is told before anything is compiled
    with BuildProgress() as line, keys_wait():
        line.prepare()
        model = target.load(max_new_tokens=settings.options.max_new_tokens, progress=line)
    history = load_settings().home / HISTORY if keeper.enabled else None
    reader = line_reader(history, {word: command.meaning for word, command in COMMANDS.items()})
    with model:
        print_line(f"{model.title}, {model.quant} on {model.backend.name}. /help for help, Ctrl-D to leave.")
        talk = Chat(model, model.conversation(system=system, options=settings.options), reader, settings, keeper)
        if resumed is not None:
            talk.take_up(resumed.without_settings())
            talk.conversation.system = system or talk.conversation.system
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
    ) -> None:
        self.model = model
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
                if text.strip():
                    self._take(text)
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                print_line("(Ctrl-D or /exit leaves)")

    def _take(self, text: str) -> None:
        """A command, or a message."""
        try:
            if not run_command(self, text):
                self.say(Message(role="user", content=text))
        except BackendError as error:
            self._tell_of_device(error)
        except TpuDeployError as error:
            print_error(error.message, error.hint)

    def say(self, question: Message) -> None:
        """A user's message, and all that is said until it is the user's turn again."""
        self.answer(question)

    def answer(self, *messages: Message) -> Reply:
        """The one place where messages get an answer: on the terminal, in the conversation, and on disk.

        :raises TpuDeployError: there is none; the conversation is as it was.
        """
        trimmed = self.conversation.stats.trimmed_turns
        view = answer_view(markdown=self.settings.markdown)
        with interrupt_sets_flag() as stopped, keys_wait():
            reply = self.conversation.send(*messages, cancelled=stopped.is_set)
            try:
                for piece in reply:
                    view.push(piece)
            except KeyboardInterrupt:
                reply.close()
            finally:
                view.close()
        self._remark(reply)
        if self.conversation.stats.trimmed_turns > trimmed:
            print_note("(the oldest turns no longer fit and are not sent; /reset forgets them all)")
        self.keep()
        return reply

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

    @staticmethod
    def _remark(reply: Reply) -> None:
        for call in reply.answer.tool_calls:
            print_line(describe_call(call))
        if reply.result.finish_reason == "cancelled":
            print_note("(stopped)")
        elif reply.result.finish_reason == "length":
            print_note("(ended by the length limit)")
        if reply.result.draft_problem:
            print_note(f"({reply.result.draft_problem})")
