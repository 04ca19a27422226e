"""The interactive conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tpudeploy.cli.answer import describe_call, describe_result, write_piece
from tpudeploy.cli.interrupts import interrupt_sets_flag
from tpudeploy.cli.line_reader import LineReader
from tpudeploy.cli.outcome import print_error
from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import print_line, print_note
from tpudeploy.errors import TpuDeployError
from tpudeploy.settings import load_settings

if TYPE_CHECKING:
    from tpudeploy.launch import LoadedModel, Target
    from tpudeploy.runtime.conversation import Conversation
    from tpudeploy.runtime.generator import GenerationOptions
    from tpudeploy.runtime.reply import Reply

HELP = '''/help    this help
/reset   forget the conversation
/stats   tokens and speed so far
/exit    leave; so does Ctrl-D
Ctrl-C   stop the answer
"""      begins a message of several lines, and ends it'''


def chat(target: Target, options: GenerationOptions, *, system: str) -> None:
    """Load the model and converse until the user leaves."""
    target.require_text()  # a missing tokenizer is told before anything is compiled
    with BuildProgress() as line:
        line.prepare()
        model = target.load(max_new_tokens=options.max_new_tokens, progress=line)
    reader = LineReader(load_settings().home / "chat-history")
    with model:
        print_line(f"{model.title}, {model.quant} on {model.backend.name}. /help for help, Ctrl-D to leave.")
        try:
            Chat(model, model.conversation(system=system, options=options), reader).run()
        finally:
            reader.close()


class Chat:
    """One conversation at a terminal."""

    def __init__(self, model: LoadedModel, conversation: Conversation, reader: LineReader) -> None:
        self._model = model
        self._conversation = conversation
        self._reader = reader
        self._commands = {"/help": self._help, "/reset": self._reset, "/stats": self._stats}

    def run(self) -> None:
        """Read, answer, until Ctrl-D or ``/exit``."""
        while True:
            try:
                text = self._reader.read()
                if text.strip() in ("/exit", "/bye", "/quit"):
                    return
                if text.strip():
                    self._take(text)
            except EOFError:
                print_line()
                return
            except KeyboardInterrupt:
                print_line("\n(Ctrl-D or /exit leaves)")

    def _take(self, text: str) -> None:
        """A command, or a message: ``/etc/hosts`` with more words is no command."""
        word = text.strip()
        if word in self._commands:
            self._commands[word]()
        elif word.startswith("/") and word[1:].isalpha():
            print_line(f"There is no command {word}; /help lists them.")
        else:
            try:
                self._answer(text)
            except TpuDeployError as error:
                print_error(error.message, error.hint)

    def _answer(self, text: str) -> None:
        trimmed = self._conversation.stats.trimmed_turns
        with interrupt_sets_flag() as stopped:
            reply = self._conversation.ask(text, cancelled=stopped.is_set)
            try:
                for piece in reply:
                    write_piece(piece)
            except KeyboardInterrupt:
                reply.close()
            finally:
                sys.stdout.write("\n")
                sys.stdout.flush()
        self._remark(reply)
        if self._conversation.stats.trimmed_turns > trimmed:
            print_note("(the oldest turns no longer fit and are not sent; /reset forgets them all)")

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

    def _help(self) -> None:
        print_line(HELP)

    def _reset(self) -> None:
        self._conversation.reset()
        print_line("The conversation is forgotten.")

    def _stats(self) -> None:
        stats = self._conversation.stats
        print_line(
            f"{stats.turns} answers, {stats.prompt_tokens} prompt tokens ({stats.reused_tokens} reused), "
            f"{stats.answer_tokens} answer tokens; {stats.context_tokens} of {stats.seq_length} tokens in use."
        )
        if stats.last is not None:
            print_line(f"Last answer: {describe_result(stats.last)}.")
        memory = self._model.engine.session.memory()
        print_line(
            f"Device memory: {memory.weights_bytes / 1e6:.1f} MB weights, {memory.buffers_bytes / 1e6:.1f} MB buffers."
        )
