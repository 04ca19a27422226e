"""ChatGLM3's tokenizer: the user's own ``tokenizer.model`` (SentencePiece), and nine special ids after its pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from sentencepiece import SentencePieceProcessor

from tpudeploy.contracts.chat import TextStream, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.errors import TokenizerError, UsageError
from tpudeploy_chatglm3.special_tokens import EOS_ID, SPECIAL_TOKENS
from tpudeploy_chatglm3.text_stream import PieceStream

LARGEST_PADDING = 512
_HINT = "Copy tokenizer.model there from the model's published files."


class ChatGLM3Tokenizer(Tokenizer):
    """The authors' ``SPTokenizer``, over any SentencePiece model.

    :param pieces: a loaded model; its end of sentence must be id 2.
    """

    def __init__(self, pieces: SentencePieceProcessor) -> None:
        self._pieces = pieces
        self._first_special = int(pieces.get_piece_size())
        self._special_ids = {name: self._first_special + place for place, name in enumerate(SPECIAL_TOKENS)}
        self._names = {token_id: name for name, token_id in self._special_ids.items()}

    @property
    def vocab_size(self) -> int:
        """Pieces and special tokens; the weights have more rows, for alignment."""
        return self._first_special + len(SPECIAL_TOKENS)

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The nine special tokens by their text."""
        return MappingProxyType(self._special_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, with the leading space that SentencePiece adds.

        :raises UsageError: half a surrogate pair, which is not a character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half a surrogate pair, {text[error.start]!a}, at position {error.start}.",
                hint="Was it read with the wrong encoding? Use UTF-8.",
            ) from error
        ids: list[int] = self._pieces.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens by their names.

        As in the authors' code an id that stands for nothing (a padded row of the weights, a negative number) is
        nothing in the text; of the stretches between special tokens, each loses one leading space.
        """
        texts = []
        for special, group in groupby(map(int, ids), self._names.__contains__):
            stretch = list(group)
            texts.append(
                "".join(self._names[token_id] for token_id in stretch)
                if special
                else self._pieces.decode([token_id if self._is_piece(token_id) else EOS_ID for token_id in stretch])
            )
        return "".join(texts)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a piece, with its leading space; None for what stands for no text."""
        pieces = self._pieces
        if not self._is_piece(token_id) or pieces.is_control(token_id) or pieces.is_unknown(token_id):
            return None
        piece: str = pieces.id_to_piece(token_id)
        if pieces.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # "<0xE4>"
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def stream(self) -> TextStream:
        """A fresh incremental decoder."""
        return PieceStream(self._pieces, self._names)

    def _is_piece(self, token_id: int) -> bool:
        return 0 <= token_id < self._first_special


def load_tokenizer(folder: Path, config: DecoderConfig | None = None) -> ChatGLM3Tokenizer:
    """Load ``tokenizer.model`` from a checkpoint or a bundle.

    :raises TokenizerError: missing, corrupt, or another model's.
    """
    path = folder / "tokenizer.model"
    tokenizer = ChatGLM3Tokenizer(_read_pieces(path))
    if config is not None and config.vocab_size not in padded_sizes(tokenizer.vocab_size):
        raise TokenizerError(
            f"{path} has {tokenizer.vocab_size} ids, which does not fit the model's {config.vocab_size}.",
            hint=f"It is another model's. {_HINT}",
        )
    return tokenizer


def padded_sizes(vocab_size: int) -> set[int]:
    """Numbers of rows that weights for this vocabulary may have: it, or rounded up to 2, 4, ... 512.

    The authors round 64798 up to 65024 (a multiple of 512). Near misses of other models, such as a tokenizer of
    64000 pieces, would pass a plain "not more than", and a wrong tokenizer yields nonsense without an error.
    """
    sizes, multiple = set(), 1
    while multiple <= LARGEST_PADDING:
        sizes.add(-(-vocab_size // multiple) * multiple)
        multiple *= 2
    return sizes


def _read_pieces(path: Path) -> SentencePieceProcessor:
    try:
        model = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.", hint=_HINT) from error
    if model.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path} is only a Git LFS pointer.", hint="Run `git lfs pull` in that folder.")
    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise TokenizerError(f"{path} is not a SentencePiece model, or is truncated.", hint=_HINT) from error
    if pieces.eos_id() != EOS_ID:
        raise TokenizerError(
            f"{path} is not ChatGLM3's: its end of sentence is id {pieces.eos_id()}, not {EOS_ID}.", hint=_HINT
        )
    return pieces
