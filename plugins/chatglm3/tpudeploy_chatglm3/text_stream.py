"""Ids to text piece by piece, exactly as SentencePiece decodes the whole: constant time an id.

SentencePiece drops one leading space of a text, and turns runs of byte pieces into characters, with a U+FFFD for
each byte that belongs to none. So a piece has two texts, at the start and later, and bytes wait for their character.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping

from sentencepiece import SentencePieceProcessor

from tpudeploy.contracts.chat import TextStream

_EACH_BYTE = "tpudeploy_chatglm3.replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: as SentencePiece does, replace one byte and go on with the next (Python takes a run)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\N{REPLACEMENT CHARACTER}", error.start + 1


codecs.register_error(_EACH_BYTE, _replace_each_byte)


class PieceStream(TextStream):
    """One text, token by token.

    :param pieces: the SentencePiece model.
    :param names: special tokens by id; each is shown by its name and begins a new stretch of text.
    """

    def __init__(self, pieces: SentencePieceProcessor, names: Mapping[int, str]) -> None:
        self._pieces = pieces
        self._names = names
        self._size = int(pieces.get_piece_size())
        self._unknown = [int(pieces.unk_id())]
        self._unknown_length = len(pieces.decode(self._unknown))
        self._bytes = codecs.getincrementaldecoder("utf-8")(_EACH_BYTE)
        self._at_start = True

    def push(self, token_id: int) -> str:
        """Text that ``token_id`` completes."""
        token_id = int(token_id)
        if token_id in self._names:
            text = self.flush() + self._names[token_id]
            self._at_start = True
            return text
        if not 0 <= token_id < self._size:
            return self.flush()
        if self._pieces.is_byte(token_id):
            self._at_start = False
            return self._bytes.decode(bytes([int(self._pieces.id_to_piece(token_id)[3:5], 16)]))  # "<0xE4>"
        return self.flush() + self._piece(token_id)

    def flush(self) -> str:
        """Bytes that never became a character, each as U+FFFD."""
        return self._bytes.decode(b"", final=True)

    def _piece(self, token_id: int) -> str:
        # Asked of the library rather than computed, so that its rules on spaces need no copy here.
        if not self._at_start:
            text: str = self._pieces.decode([*self._unknown, token_id])
            return text[self._unknown_length :]
        # A lone space yields no text at the start, but the second of two does; a control piece never does.
        self._at_start = not self._pieces.decode([token_id, token_id])
        first: str = self._pieces.decode([token_id])
        return first
