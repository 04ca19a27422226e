"""A reply: an answer as text that arrives piece by piece, and as a parsed answer in the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from tpudeploy.contracts.chat import Answer, ChatTemplate, Tokenizer
from tpudeploy.runtime.generator import Generation, GenerationResult, TokenEvent


@dataclass(frozen=True)
class TokenText:
    """What one token of an answer did to its text.

    :param event: the token; None for what is left at the end of the answer.
    :param text: the visible text that it completed; empty where it is part of a character, of the format around the
        text, or of something that is held back for now.
    """

    event: TokenEvent | None
    text: str


class Reply(Iterator[str]):
    """Iterate for pieces of visible text, never half a character, then look at :attr:`answer` and :attr:`result`.

    :meth:`tokens` tells the same token by token.

    Cancelled (see :func:`~tpudeploy.runtime.generator.generate`), closed or interrupted, its answer is what was shown.

    :param forced_tool: the tool whose call its prompt began, if any.
    :param trimmed_turns: earlier turns that were left out of its prompt, having been in the one before.
    :param on_end: called once, when the answer has ended in one of these ways; not where the device failed.
    """

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        forced_tool: str | None = None,
        trimmed_turns: int = 0,
        on_end: Callable[[Reply], None] | None = None,
    ) -> None:
        self.trimmed_turns = trimmed_turns
        self._generation = generation
        self._tokens = tokenizer.stream()
        # A family that forces no tools need not know the keyword.
        forced: dict[str, Any] = {} if forced_tool is None else {"forced_tool": forced_tool}
        self._parser = template.answer_stream(**forced)
        self._special = {token_id: name for name, token_id in tokenizer.special_ids.items()}
        self._on_end = on_end
        self._shown: list[str] = []
        self._answer: Answer | None = None
        self._steps = self._run()

    @property
    def shown(self) -> str:
        """The text that was shown so far."""
        return "".join(self._shown)

    @property
    def answer(self) -> Answer:
        """The parsed answer; before its end, or cancelled, the text that was shown."""
        return self._answer or Answer(content=self.shown)

    @property
    def result(self) -> GenerationResult:
        """Tokens, counts and times."""
        return self._generation.result

    def __next__(self) -> str:
        return next(step.text for step in self._steps if step.text)

    def tokens(self) -> Iterator[TokenText]:
        """The tokens from here on, each with the text that it brought; the text is that of the plain iteration.

        After the last token comes what is left of the text, without an event, where anything is left.
        """
        return self._steps

    def close(self) -> None:
        """Cancel what is left. Idempotent; does nothing to an answer that has ended."""
        self._generation.close()
        self._steps.close()

    def _run(self) -> Generator[TokenText, None, None]:
        try:
            for event in self._generation:
                yield self._show(event, self._feed(event.token_id))
            if self.result.finish_reason != "cancelled":
                rest = self._finish()
                if rest.text:
                    yield rest
        except (GeneratorExit, KeyboardInterrupt):
            self._generation.close()
            self._end()
            raise
        self._end()

    def _feed(self, token_id: int) -> str:
        text, name = self._tokens.push(token_id), self._special.get(token_id)
        if name is None or not text.endswith(name):
            return self._parser.push(text)
        before = text.removesuffix(name)  # bytes that never became a character
        return (self._parser.push(before) if before else "") + self._parser.push_special(name)

    def _finish(self) -> TokenText:
        text = self._parser.push(self._tokens.flush())
        answer = self._parser.finish()
        if answer.content.startswith(self.shown + text):
            # What the parser held back, for it might have been the beginning of something else.
            text = answer.content[len(self.shown) :]
        self._answer = answer
        return self._show(None, text)

    def _show(self, event: TokenEvent | None, text: str) -> TokenText:
        if text:
            self._shown.append(text)
        return TokenText(event, text)

    def _end(self) -> None:
        if self._on_end is not None:
            self._on_end(self)
