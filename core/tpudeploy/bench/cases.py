"""What is measured: the question of the published tables, and prompts and contexts of given lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from tpudeploy.contracts.drafter import NO_DRAFTS, PROMPT_LOOKUP
from tpudeploy.errors import SequenceTooLongError, UsageError
from tpudeploy.launch import LoadedModel
from tpudeploy.launch.generation import find_drafter
from tpudeploy.launch.text import TextTools
from tpudeploy.plugins import PluginRegistry
from tpudeploy.runtime.generator import GenerationOptions

QUESTION = "请使用C++写一段冒泡排序算法。"
"""What the published figures were measured with."""
SWEEP_TOKENS = 32
"""Tokens generated after a prompt of given length: enough for a rate."""
_SAFE_IDS = 256
"""Ids that every vocabulary has, where a file does not tell its size."""


class CaseKind(str, Enum):
    """What a case is about."""

    QUESTION = "question"
    PROMPT = "prompt"
    CONTEXT = "context"


@dataclass(frozen=True)
class Variant:
    """One way to generate, where several are compared: with drafts of one kind or another, or without.

    :param name: for tables.
    :param options: length, stop ids and whether to mind them are set case by case.
    """

    name: str = NO_DRAFTS
    options: GenerationOptions = field(default_factory=lambda: GenerationOptions(drafter=None))


@dataclass(frozen=True)
class CaseChoice:
    """What a user wants measured.

    :param question: a text to be answered; empty for none.
    :param prompt_lengths: tokens of prompts to measure the first token after.
    :param context_lengths: tokens that the cache shall hold at the end of an answer whose rate is measured.
    :param max_new_tokens: tokens of an answer at most.
    :param ignore_eos: go on after the end of the question's answer, so that every run is as long.
    """

    question: str = QUESTION
    prompt_lengths: Sequence[int] = ()
    context_lengths: Sequence[int] = ()
    max_new_tokens: int = 256
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for what, lengths in (("--prompt-lengths", self.prompt_lengths), ("--context-lengths", self.context_lengths)):
            if any(length < 1 for length in lengths):
                raise UsageError(f"{what} takes numbers from 1 on.")
        if not (self.question or self.prompt_lengths or self.context_lengths):
            raise UsageError("there is nothing to measure: no question, and no lengths.")


@dataclass(frozen=True)
class BenchCase:
    """One thing to measure.

    :param length: tokens of the prompt, or for a context of what the cache holds at the end.
    :param new_tokens: tokens of the answer at most.
    :param ignore_eos: whether they are always as many.
    """

    kind: CaseKind
    length: int
    prompt_ids: tuple[int, ...] = field(repr=False)
    new_tokens: int
    ignore_eos: bool

    @property
    def name(self) -> str:
        """For tables: ``question``, ``prompt 128``, ``context 512``."""
        return self.kind.value if self.kind is CaseKind.QUESTION else f"{self.kind.value} {self.length}"


def make_variants(names: Sequence[str], model: LoadedModel, registry: PluginRegistry) -> list[Variant]:
    """One variant a drafter; where the model's nets verify no drafts, only one without.

    :param names: of drafters, or ``none``; empty takes none and prompt lookup.
    :raises UnknownNameError: there is no such drafter.
    """
    wanted = dict.fromkeys(names or (NO_DRAFTS, PROMPT_LOOKUP))
    found = [Variant(name, GenerationOptions(drafter=find_drafter(name, registry))) for name in wanted]
    return found if verifies_drafts(model) else [Variant()]


def verifies_drafts(model: LoadedModel) -> bool:
    """Whether the model's nets can verify drafted tokens."""
    model.engine.forget()
    return model.engine.draft_limit() > 0


def room_needed(choice: CaseChoice, text: TextTools | None) -> tuple[int, int]:
    """How long the model has to be: tokens of the longest prompt, and of an answer after it.

    A prompt of given length asks for no room behind it: its first token is what matters, and a model for 512 tokens
    is to be compared with others for 512.
    """
    lengths = _lengths(choice, len(_question_ids(choice, text)))
    longest = max((prompt for _, _, prompt, _ in lengths), default=1)
    needed = [prompt if kind is CaseKind.PROMPT else prompt + new - 1 for kind, _, prompt, new in lengths]
    return longest, max(needed, default=1) - longest + 1


def make_cases(choice: CaseChoice, model: LoadedModel) -> list[BenchCase]:
    """The cases, each with its prompt.

    :raises SequenceTooLongError: a prompt or context that the model cannot hold.
    :raises UsageError: nothing is left to measure, because there is no tokenizer for the question.
    """
    question, seq_length = _question_ids(choice, model.text), model.engine.seq_length
    cases = []
    for kind, length, prompt, new in _lengths(choice, len(question)):
        if prompt > seq_length or (kind is CaseKind.CONTEXT and length > seq_length):
            raise SequenceTooLongError(
                f"a {kind.value} of {length} tokens is more than the {seq_length} that {model.title} holds here.",
                hint="Leave that length out, or compile with a larger --seq-length.",
            )
        asked = kind is CaseKind.QUESTION
        ids = question if asked else synthetic_ids(prompt, _ids_known(model))
        fitting = min(new, seq_length - prompt + 1)  # the last token of an answer need not be in the cache
        cases.append(BenchCase(kind, length, tuple(ids), fitting, ignore_eos=choice.ignore_eos or not asked))
    if not cases:
        raise UsageError(
            f"there is no tokenizer for {model.title}, so the question cannot be asked.",
            hint="Measure prompts of given lengths: --prompt-lengths 16,128.",
        )
    return cases


def synthetic_ids(count: int, vocab_size: int) -> list[int]:
    """Ids that mean nothing and hardly ever repeat in a row: the same for equal arguments."""
    return [int(token) for token in np.random.default_rng(count).integers(0, vocab_size, count)]


def _lengths(choice: CaseChoice, question_tokens: int) -> list[tuple[CaseKind, int, int, int]]:
    """Of each case its kind, length, tokens of its prompt and of its answer."""
    found = []
    if question_tokens:
        found.append((CaseKind.QUESTION, question_tokens, question_tokens, choice.max_new_tokens))
    sweep = min(SWEEP_TOKENS, choice.max_new_tokens)
    found += [(CaseKind.PROMPT, length, length, sweep) for length in choice.prompt_lengths]
    for length in choice.context_lengths:
        new = min(sweep, length)
        found.append((CaseKind.CONTEXT, length, length - new + 1, new))
    return found


def _question_ids(choice: CaseChoice, text: TextTools | None) -> list[int]:
    return text.prompt_ids(choice.question) if choice.question and text is not None else []


def _ids_known(model: LoadedModel) -> int:
    sizes = [model.engine.vocab_size, model.text.tokenizer.vocab_size if model.text else None]
    return min((size for size in sizes if size), default=_SAFE_IDS)
