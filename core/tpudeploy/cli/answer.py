"""One answer: streamed to stdout as it comes, or as one JSON object when it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpudeploy.cli.answer_view import answer_view
from tpudeploy.cli.chat_keeper import take_up
from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import escaped, format_seconds, print_json, print_line, print_note
from tpudeploy.cli.tool_calls import answer_room, schemas
from tpudeploy.runtime.reply import Reply

if TYPE_CHECKING:
    from tpudeploy.cli.chat_keeper import ChatKeeper, Resumed
    from tpudeploy.cli.chat_settings import ChatSettings
    from tpudeploy.cli.question import Question
    from tpudeploy.cli.tool_calls import ToolSession
    from tpudeploy.contracts.chat import ToolCall
    from tpudeploy.launch import LoadedModel, Target
    from tpudeploy.runtime.conversation import Conversation
    from tpudeploy.runtime.generator import Generation, GenerationOptions, GenerationResult
    from tpudeploy.tools.loop import ToolLoop


def answer_once(
    target: Target,
    question: Question,
    settings: ChatSettings,
    keeper: ChatKeeper,
    *,
    as_json: bool,
    resumed: Resumed | None = None,
    tools: ToolSession | None = None,
) -> None:
    """Answer one question.

    :param keeper: keeps question and answer, so that they can be gone on with.
    :param resumed: the conversation in which it is asked; its settings are in ``settings`` already.
    :param tools: what the model may call on the way to its answer.
    :raises TokenizerError: a text was given, and the model has no tokenizer here.
    :raises SequenceTooLongError: the prompt is longer than model or bundle allow.
    """
    options = settings.options
    ids = question.ids or target.require_text().prompt_ids(question.text, system=question.system, tools=schemas(tools))
    room = answer_room(options.max_new_tokens, tools)
    with BuildProgress() as line:
        line.prepare()
        model = target.load(prompt_tokens=len(ids), max_new_tokens=room, progress=line)
    with model:
        answer = Answering(model, question, options, tools, resumed)
        if as_json:
            answer.run(show=False)
            print_json(answer.as_dict(), indent=None)
        else:
            answer.run(show=True, markdown=settings.markdown)
            print_note(f"[{describe_result(answer.result)}, {model.quant} on {model.backend.name}]")
        if answer.result.draft_problem:
            print_note(f"({answer.result.draft_problem})")
        if answer.conversation is not None:
            keeper.keep(model.model, answer.conversation.messages, settings.stored)


class Answering:
    """One question on its way to an answer: one reply, or several where tools are called between them.

    :ivar conversation: where question and answer belong; None for token ids.
    """

    def __init__(
        self,
        model: LoadedModel,
        question: Question,
        options: GenerationOptions,
        tools: ToolSession | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        self._model = model
        self._loop: ToolLoop | None = None
        self.conversation: Conversation | None = None
        self._rounds: Iterator[Generation | Reply]
        if question.ids:
            self._rounds = iter([model.generate(question.ids, options)])
        else:
            conversation = model.conversation(system=question.system, tools=schemas(tools), options=options)
            if resumed is not None:
                take_up(conversation, resumed.chat, model.model)
                conversation.system = question.system or conversation.system
            self.conversation = conversation
            self._loop = tools.loop(conversation) if tools else None
            asked = self._loop.ask(question.text) if self._loop else iter([conversation.ask(question.text)])
            self._rounds = asked
        self._generation = next(self._rounds)

    def run(self, *, show: bool, markdown: bool = False) -> None:
        """Generate to the end. :param show: write the text to stdout as it comes."""
        self._take(show=show, markdown=markdown)
        for generation in self._rounds:
            self._generation = generation
            self._take(show=show, markdown=markdown)
        if show and self._pending:
            print_line("\n".join(map(describe_call, self._pending)))

    def _take(self, *, show: bool, markdown: bool) -> None:
        if not show:
            for _ in self._pieces():
                pass
            return
        shown = False
        view = answer_view(markdown=markdown)
        try:
            for piece in self._pieces():
                view.push(piece)
                shown = True
            shown = shown or not self._calls
        finally:
            if shown:
                view.close()

    @property
    def result(self) -> GenerationResult:
        """Tokens, counts and times."""
        return self._generation.result

    @property
    def text(self) -> str | None:
        """The answer as text; None where there is no tokenizer."""
        if isinstance(self._generation, Reply):
            return self._generation.answer.content
        return self._model.text.tokenizer.decode(self.result.token_ids) if self._model.text else None

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        result = self.result
        return {
            "model": self._model.title,
            "quant": self._model.quant,
            "backend": self._model.backend.name,
            "token_ids": list(result.token_ids),
            "text": self.text,
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
            "first_token_s": result.first_token_s,
            "tokens_per_s": result.tokens_per_s,
            "passes": result.drafts.passes,
            "tokens_per_pass": result.tokens_per_pass,
            "drafted_tokens": result.drafts.drafted,
            "accepted_tokens": result.drafts.accepted,
            "recomputed_tokens": result.drafts.recomputed,
            "seq_length": self._model.engine.seq_length,
            "bundle": str(self._model.path),
        } | self._calls_as_dict()

    def _calls_as_dict(self) -> dict[str, Any]:
        """Every call with its outcome where there are tools, and first the one that somebody else is to run."""
        calls = [call.model_dump(mode="json") for call in self._calls]
        if self._loop is not None:
            calls = [outcome.as_dict() for outcome in self._loop.outcomes]
        first = {"tool_call": self._pending[0].model_dump(mode="json")} if self._pending else {}
        return first | ({"tool_calls": calls} if calls or self._loop else {})

    @property
    def _calls(self) -> tuple[ToolCall, ...]:
        """The calls that the last reply asks for."""
        return self._generation.answer.tool_calls if isinstance(self._generation, Reply) else ()

    @property
    def _pending(self) -> tuple[ToolCall, ...]:
        """The calls that were not run."""
        return self._calls if self._loop is None else tuple(outcome.call for outcome in self._loop.pending)

    def _pieces(self) -> Iterator[str]:
        """Text as it comes; token ids where there is no tokenizer."""
        if isinstance(self._generation, Reply):
            yield from self._generation
        elif self._model.text is not None:
            stream = self._model.text.tokenizer.stream()
            for event in self._generation:
                yield stream.push(event.token_id)
            yield stream.flush()
        else:
            for event in self._generation:
                yield f"{',' if event.index else ''}{event.token_id}"


def describe_call(call: ToolCall) -> str:
    """A tool call for people."""
    arguments = call.raw if call.arguments is None else json.dumps(call.arguments, ensure_ascii=False)
    return escaped(f"[calls {call.name} with {arguments}]")


def describe_result(result: GenerationResult) -> str:
    """``23 tokens, first after 0.1 s, 45.1 tokens/s``."""
    count = len(result.token_ids)
    parts = [f"{count} token{'s' if count != 1 else ''}"]
    if result.first_token_s is not None:
        parts.append(f"first after {format_seconds(result.first_token_s)}")
    if result.tokens_per_s:
        parts.append(f"{result.tokens_per_s:.1f} tokens/s")
    if result.drafts.verify_passes:
        parts.append(f"{result.tokens_per_pass:.1f} tokens a pass")
    if result.finish_reason == "length":
        parts.append("ended by the length limit")
    return ", ".join(parts)
