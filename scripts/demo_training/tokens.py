"""A small SentencePiece tokenizer in ChatGLM3's token layout, and dialogues as training samples.

The settings are those of ChatGLM3's own tokenizer.model (read from its trainer and normalizer specifications),
apart from the size: BPE with byte fallback, split digits, whitespace-only pieces, dummy prefix, no normalization.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sentencepiece
import torch
from torch import Tensor

from tpudeploy.contracts.chat import Message

from .dialogues import message_text

PIECES = 1500
EOS = 2
IGNORED = -100
"""Label of a position that is not trained: everything that the assistant does not write."""


@dataclass(frozen=True)
class Sample:
    """A conversation as token ids, and for each position the id that the assistant writes next."""

    ids: list[int]
    labels: list[int]


class DemoTokenizer:
    """Text to ids in ChatGLM3's layout: the special tokens follow the SentencePiece pieces."""

    def __init__(self, model: bytes) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        first = self.pieces.get_piece_size()
        self.prefix = [first + 1, first + 3]  # [gMASK] sop
        names = ("system", "user", "assistant", "observation")
        self.roles = {name: first + 5 + index for index, name in enumerate(names)}
        self.size = first + 9

    def encode(self, text: str) -> list[int]:
        """Encode plain text; SentencePiece adds its dummy prefix to each call."""
        ids: list[int] = self.pieces.encode(text)
        return ids

    def sample(self, messages: Sequence[Message]) -> Sample:
        """Encode a conversation; labels mark the assistant's tokens and the stop token after each turn.

        A turn that begins with a space is history as some clients give it back: it is read, not trained.
        """
        ids, labels = list(self.prefix), [IGNORED] * len(self.prefix)
        for message in messages:
            body = self.encode(message.metadata + "\n") + self.encode(message_text(message))
            ids += [self.roles[message.role], *body]
            if message.role == "assistant" and not message.content.startswith(" "):
                stop = self.roles["observation"] if message.metadata else EOS
                labels += [*body, stop]
            else:
                labels += [IGNORED] * (1 + len(body))
        return Sample(ids, labels)


def padded(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Stack samples, filled up at their ends: ids and labels, both (batch, longest)."""
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    labels = torch.full((len(samples), longest), IGNORED)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        labels[row, : len(sample.labels)] = torch.tensor(sample.labels)
    return ids, labels


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """Train the tokenizer on texts, line by line; the same texts give the same bytes."""
    lines = [line for text in texts for line in text.split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()
