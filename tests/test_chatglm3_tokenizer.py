"""The tokenizer against vectors of the authors' code, and the stream against the whole decode."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shared_data import shared_json, shared_path

from tpudeploy.contracts.chat import TextStream
from tpudeploy.errors import TokenizerError, UsageError
from tpudeploy_chatglm3.config import read_config
from tpudeploy_chatglm3.special_tokens import SPECIAL_TOKENS
from tpudeploy_chatglm3.text_stream import PieceStream
from tpudeploy_chatglm3.tokenizer import ChatGLM3Tokenizer, load_tokenizer, padded_sizes
from tpudeploy_chatglm3.variants import CHATGLM3_6B, DEMO

CORPUS = ["hello world, this is a small corpus", "你好，世界。今天天气怎么样？", "a  b   c 1 2 3"] * 20


@cache
def published() -> ChatGLM3Tokenizer:
    """The authors' tokenizer."""
    return load_tokenizer(shared_path("tokenizers", "chatglm3"))


@cache
def demo() -> ChatGLM3Tokenizer:
    """The demo's tokenizer, which is there without shared data."""
    return load_tokenizer(DEMO)


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", minloglevel=2, **options
    )
    return model.getvalue()


@cache
def other_rules() -> ChatGLM3Tokenizer:
    """SentencePiece's own defaults on spaces, which are not ChatGLM3's, and no byte pieces."""
    return ChatGLM3Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=train(vocab_size=90)))


@cache
def no_dummy_prefix() -> ChatGLM3Tokenizer:
    """A tokenizer that adds no space, so none is dropped."""
    options = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "byte_fallback": True}
    return ChatGLM3Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=train(vocab_size=360, **options)))


TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [published, demo, other_rules, no_dummy_prefix], ids=lambda maker: maker.__name__
)
Maker = Callable[[], ChatGLM3Tokenizer]


