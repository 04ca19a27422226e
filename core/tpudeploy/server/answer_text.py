"""From the tokens of an answer to the text that a client is shown, in a worker's thread."""

from __future__ import annotations

from collections.abc import Iterator

from tpudeploy.contracts.chat import ToolCall
from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.launch.text import TextTools
from tpudeploy.runtime.generator import Generation, GenerationResult
from tpudeploy.runtime.reply import Reply
from tpudeploy.server.service import FinishReason, Question
from tpudeploy.server.stop_text import StopText


class AnswerText:
    """Iterate :meth:`pieces` to the end, then look at the rest.

    :ivar tool_calls: what the model wants to be called.
    """

    def __init__(self, model: LoadedModel, generation: Generation, question: Question) -> None:
        self.tool_calls: tuple[ToolCall, ...] = ()
        self._generation = generation
        self._stop = StopText(question.stop)
        text = model.require_text()
        self._tokenizer = text.tokenizer
        self._question = question
        self._reply = _reply(generation, text, question) if question.is_chat else None

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
        return "tool_calls" if self.tool_calls else self.result.finish_reason

    def pieces(self) -> Iterator[str]:
        """Text as it comes; nothing more is generated after a stop string."""
        for text in self._reply if self._reply is not None else self._plain():
            piece = self._stop.push(text)
            if piece:
                yield piece
            if self._stop.hit:
                self._generation.close()
                return
        if self.result.finish_reason == "cancelled":
            return
        if rest := self._stop.push(self._take_calls()) + self._stop.flush():
            yield rest

    def _take_calls(self) -> str:
        """Read the calls; returns those that nobody asked for as the text that they are."""
        calls = self._reply.answer.tool_calls if self._reply is not None else ()
        if self._question.offers_tools:
            self.tool_calls = calls[: self._question.most_calls]
            return ""
        shown = self._reply is not None and self._reply.shown
        return ("\n" if calls and shown else "") + "\n".join(f"{call.name}\n{call.raw}" for call in calls)

    def _plain(self) -> Iterator[str]:
        stream = self._tokenizer.stream()
        for event in self._generation:
            yield stream.push(event.token_id)
        yield stream.flush()


def _reply(generation: Generation, text: TextTools, question: Question) -> Reply:
    return Reply(generation, text.tokenizer, text.template, forced_tool=question.forced_tool)
