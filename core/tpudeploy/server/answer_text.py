"""From the tokens of an answer to the text that a client is shown, in a worker's thread."""

from __future__ import annotations

from collections.abc import Iterator

from tpudeploy.contracts.chat import Tokenizer, ToolCall
from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.runtime.generator import Generation, GenerationResult
from tpudeploy.runtime.reply import Reply, TokenText
from tpudeploy.server.service import FinishReason, Piece, Question
from tpudeploy.server.stop_text import StopText
from tpudeploy.server.token_texts import TokenTexts


class AnswerText:
    """Iterate :meth:`pieces` to the end, then look at the rest.

    :ivar tool_calls: what the model wants to be called.
    """

    def __init__(self, model: LoadedModel, generation: Generation, question: Question) -> None:
        text = model.require_text()
        self.tool_calls: tuple[ToolCall, ...] = ()
        self._generation = generation
        self._question = question
        self._tokenizer = text.tokenizer
        self._stop = StopText(question.stop)
        self._tokens = TokenTexts(text.tokenizer) if question.options.logprobs is not None else None
        self._shown = 0
        self._reply: Reply | None = None
        if question.is_chat:
            self._reply = Reply(generation, text.tokenizer, text.template, forced_tool=question.forced_tool)

    @property
    def result(self) -> GenerationResult:
        """Tokens, counts and times."""
        return self._generation.result

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None where it was cancelled."""
        if self._stop.hit:
            return "stop"
        if self.result.finish_reason == "cancelled":
            return None
        # A call that a limit has cut is none that could be run; clients tell it by "length".
        return "tool_calls" if self.tool_calls and self.result.finish_reason == "stop" else self.result.finish_reason

    def pieces(self) -> Iterator[Piece]:
        """Text as it comes; nothing more is generated after a stop string."""
        steps = self._reply.tokens() if self._reply is not None else _plain(self._generation, self._tokenizer)
        for step in steps:
            if self._tokens is not None:
                self._tokens.push(step.event, step.text)
            yield from self._show(self._stop.push(step.text))
            if self._stop.hit:
                self._generation.close()
                return
        if self.result.finish_reason != "cancelled":
            yield from self._show(self._stop.push(self._take_calls()) + self._stop.flush())

    def _show(self, text: str) -> Iterator[Piece]:
        if text:
            self._shown += len(text)
            yield Piece(text, self._tokens.take(self._shown) if self._tokens is not None else ())

    def _take_calls(self) -> str:
        """Read the calls; returns those that nobody asked for as the text that they are."""
        calls = self._reply.answer.tool_calls if self._reply is not None else ()
        if self._question.offers_tools:
            self.tool_calls = calls[: self._question.most_calls]
            return ""
        shown = self._reply is not None and self._reply.shown
        return ("\n" if calls and shown else "") + "\n".join(f"{call.name}\n{call.raw}" for call in calls)


def _plain(generation: Generation, tokenizer: Tokenizer) -> Iterator[TokenText]:
    """Text without a chat format around it."""
    stream = tokenizer.stream()
    for event in generation:
        yield TokenText(event, stream.push(event.token_id))
    yield TokenText(None, stream.flush())