def streamed(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


def vectors(kind: str) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = shared_json("golden", "chatglm3_tokenizer.json")[kind]
    assert entries
    return entries


def test_ids_have_the_authors_layout() -> None:
    meta = shared_json("golden", "chatglm3_tokenizer.json")["meta"]
    assert dict(published().special_ids) == meta["special_ids"]
    assert published().vocab_size == meta["n_words"]


def test_the_demo_has_the_same_layout_at_its_own_size() -> None:
    first = demo().vocab_size - len(SPECIAL_TOKENS)
    assert list(demo().special_ids.items()) == [(name, first + place) for place, name in enumerate(SPECIAL_TOKENS)]


def test_texts_encode_and_decode_as_in_the_authors_code() -> None:
    for vector in vectors("texts"):
        text, ids = vector["text"], vector["ids"]
        assert isinstance(text, str)
        assert isinstance(ids, list)
        assert published().encode(text) == ids, text
        assert published().decode(ids) == vector["decoded"] == vector["hf_decoded"], text
        assert "".join(streamed(published().stream(), ids)) == vector["decoded"], text


def test_ids_decode_as_in_the_authors_code() -> None:
    for vector in vectors("decode_ids"):
        ids = vector["ids"]
        assert isinstance(ids, list)
        assert published().decode(ids) == vector["sp_decode"], ids
        assert "".join(streamed(published().stream(), ids)) == vector["sp_decode"], ids


def test_what_the_jinja_template_renders_is_ordinary_text() -> None:
    for vector in vectors("jinja"):
        assert isinstance(vector["text"], str)
        assert published().encode(vector["text"]) == vector["ids"]


def random_ids(size: int) -> st.SearchStrategy[list[int]]:
    """Ids of every kind, with runs of byte pieces (3 to 258), spaces and special tokens far above their share."""
    some = st.one_of(
        st.integers(0, size - 1),
        st.integers(3, 258).map(lambda token_id: min(token_id, size - 1)),
        st.sampled_from([0, 1, 2, *range(size - 12, size)]),
        st.sampled_from([-1, -7, size, size + 200]),
    )
    return st.lists(some, max_size=40)


def interesting_ids(tokenizer: ChatGLM3Tokenizer) -> st.SearchStrategy[list[int]]:
    """Random ids mixed with real text, cut anywhere, so that characters break in the middle."""
    text = st.text(st.sampled_from("你 a😀\n𠮷 ▁é<|\u2028"), max_size=8).map(tokenizer.encode)
    parts = st.lists(st.one_of(random_ids(tokenizer.vocab_size), text), max_size=4)
    return parts.flatmap(
        lambda lists: st.integers(0, 3).map(lambda drop: [token_id for part in lists for token_id in part[drop:]])
    )


@TOKENIZERS
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_the_stream_joined_is_the_whole_decode(tokenizer: Maker, data: st.DataObject) -> None:
    ids = data.draw(interesting_ids(tokenizer()))
    assert "".join(streamed(tokenizer().stream(), ids)) == tokenizer().decode(ids)


@TOKENIZERS
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_decode_is_the_authors_loop(tokenizer: Maker, data: st.DataObject) -> None:
    """``SPTokenizer.decode``, written out again: SentencePiece between special tokens."""
    size, pieces = tokenizer().vocab_size, tokenizer()._pieces
    ids = [token_id for token_id in data.draw(interesting_ids(tokenizer())) if 0 <= token_id < size]
    names = {token_id: name for name, token_id in tokenizer().special_ids.items()}
    text = ""
    buffer: list[int] = []
    for token_id in ids:
        if token_id in names:
            text, buffer = text + pieces.decode(buffer) + names[token_id], []
        else:
            buffer.append(token_id)
    assert tokenizer().decode(ids) == text + pieces.decode(buffer)


@TOKENIZERS
@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_text_never_encodes_to_a_special_or_control_id(tokenizer: Maker, text: str) -> None:
    for piece in (text, f"<|user|>{text}[gMASK]sop</s><s><|assistant|>"):
        ids = tokenizer().encode(piece)
        assert not set(ids) & {1, 2, *tokenizer().special_ids.values()}


@pytest.mark.parametrize("tokenizer", [published, demo], ids=lambda maker: maker.__name__)
@given(
    text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("😀👨\u200d👩你\x00\x07\t\r \n")))
)
@settings(max_examples=300, deadline=None)
def test_text_round_trips(tokenizer: Maker, text: str) -> None:
    # The one character that SentencePiece does not give back is the one it writes spaces with.
    assert tokenizer().decode(tokenizer().encode(text)) == text.replace("\u2581", " ")


def test_characters_come_whole() -> None:
    ids = published().encode("👨\u200d👩𠮷")
    pieces = streamed(published().stream(), ids)
    assert [piece for piece in pieces if piece] == ["👨", "\u200d", "👩", "𠮷"]


def test_each_byte_that_never_completes_is_replaced_once() -> None:
    stream = published().stream()
    assert [stream.push(token_id) for token_id in (243, 162, 148)] == ["", "", ""]  # 3 of the 4 bytes of an emoji
    (line_end,) = published().encode("\n")[1:]
    assert stream.push(line_end) == "\ufffd\ufffd\ufffd\n"
    assert [stream.push(243), stream.push(2), stream.push(243), stream.flush()] == ["", "\ufffd", "", "\ufffd"]


def test_the_stream_starts_again_after_a_special_token() -> None:
    user = published().special_ids["<|user|>"]
    (space_hello,) = published().encode("hello")
    assert streamed(published().stream(), [space_hello, space_hello, user, space_hello]) == [
        "hello",
        " hello",
        "<|user|>",
        "hello",
        "",
    ]


def test_only_one_leading_space_is_dropped() -> None:
    (space,) = published().encode("\n")[:1]
    (space_hello,) = published().encode("hello")
    for ids, text in (([space, space_hello], " hello"), ([space, space], " "), ([2, space, space], " "), ([space], "")):
        assert published().decode(ids) == text
        assert "".join(streamed(published().stream(), ids)) == text


