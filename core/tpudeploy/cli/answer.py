"""One answer: streamed to stdout as it comes, or as one JSON object when it is whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import escaped, format_seconds, print_json, print_note, printable
from tpudeploy.cli.tool_calls import answer_room, schemas
from tpudeploy.runtime.reply import Reply

if TYPE_CHECKING:
    from tpudeploy.cli.question import Question
    from tpudeploy.cli.tool_calls import ToolSession
    from tpudeploy.contracts.chat import ToolCall
    from tpudeploy.launch import LoadedModel, Target
    from tpudeploy.runtime.generator import Generation, GenerationOptions, GenerationResult
    from tpudeploy.tools.loop import ToolLoop


def answer_once(
    target: Target,
    question: Question,
    options: GenerationOptions,
    *,
    as_json: bool,
    tools: ToolSession | None = None,
) -> None:
    """Answer one question.

    :param tools: what the model may call on the way to its answer.
    :raises TokenizerError: a text was given, and the model has no tokenizer here.
    :raises SequenceTooLongError: the prompt is longer than model or bundle allow.
    """
    ids = question.ids or target.require_text().prompt_ids(question.text, system=question.system, tools=schemas(tools))
    room = answer_room(options.max_new_tokens, tools)
    with BuildProgress() as line:
        line.prepare()
        model = target.load(prompt_tokens=len(ids), max_new_tokens=room, progress=line)
    with model:
        answer = Answering(model, question, options, tools)
        if as_json:
            answer.run(show=False)
            print_json(answer.as_dict(), indent=None)
        else:
            answer.run(show=True)
            print_note(f"[{describe_result(answer.result)}, {model.quant} on {model.backend.name}]")
        if answer.result.draft_problem:
            print_note(f"({answer.result.draft_problem})")


class Answering:
    """One question on its way to an answer: one reply, or several where tools are called between them."""

    def __init__(
        self, model: LoadedModel, question: Question, options: GenerationOptions, tools: ToolSession | None = None
    ) -> None:
        self._model = model
        self._loop: ToolLoop | None = None
        self._rounds: Iterator[Generation | Reply]
        if question.ids:
            self._rounds = iter([model.generate(question.ids, options)])
        else:
            conversation = model.conversation(system=question.system, tools=schemas(tools), options=options)
            self._loop = tools.loop(conversation) if tools else None
            asked = self._loop.ask(question.text) if self._loop else iter([conversation.ask(question.text)])
            self._rounds = asked
        self._generation = next(self._rounds)

    def run(self, *, show: bool) -> None:
        """Generate to the end. :param show: write the text to stdout as it comes."""
        self._take(show=show)
        for generation in self._rounds:
            self._generation = generation
            self._take(show=show)
        if show and self._pending:
            write_piece("\n".join(map(describe_call, self._pending)) + "\n")

    def _take(self, *, show: bool) -> None:
        if not show:
            for _ in self._pieces():
                pass
            return
        shown = False
        try:
            for piece in self._pieces():
                write_piece(piece)
                shown = True
            shown = shown or not self._calls
        finally:
            write_piece("\n" if shown else "")

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


def write_piece(piece: str) -> None:
    """Show a piece of an answer at once; a terminal gets no control characters."""
    sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


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
