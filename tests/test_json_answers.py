"""Answers that must be a JSON object: the grammar, the choice of tokens, and whole answers."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.byte_chat import STOP
from tests.drafting import TableEngine, random_table
from tests.test_speculation import oracle
from tests.torch_session import open_session, random_decoder, tiny_config

from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import UsageError
from tpudeploy.launch.text import load_text
from tpudeploy.plugins import registry
from tpudeploy.runtime.constraint import best_allowed
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.json_constraint import JsonObject
from tpudeploy.runtime.json_syntax import DONE, MOST_DEPTH, MOST_DIGITS, MOST_SPACES, START, feed
from tpudeploy.runtime.sampling import Sampler, SamplingOptions

torch.set_num_threads(1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def byte_of(token_id: int) -> bytes | None:
    return bytes([token_id]) if 0 <= token_id < 256 else None


# The grammar


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
    st.sampled_from([(",", ":"), (" ,", " : "), (",\r\n\t", ":")]),
)
def test_what_json_writes_is_accepted(
    value: dict[str, object], ascii_only: bool, indent: int | None, separators: tuple[str, str]
) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=separators).encode()
    state = START
    for place in range(len(data)):
        assert state != DONE, "complete too early"
        after = feed(state, data[place : place + 1])
        assert after is not None, data[: place + 1]
        state = after
    assert state == DONE
    assert all(feed(state, bytes([byte])) is None for byte in range(256))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_accepted_is_json(data: st.DataObject) -> None:
    """Any walk through the grammar, which is then led out of it."""
    state, text = START, b""
    random = data.draw(st.randoms(use_true_random=False))
    for step in range(4000):
        able = [byte for byte in range(256) if feed(state, bytes([byte])) is not None]
        assert able, text
        hurried = step > 60
        closing = [byte for byte in able if byte in b'"}]'] if hurried else []
        byte = random.choice(closing or able)
        text += bytes([byte])
        after = feed(state, bytes([byte]))
        assert after is not None
        state = after
        if state == DONE:
            break
    assert isinstance(json.loads(text.decode()), dict)


@pytest.mark.parametrize(
    "text",
    [
        b"[", b"1", b"n", b'"', b"}", b"x",  # no object
        b"{,", b"{1", b"{a", b'{"a" "', b'{"a":}', b'{"a":1,}', b'{"a":1 2', b'{"a":[1,]', b'{"a":[,', b'{"a":[1}',
        b'{"a":01', b'{"a":-a', b'{"a":1.}', b'{"a":.', b'{"a":1e}', b'{"a":+', b'{"a":1e+}', b'{"a":-}', b'{"a":0x',
        b'{"a":tru}', b'{"a":T', b'{"a":nul,', b'{"a":N', b'{"a":I', b"{'",
        b'{"a\n', b'{"\\x', b'{"\\u12G', b'{"\\u12"', b'{"\x00', b'{"\x1f',
        b'{"\x80', b'{"\xc0', b'{"\xc1', b'{"\xe0\x80', b'{"\xed\xa0', b'{"\xf4\x90', b'{"\xf5', b'{"\xe4"',
        b'{"a":1}}', b'{"a":1} ', b"{}\n", b"\xef",
    ],
)  # fmt: skip
def test_what_is_not_json(text: bytes) -> None:
    """Refused at the last byte, and not before."""
    assert feed(START, text) is None
    assert feed(START, text[:-1]) is not None


def test_nothing_goes_on_for_ever() -> None:
    assert feed(START, b" " * MOST_SPACES + b"{") is not None
    assert feed(START, b" " * (MOST_SPACES + 1)) is None
    begun = feed(START, b'{"a":')
    assert begun is not None
    assert feed(begun, b"[" * (MOST_DEPTH - 1)) is not None and feed(begun, b"[" * MOST_DEPTH) is None
    assert feed(begun, b"1" * MOST_DIGITS + b"}") == DONE and feed(begun, b"1" * (MOST_DIGITS + 1)) is None
    for tail in (b"-", b".", b"e", b"e-"):
        digits = b"0" if tail == b"-" else b"1" * MOST_DIGITS
        number = tail + digits if tail == b"-" else digits[: MOST_DIGITS - len(tail)] + tail
        state = feed(begun, number)
        assert state is not None
        assert any(feed(state, after) == DONE for after in (b"}", b"7}")), number


# The choice


class Even:
    """Allows even ids."""

    complete = False

    def begin(self) -> Even:
        return self

    def allows(self, token_id: int) -> bool:
        return token_id % 2 == 0

    def advance(self, token_id: int) -> None:
        assert token_id % 2 == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4000), st.integers(0, 99), st.sampled_from([0.0, 0.05, 1.0]))
def test_the_best_of_those_that_are_allowed(count: int, seed: int, margin: float) -> None:
    logits = np.random.default_rng(seed).normal(size=count).astype(np.float32).round(2)
    even = logits[::2]
    best = 2 * int(np.argmax(even))
    second = np.sort(even)[-2] if len(even) > 1 else -np.inf
    close = margin > 0 and logits[best] - second <= margin
    assert best_allowed(logits, Even(), margin) == (None if close else best)


def test_nothing_is_allowed() -> None:
    class Nothing(Even):
        def allows(self, token_id: int) -> bool:
            return False

    with pytest.raises(UsageError, match="in the form that was asked for"):
        best_allowed(np.zeros(5, dtype=np.float32), Nothing())


@pytest.mark.parametrize("count", [6, 300])
def test_draws_among_those_that_are_allowed_keep_their_proportions(count: int) -> None:
    logits = np.random.default_rng(1).normal(size=count).astype(np.float32)
    logits[1::2] += 2  # most draws hit what is not allowed
    draws = 4000
    sampler = Sampler(SamplingOptions(temperature=0.5, seed=2), constraint=Even())
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=count)[::2]
    weights = np.exp(logits[::2] / 0.5)
    expected = weights / weights.sum() * draws
    common = expected >= 5
    chi_square = float(((counts[common] - expected[common]) ** 2 / expected[common]).sum())
    freedom = int(common.sum())
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_where_top_k_leaves_nothing_that_is_allowed() -> None:
    logits = np.array([0.0, 5.0, 1.0, 4.0], dtype=np.float32)
    assert Sampler(SamplingOptions(temperature=1, top_k=2, seed=0), constraint=Even()).sample(logits) == 2


# Whole answers

VOCAB = 261
PLAN = NetPlan(
    seq_length=160,
    prefill=(Stage(new_tokens=16, cache_length=160),),
    verify=(Stage(new_tokens=8, cache_length=160),),
)


def hasty(table_of: int) -> object:
    """Logits over bytes that like to close what is open, so that answers end."""
    table = random_table(VOCAB, order=1, seed=table_of)

    def logits(ids: tuple[int, ...]) -> Array:
        row = table(ids).copy()
        row[list(b'"}],:')] += 6
        row[STOP] += 8  # it would rather stop at once
        return row

    return logits


@pytest.mark.parametrize("sampling", [SamplingOptions(), SamplingOptions(temperature=1.5, top_p=0.95)])
def test_answers_are_json_with_drafts_and_without(sampling: SamplingOptions) -> None:
    ended = accepted = 0
    for seed in range(12):
        seeded = SamplingOptions(**{**vars(sampling), "seed": seed})

        def options(known: Sequence[int] | None, seeded: SamplingOptions = seeded) -> GenerationOptions:
            return GenerationOptions(
                drafter=None if known is None else oracle(known, 1, wrong=0.2),
                stop_ids=frozenset([STOP]),
                sampling=seeded,
                constraint=JsonObject(byte_of),
                max_new_tokens=120,
                logprobs=0,
            )

        table = hasty(seed)
        plain = generate(TableEngine(table, seq_length=200), [1], options(None))  # type: ignore[arg-type]
        ids = [event.token_id for event in plain]
        drafted = generate(TableEngine(table, seq_length=200), [1], options(ids))  # type: ignore[arg-type]
        assert [event.token_id for event in drafted] == ids
        assert (plain.result.finish_reason, plain.result.stop_id) == (drafted.result.finish_reason, None)
        accepted += drafted.result.drafts.accepted
        if plain.result.finish_reason == "stop":
            ended += 1
            assert isinstance(json.loads(bytes(ids).decode()), dict)
        else:
            assert len(ids) == 120 and feed(START, bytes(ids)) not in (None, DONE)
    assert ended > 3 and accepted > 20


def test_a_network_writes_json_after_the_lead_of_its_format() -> None:
    engine = Engine(open_session(random_decoder(tiny_config(vocab_size=VOCAB, num_layers=1)), PLAN))
    bias = dict.fromkeys(b'"}]', 12.0)
    sampling = SamplingOptions(temperature=1.0, seed=1, logit_bias=bias)
    options = GenerationOptions(sampling=sampling, constraint=JsonObject(byte_of, lead="\n"))
    for start in range(5):
        generation = generate(engine, [start, 7], options)
        text = bytes(event.token_id for event in generation).decode()
        assert generation.result.finish_reason == "stop"
        assert text.startswith("\n") and isinstance(json.loads(text), dict)


@pytest.mark.parametrize("family", ["chatglm3", "glm4"])
def test_bytes_of_tokens(family: str) -> None:
    """Joined, they are the text; a special token has none."""
    adapter = registry().model(family)
    folder = next(variant.bundled for variant in adapter.variants() if variant.bundled is not None)
    tokenizer = load_text(adapter, folder).tokenizer
    text = '\n{"名": "naïve 😀", "n": [1, -2.5e3]}\t\n'
    found = [tokenizer.token_bytes(token) for token in tokenizer.encode(text)]
    joined = b"".join(data for data in found if data is not None).decode()
    assert joined in (text, " " + text) and None not in found
    assert all(tokenizer.token_bytes(token) is None for token in tokenizer.special_ids.values())
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) is None
    state = feed(START, joined.rstrip().encode())
    assert state == DONE
    assert load_text(adapter, folder).template.answer_lead == "\n"