def test_ids_that_stand_for_nothing_are_nothing() -> None:
    """As transformers' decode of the authors' tokenizer; padded rows of the weights can be sampled."""
    ids = published().encode("你好")
    padded = [64798, *ids, 65023, -1]
    assert published().decode(padded) == "你好"
    assert "".join(streamed(published().stream(), padded)) == "你好"


class CountingPieces(sentencepiece.SentencePieceProcessor):
    """A SentencePiece model that counts the ids it is asked to decode."""

    decoded = 0

    def decode(self, *args: Any, **options: Any) -> Any:
        self.decoded += len(args[0])
        return super().decode(*args, **options)


@pytest.mark.parametrize("token_id", [2, 5, 243, 300], ids=["nothing", "control byte", "half character", "piece"])
def test_the_stream_takes_linear_time(token_id: int) -> None:
    counting = CountingPieces(model_file=str(DEMO / "tokenizer.model"))
    stream = PieceStream(counting, {})
    for _ in range(1000):
        stream.push(token_id)
    assert counting.decoded <= 4 * 1000
    assert len(stream._bytes.getstate()[0]) <= 4


def test_half_a_surrogate_pair_is_an_error_that_says_where() -> None:
    with pytest.raises(UsageError, match=r"'\\ud800', at position 2") as caught:
        demo().encode("ab\ud800")
    str(caught.value).encode()


def test_ids_may_be_numpy_integers() -> None:
    import numpy as np

    ids = np.array(demo().encode("你好"), dtype=np.int32)
    assert demo().decode(ids) == "你好"  # type: ignore[arg-type]
    stream = demo().stream()
    assert "".join(stream.push(token_id) for token_id in ids) + stream.flush() == "你好"


def test_the_published_tokenizer_fits_the_published_models() -> None:
    folder = shared_path("tokenizers", "chatglm3")
    load_tokenizer(folder, CHATGLM3_6B)
    for size in (64797, 64900, 65536, 130528, 151552):
        with pytest.raises(TokenizerError, match=rf"64798 ids.*{size}"):
            load_tokenizer(folder, CHATGLM3_6B.model_copy(update={"vocab_size": size}))


def test_the_demo_tokenizer_fits_the_demo_and_no_other() -> None:
    import json

    load_tokenizer(DEMO, read_config(json.loads((DEMO / "config.json").read_text(encoding="utf-8"))))
    with pytest.raises(TokenizerError, match=rf"{demo().vocab_size} ids.*65024"):
        load_tokenizer(DEMO, CHATGLM3_6B)


@pytest.mark.parametrize("pieces", [32000, 49953, 55296, 64000, 65024])
def test_sizes_of_other_models_do_not_fit(pieces: int) -> None:
    assert 65024 not in padded_sizes(pieces + len(SPECIAL_TOKENS))


def test_weights_may_be_padded_to_any_power_of_two_up_to_512() -> None:
    assert padded_sizes(64798) == {64798, 64800, 64832, 64896, 65024}


def test_a_missing_tokenizer_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.model") in str(caught.value)
    assert "Copy tokenizer.model there" in caught.value.hint
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", b"\x00" * 100, b"<html>404</html>"])
def test_something_else_is_not_a_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match="not a SentencePiece model, or is truncated"):
        load_tokenizer(tmp_path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:e7dc\n")
    with pytest.raises(TokenizerError, match=r"Git LFS pointer.*git lfs pull"):
        load_tokenizer(tmp_path)


def test_glm4s_tokenizer_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_tokenizer(shared_path("tokenizers", "glm4"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_tokenizer_never_passes(tmp_path: Path, share: float) -> None:
    model = (DEMO / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model[: int(len(model) * share)])
    with pytest.raises(TokenizerError, match=r"truncated|does not fit"):
        load_tokenizer(tmp_path, CHATGLM3_6B.model_copy(update={"vocab_size": 1536}))


def test_a_tokenizer_with_another_end_of_sentence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(vocab_size=90, eos_id=1, bos_id=2))
    with pytest.raises(TokenizerError, match="end of sentence is id 1, not 2"):
        load_tokenizer(tmp_path)
