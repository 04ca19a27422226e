"""One answer: streamed to stdout as it comes, or as one JSON object when it is whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpudeploy.cli.progress import BuildProgress
from tpudeploy.cli.terminal import format_seconds, print_json, print_note, printable
from tpudeploy.runtime.reply import Reply

if TYPE_CHECKING:
    from tpudeploy.cli.question import Question
    from tpudeploy.contracts.chat import ToolCall
    from tpudeploy.launch import LoadedModel, Target
    from tpudeploy.runtime.generator import Generation, GenerationOptions, GenerationResult


def answer_once(target: Target, question: Question, options: GenerationOptions, *, as_json: bool) -> None:
    """Answer one question.

    :raises TokenizerError: a text was given, and the model has no tokenizer here.
    :raises SequenceTooLongError: the prompt is longer than model or bundle allow.
    """
    ids = question.ids or target.require_text().prompt_ids(question.text, system=question.system)
    with BuildProgress() as line:
        line.prepare()
        model = target.load(prompt_tokens=len(ids), max_new_tokens=options.max_new_tokens, progress=line)
    with model:
        answer = Answering(model, question, options)
        if as_json:
            answer.run(show=False)
            print_json(answer.as_dict(), indent=None)
        else:
            answer.run(show=True)
            print_note(f"[{describe_result(answer.result)}, {model.quant} on {model.backend.name}]")
        if answer.result.draft_problem:
            print_note(f"({answer.result.draft_problem})")


class Answering:
    """One question on its way to an answer."""

    def __init__(self, model: LoadedModel, question: Question, options: GenerationOptions) -> None:
        self._model = model
        self._reply: Reply | None = None
        self._generation: Generation | Reply
        if question.ids:
            self._generation = model.generate(question.ids, options)
        else:
            conversation = model.conversation(system=question.system, options=options)
            self._generation = self._reply = conversation.ask(question.text)

    def run(self, *, show: bool) -> None:
        """Generate to the end. :param show: write the text to stdout as it comes."""
        if not show:
            for _ in self._pieces():
                pass
            return
        shown = False
        try:
            for piece in self._pieces():
                write_piece(piece)
                shown = True
            write_piece("\n".join(map(describe_call, self._tool_calls)))
            shown = True
        finally:
            write_piece("\n" if shown else "")

    @property
    def result(self) -> GenerationResult:
        """Tokens, counts and times."""
        return self._generation.result

    @property
    def text(self) -> str | None:
        """The answer as text; None where there is no tokenizer."""
        if self._reply is not None:
            return self._reply.answer.content
        return self._model.text.tokenizer.decode(self.result.token_ids) if self._model.text else None

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        result, calls = self.result, [call.model_dump(mode="json") for call in self._tool_calls]
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
        } | ({"tool_call": calls[0], "tool_calls": calls} if calls else {})

    @property
    def _tool_calls(self) -> tuple[ToolCall, ...]:
        return self._reply.answer.tool_calls if self._reply is not None else ()

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
    import json

    arguments = call.raw if call.arguments is None else json.dumps(call.arguments, ensure_ascii=False)
    return f"[calls {call.name} with {arguments}]"


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
