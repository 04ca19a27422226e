"""A conversation: messages that the model sees as far as they fit, and replies that stream.

When history leaves too little room for an answer, its oldest turns are no longer sent; they stay in
:attr:`Conversation.messages`. What follows a turn that is left out must be computed anew, so more are left out than the
next answer needs: room is made for the turns to come as well, and most turns cost only their own tokens. The system
message and the newest turn are always sent. A turn is a user's message and all that follows it up to the next. A reply
that is cancelled stays as far as it was shown; one of which nothing was shown, or that failed, leaves the conversation
as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpudeploy.contracts.chat import Answer, ChatTemplate, Message, Tokenizer
from tpudeploy.errors import UsageError
from tpudeploy.runtime.generator import (
    DEFAULT_OPTIONS,
    GenerationOptions,
    GenerationResult,
    check_choice,
    generate,
    never,
)
from tpudeploy.runtime.reply import Reply
from tpudeploy.runtime.token_engine import TokenEngine
from tpudeploy.runtime.writer import Cancelled

ANSWER_ROOM = 256
"""Tokens to leave for an answer of no stated length, where a quarter of the sequence length is not less."""
TRIM_SLACK = 4
"""Where turns are left out, one part in this many of the sequence length is freed beyond the room for an answer."""


@dataclass(frozen=True)
class ConversationStats:
    """Sums over the replies that a conversation kept.

    :param turns: replies.
    :param prompt_tokens: tokens of their prompts.
    :param reused_tokens: those of them that the cache held.
    :param answer_tokens: tokens generated.
    :param trimmed_turns: turns that are no longer sent.
    :param context_tokens: prompt and answer of the last reply.
    :param seq_length: what the bundle can hold.
    :param last: the last reply's result.
    """

    seq_length: int
    turns: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    answer_tokens: int = 0
    trimmed_turns: int = 0
    context_tokens: int = 0
    last: GenerationResult | None = None


class Conversation:
    """Several turns over one engine. One reply at a time: asking again closes the reply before.

    :param system: text of the system message; empty for none.
    :param tools: function schemas to offer the model.
    :param options: how to generate; the template's stop ids are added.
    """

    def __init__(
        self,
        engine: TokenEngine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        system: str = "",
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._options = options
        self._tools = tuple(tools)
        self._head = self._head_of(system)
        self._messages: list[Message] = []
        self._first = 0  # of those that are sent
        self._reply: Reply | None = None
        self._stats = ConversationStats(seq_length=engine.seq_length)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Every message, those that are no longer sent included."""
        return (*self._head, *self._messages)

    @property
    def stats(self) -> ConversationStats:
        """What it has cost so far."""
        return self._stats

    @property
    def system(self) -> str:
        """Text of the system message; empty for none. Setting it leaves the turns as they are."""
        return self._head[0].content if self._head else ""

    @system.setter
    def system(self, text: str) -> None:
        self._close_reply()
        self._head = self._head_of(text)

    @property
    def options(self) -> GenerationOptions:
        """How to generate. Setting it raises UsageError where the nets cannot: see :func:`check_choice`."""
        return self._options

    @options.setter
    def options(self, options: GenerationOptions) -> None:
        check_choice(self._engine, options)
        self._options = options

    def restore(self, messages: Sequence[Message]) -> None:
        """Go on from these messages instead, as :attr:`messages` gave them; tools and :attr:`stats` stay.

        :param messages: the first may be a system message; without one there is none from now on.
        :raises UsageError: a system message that is not the first.
        """
        head, turns = list(messages[:1]), list(messages[1:])
        if head and head[0].role != "system":
            head, turns = [], list(messages)
        if any(message.role == "system" for message in turns):
            raise UsageError("a system message may only be the first of a conversation.")
        self._close_reply()
        self._head = self._head_of(head[0].content if head else "")
        self._messages = turns
        self._send_all()

    def drop_last_turn(self) -> Message | None:
        """Forget the newest turn: a user's message and all that follows it. What it cost stays in :attr:`stats`.

        :returns: the user's message; None where there is no turn.
        """
        self._close_reply()
        starts = [index for index, message in enumerate(self._messages) if message.role == "user"]
        if not starts:
            return None
        dropped = self._messages[starts[-1]]
        del self._messages[starts[-1] :]
        if self._first >= len(self._messages):  # none is left of what was sent: there is room for older turns again
            self._send_all()
        return dropped

    def reset(self) -> None:
        """Forget every message but the system's, and close a reply that is open."""
        self._close_reply()
        self._messages.clear()
        self._first = 0
        self._stats = ConversationStats(seq_length=self._engine.seq_length)

    def ask(self, text: str, *, options: GenerationOptions | None = None, cancelled: Cancelled = never) -> Reply:
        """Say something as the user; see :meth:`send`."""
        return self.send(Message(role="user", content=text), options=options, cancelled=cancelled)

    def send(
        self,
        *messages: Message,
        options: GenerationOptions | None = None,
        forced_tool: str | None = None,
        cancelled: Cancelled = never,
    ) -> Reply:
        """Send messages, for example tools' results (role ``"observation"``); the reply streams as it is iterated.

        The messages and the answer become part of the conversation when the reply ends.

        :param messages: one, or the results of all calls of the answer before.
        :param options: instead of the conversation's own.
        :param forced_tool: a tool that the model must call.
        :raises SequenceTooLongError: the message does not fit, even with every earlier turn left out.
        :raises UsageError: a message that the model's format cannot express.
        """
        self._close_reply()
        options = options or self._options
        options = replace(options, stop_ids=options.stop_ids | self._template.stop_ids)
        first, prompt_ids = self._fit(messages, options, forced_tool)
        generation = generate(self._engine, prompt_ids, options, cancelled=cancelled)

        def keep(reply: Reply) -> None:
            self._keep(messages, reply, first)

        trimmed = sum(sent.role == "user" for sent in self._messages[self._first : first])
        self._reply = Reply(
            generation,
            self._tokenizer,
            self._template,
            forced_tool=forced_tool,
            trimmed_turns=trimmed,
            on_end=keep,
        )
        return self._reply

    def add(self, *messages: Message) -> None:
        """Put messages in without asking for a reply, for example results of calls that nobody wants commented."""
        self._close_reply()
        self._messages += messages

    def _fit(
        self, sent_now: Sequence[Message], options: GenerationOptions, forced_tool: str | None
    ) -> tuple[int, list[int]]:
        """Leave out no turn while there is room; otherwise so many of the oldest that turns to come find room too.

        :returns: index of the first message to send, and the prompt.
        """
        seq_length = self._engine.seq_length
        room = min(options.max_new_tokens or ANSWER_ROOM, max(1, seq_length // 4))
        slack = seq_length // TRIM_SLACK
        messages = [*self._messages, *sent_now]
        # A family that forces no tools need not know the keyword.
        forced: dict[str, Any] = {} if forced_tool is None else {"forced_tool": forced_tool}
        starts = [index for index, sent in enumerate(messages) if sent.role == "user" and index > self._first]
        fitting: list[tuple[int, list[int]]] = []
        for first in (self._first, *starts):
            ids = self._template.encode([*self._head, *messages[first:]], **forced)
            free = seq_length + 1 - len(ids) - room
            if free >= (0 if first == self._first else slack):
                return first, ids
            if free >= 0:
                fitting.append((first, ids))
        # Long messages: no choice leaves that much, so what fits is kept as far as it fits.
        return fitting[0] if fitting else (first, ids)

    def _keep(self, messages: Sequence[Message], reply: Reply, first: int) -> None:
        result = reply.result
        if result.finish_reason == "cancelled" and not reply.shown:
            return
        self._messages += [*messages, *_as_messages(reply.answer)]
        self._first = first
        stats = self._stats
        self._stats = replace(
            stats,
            turns=stats.turns + 1,
            prompt_tokens=stats.prompt_tokens + result.prompt_tokens,
            reused_tokens=stats.reused_tokens + result.reused_tokens,
            answer_tokens=stats.answer_tokens + len(result.token_ids),
            trimmed_turns=stats.trimmed_turns + reply.trimmed_turns,
            context_tokens=result.prompt_tokens + len(result.token_ids),
            last=result,
        )

    def _send_all(self) -> None:
        self._first = 0
        self._stats = replace(self._stats, trimmed_turns=0)

    def _head_of(self, system: str) -> tuple[Message, ...]:
        has_system = bool(system or self._tools)
        return (Message(role="system", content=system, tools=self._tools),) if has_system else ()

    def _close_reply(self) -> None:
        if self._reply is not None:
            self._reply.close()
            self._reply = None


def _as_messages(answer: Answer) -> list[Message]:
    """The answer as history: its text, then its calls with the tools' names where the model's format has them."""
    calls = [Message(role="assistant", content=call.raw, metadata=call.name) for call in answer.tool_calls]
    text = [Message(role="assistant", content=answer.content)] if answer.content or not calls else []
    return [*text, *calls]
