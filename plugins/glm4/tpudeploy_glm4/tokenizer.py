"""GLM-4's tokenizer: byte pairs by the authors' own library, tiktoken, and special ids that no text can write."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tiktoken

from tpudeploy.contracts.chat import TextStream, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.errors import TokenizerError, UsageError
from tpudeploy_glm4.vocabulary import HINT, Vocabulary, read_vocabulary

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the authors cut text before they merge bytes."""
LARGEST_PADDING = 512
MARK_OF_0414 = "message.role != 'system'"
"""Only the template of 0414 takes system messages out of their order."""
MARK_OF_REASONING = "</think>"
_TOO_MUCH_SPACE = re.compile(r"\s{500000}")
"""tiktoken's regular expressions run out of stack at twice as many, and that ends the process."""


class GLM4Tokenizer(Tokenizer):
    """The authors' ``ChatGLM4Tokenizer``, except that special tokens in a text are text.

    :param is_0414: whether prompts are written as GLM-4-0414's.
    """

    def __init__(self, vocabulary: Vocabulary, *, is_0414: bool = False) -> None:
        self.is_0414 = is_0414
        self._special_ids = dict(vocabulary.special)
        self._bytes = {rank: token for token, rank in vocabulary.ranks.items()}
        self._bytes |= {token_id: name.encode(errors="replace") for name, token_id in vocabulary.special.items()}
        self._special_numbers = frozenset(self._special_ids.values())
        self._pairs = tiktoken.Encoding(
            "glm4", pat_str=WORDS, mergeable_ranks=dict(vocabulary.ranks), special_tokens={}
        )

    @property
    def vocab_size(self) -> int:
        """Ranks and special tokens; the weights have more rows, for alignment."""
        return max(self._bytes) + 1

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Special tokens by their text."""
        return MappingProxyType(self._special_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text.

        :raises UsageError: half a surrogate pair, which is not a character, or half a million spaces in a row.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half a surrogate pair, {text[error.start]!a}, at position {error.start}.",
                hint="Was it read with the wrong encoding? Use UTF-8.",
            ) from error
        if space := _TOO_MUCH_SPACE.search(text):
            raise UsageError(f"the text holds 500000 spaces or line ends in a row, from position {space.start()} on.")
        return self._pairs.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens by their names; an id that stands for nothing is nothing in the text."""
        return b"".join(self._bytes.get(int(token_id), b"") for token_id in ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a rank; None for special tokens."""
        return None if token_id in self._special_numbers else self._bytes.get(token_id)

    def stream(self) -> TextStream:
        """A fresh incremental decoder."""
        return ByteStream(self._bytes)


class ByteStream(TextStream):
    """One text, token by token: bytes wait until their character is complete.

    :param tokens: the bytes of each id.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that ``token_id`` completes."""
        return self._decoder.decode(self._tokens.get(int(token_id), b""))

    def flush(self) -> str:
        """What never became a character, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(folder: Path, config: DecoderConfig | None = None) -> GLM4Tokenizer:
    """Load the vocabulary from a checkpoint or a bundle.

    :raises TokenizerError: missing, corrupt, another model's, or one of a reasoning model (GLM-Z1).
    """
    vocabulary = read_vocabulary(folder)
    if MARK_OF_REASONING in vocabulary.chat_template:
        raise TokenizerError(
            f"{folder} holds a reasoning model such as GLM-Z1, whose prompts are not supported.",
            hint="Choose a chat model: GLM-4-9B-Chat or GLM-4-9B-0414.",
        )
    is_0414 = MARK_OF_0414 in vocabulary.chat_template if config is None else config.post_norms
    tokenizer = GLM4Tokenizer(vocabulary, is_0414=is_0414)
    if config is not None and config.vocab_size not in padded_sizes(tokenizer.vocab_size):
        raise TokenizerError(
            f"{vocabulary.path} has {tokenizer.vocab_size} ids, which does not fit the model's {config.vocab_size}.",
            hint=f"It is another model's. {HINT}",
        )
    return tokenizer


def padded_sizes(vocab_size: int) -> set[int]:
    """Numbers of rows that weights for this vocabulary may have: it, or rounded up to 2, 4, ... 512.

    The authors round 151343 up to 151552, a multiple of 512.
    """
    multiples = (2**power for power in range(LARGEST_PADDING.bit_length()))
    return {-(-vocab_size // multiple) * multiple for multiple in multiples}
