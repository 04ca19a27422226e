"""Prefixes of several conversations: what is kept comes back as it was, and nobody's answer changes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drafting import TableEngine, random_table
from tests.test_speculation import CoarseEngine, oracle
from tests.torch_session import TorchBuffer, TorchSession, open_session, random_decoder, tiny_config

from tpudeploy.contracts.backend import Buffer
from tpudeploy.contracts.dtypes import Array, DType, to_storage
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError, UsageError
from tpudeploy.graph.decoder import Decoder
from tpudeploy.runtime import prefix_store
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.kv_rows import all_finite, common_length
from tpudeploy.runtime.prefix_store import PrefixStore, default_limit_bytes
from tpudeploy.runtime.sampling import SamplingOptions

torch.set_num_threads(1)
SEQ, VOCAB = 160, 101
PLAN = NetPlan(
    seq_length=SEQ,
    prefill=(Stage(new_tokens=16, cache_length=SEQ),),
    decode_cache_lengths=(64, SEQ),
    verify=(Stage(new_tokens=8, cache_length=SEQ),),
)
PLENTY = 10**9
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their size, bytes of an element


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(tiny_config(num_layers=2))


def new_engine(decoder: Decoder, limit: int | None = PLENTY, kind: type[Engine] = Engine) -> tuple[Engine, PrefixStore]:
    engine, store = kind(open_session(decoder, PLAN)), PrefixStore(limit)
    assert engine.keep_prefixes(store)
    return engine, store


def session_of(engine: Engine) -> TorchSession:
    assert isinstance(engine.session, TorchSession)
    return engine.session


def random_ids(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB, count)]


class Talk:
    """One side of a conversation by token ids: each turn says something and takes the answer into its history."""

    def __init__(self, seed: int, sampling: SamplingOptions, head: Sequence[int] = ()) -> None:
        self._random = np.random.default_rng(seed)
        self._sampling = sampling
        self.ids = list(head)
        self.reused = self.computed = self.recomputed = 0

    def turn(self, engine: Engine, drafted: Sequence[int] | None = None) -> None:
        """:param drafted: what a drafter thinks that the whole conversation will be."""
        self.ids += [int(token) for token in self._random.integers(0, VOCAB, self._random.integers(8, 16))]
        drafter = None if drafted is None else oracle(drafted[len(self.ids) :], len(self.ids), wrong=0.1)
        options = GenerationOptions(drafter=drafter, sampling=self._sampling, max_new_tokens=12)
        generation = generate(engine, self.ids, options)
        self.ids += [event.token_id for event in generation]
        self.reused += generation.result.reused_tokens
        self.recomputed = generation.result.drafts.recomputed
        self.computed += generation.result.prompt_tokens - generation.result.reused_tokens


GREEDY = SamplingOptions()
DRAWN = SamplingOptions(temperature=1.0, top_p=0.9, frequency_penalty=0.2, seed=3)


# Answers


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("head", [0, 24], ids=["apart", "one system message"])
def test_conversations_that_take_turns_are_as_if_alone(decoder: Decoder, sampling: SamplingOptions, head: int) -> None:
    """Three of them on one engine: the same tokens, and hardly more of them computed."""
    system = random_ids(99, head)
    alone = [Talk(seed, sampling, system) for seed in range(3)]
    for talk in alone:
        engine = Engine(open_session(decoder, PLAN))
        for _ in range(5):
            talk.turn(engine)
    engine, store = new_engine(decoder)
    together = [Talk(seed, sampling, system) for seed in range(3)]
    without = Engine(open_session(decoder, PLAN))
    slow = [Talk(seed, sampling, system) for seed in range(3)]
    for _ in range(5):
        for talk, other in zip(together, slow, strict=True):
            talk.turn(engine)
            other.turn(without)
    assert [talk.ids for talk in together] == [talk.ids for talk in slow] == [talk.ids for talk in alone]
    computed, before = sum(talk.computed for talk in together), sum(talk.computed for talk in slow)
    assert computed <= sum(talk.computed for talk in alone) + 3 * 16 < before / 2
    counts = store.counts
    assert counts.hits >= 9 and counts.restored_tokens > 300
    assert counts.bytes == counts.tokens * TOKEN_BYTES
    assert counts.prefixes == 3, "what is said later grows the prefix that is there"


def test_what_comes_back_is_what_was_there(decoder: Decoder) -> None:
    """To the last bit, at every layer, and all that is known of it."""
    engine, store = new_engine(decoder, kind=CoarseEngine)
    ids = random_ids(1, 50)
    engine.forward(ids[:40])
    engine.verify(ids[40:46])
    engine.accept(ids[40:45])
    state, rows = engine.cache.state, engine.cache.read_rows(0)
    assert (state.settled, state.starts[:3]) == (40, (0, 16, 32))
    other = random_ids(2, 60)
    engine.forward(other[engine.reuse(other) :])
    assert store.counts.saved_tokens == 45
    assert engine.reuse([*ids[:45], 1, 2]) == 45
    assert engine.cache.state == state
    for now, then in zip(engine.cache.read_rows(0), rows, strict=True):
        assert np.array_equal(now, then)
    # A part of it, over another prefix that begins alike.
    engine.forward(other[engine.reuse(other) :])
    branch = [*ids[:35], *random_ids(3, 30)]
    assert engine.reuse(branch) == 35
    assert engine.cache.state == state.first(35)
    assert all(np.array_equal(now, then[:35]) for now, then in zip(engine.cache.read_rows(0), rows, strict=True))


@pytest.mark.parametrize("limit", [PLENTY, 90 * TOKEN_BYTES], ids=["room", "little room"])
def test_with_drafts_as_without(decoder: Decoder, limit: int) -> None:
    """Rows of verify passes come back as such: where it matters, they are made again as they would have been."""
    unsettled = recomputed = 0
    for seed in range(2):
        said: list[list[list[int]]] = []
        for drafts in (False, True):
            engine, store = new_engine(decoder, limit, CoarseEngine)
            talks = [Talk(10 * seed + number, GREEDY) for number in range(2)]
            for _ in range(4):
                for number, talk in enumerate(talks):
                    talk.turn(engine, said[0][number] if drafts else None)
                    recomputed += talk.recomputed
                    unsettled += bool(engine.pending)
            said.append([talk.ids for talk in talks])
            assert store.counts.hits > 2
        assert said[0] == said[1], seed
    assert recomputed > 40 and unsettled > 2


def test_answers_that_are_written_by_turns(decoder: Decoder) -> None:
    """Token by token on one engine, the cache changing hands each time."""
    engine, store = new_engine(decoder)
    prompts = [random_ids(5, 40), random_ids(6, 50)]
    options = GenerationOptions(drafter=None, max_new_tokens=15)
    alone = [[event.token_id for event in generate(engine, prompt, options)] for prompt in prompts]
    engine, store = new_engine(decoder)
    one, other = (generate(engine, prompt, options) for prompt in prompts)
    pairs = [(first.token_id, second.token_id) for first, second in zip(one, other, strict=True)]
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == alone
    assert store.counts.hits > 10


# What is worth it


def test_what_is_not_worth_a_copy(decoder: Decoder) -> None:
    engine, store = new_engine(decoder)
    short, long = random_ids(7, 15), random_ids(8, 60)
    for ids in (short, long, short):
        engine.forward(ids[engine.reuse(ids) :])
    assert store.counts.saved_tokens == 60, "fewer tokens than the smallest prefill pass are not kept"
    again = [*long[:59], 1, 2]
    assert engine.reuse(again) == 59
    engine.forward(again[59:])
    engine.forward(short[engine.reuse(short) :])
    assert store.counts.saved_tokens == 60, "two tokens more are not either"
    engine.forward(long[engine.reuse(long) :])
    assert engine.reuse([*long[:40], *short]) == 40
    assert store.counts.saved_tokens == 60, "and what is stored is not stored twice"


def test_passes_that_are_needed_anyway_are_not_saved(decoder: Decoder) -> None:
    """Sixteen tokens that a pass of sixteen would compute along are not fetched."""
    engine, store = new_engine(decoder)
    ids, other = random_ids(9, 40), random_ids(10, 40)
    for prompt in (ids, other):
        engine.forward(prompt[engine.reuse(prompt) :])
    launched = len(session_of(engine).launched)
    assert engine.reuse([*ids[:2], *random_ids(11, 30)]) == 0
    assert len(session_of(engine).launched) == launched and store.counts.hits == 0


def test_the_oldest_makes_room(decoder: Decoder) -> None:
    engine, store = new_engine(decoder, 130 * TOKEN_BYTES)
    prompts = [random_ids(seed, 50) for seed in range(20, 24)]
    for ids in prompts:
        engine.forward(ids[engine.reuse(ids) :])
    counts = store.counts
    assert (counts.prefixes, counts.saved_tokens, counts.evicted_tokens) == (2, 150, 50)
    assert [engine.shared_prefix(ids) for ids in prompts] == [0, 49, 49, 49]
    assert engine.reuse(prompts[1]) == 49
    assert engine.shared_prefix(prompts[2]) == 0, "the one that is fetched must not make room"
    assert engine.reuse(prompts[3]) == 49


def test_of_what_others_branch_off_from_only_the_rest_makes_room(decoder: Decoder) -> None:
    engine, store = new_engine(decoder, 150 * TOKEN_BYTES)
    trunk = random_ids(30, 80)
    branch, other = [*trunk[:32], *random_ids(31, 40)], random_ids(32, 60)
    for ids in (trunk, branch, other):
        engine.forward(ids[engine.reuse(ids) :])
    assert store.counts.tokens == 80 + 40, "the common beginning is kept once"
    assert engine.reuse(branch) == 71
    engine.forward(branch[71:])
    assert store.counts.tokens == 32 + 40 + 60
    assert engine.shared_prefix(trunk) == 32
    rows = engine.cache.read_rows(0)
    engine.forward(other[engine.reuse(other) :])
    assert engine.reuse(branch) == 71
    engine.forward(branch[71:])
    assert all(np.array_equal(now, then) for now, then in zip(engine.cache.read_rows(0), rows, strict=True))


@pytest.mark.parametrize("limit", [0, 30 * TOKEN_BYTES])
def test_too_little_room_for_anything(decoder: Decoder, limit: int) -> None:
    engine, store = new_engine(decoder, limit)
    for ids in (random_ids(40, 60), random_ids(41, 60), random_ids(40, 60)):
        start = engine.reuse(ids)
        assert start == 0
        engine.forward(ids)
    assert (store.counts.bytes, store.counts.refused, store.counts.hits) == (0, 2, 0)


def test_the_default_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 0 < default_limit_bytes() <= 10**9
    for text, wanted in (
        ("MemTotal: 9 kB\nMemAvailable:   2000000 kB\n", 204_800_000),
        ("MemAvailable: 99000000 kB\n", 10**9),
        ("nonsense", 200_000_000),
        ("MemAvailable: much\n", 200_000_000),
    ):
        (tmp_path / "meminfo").write_text(text)
        monkeypatch.setattr(prefix_store, "MEM_INFO", tmp_path / "meminfo")
        assert default_limit_bytes() == wanted
    monkeypatch.setattr(prefix_store, "MEM_INFO", tmp_path / "nothing")
    assert PrefixStore().limit_bytes == 200_000_000
    with pytest.raises(UsageError, match="-1 bytes"):
        PrefixStore(-1)


# What goes wrong


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendError("no")], ids=["interrupt", "device"])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_restore_that_fails_forgets(decoder: Decoder, error: BaseException, calls: int) -> None:
    engine, store = new_engine(decoder)
    ids, other = random_ids(50, 60), random_ids(51, 60)
    wanted = engine.forward(ids)
    engine.forward(other[engine.reuse(other) :])
    session = session_of(engine)
    write, count = session.write_bytes, itertools.count()

    def failing(buffer: Buffer, data: Array, offset_bytes: int) -> None:
        if next(count) == calls:
            raise error
        write(buffer, data, offset_bytes)

    session.write_bytes = failing  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        engine.reuse(ids)
    session.write_bytes = write  # type: ignore[method-assign]
    assert engine.cache.length == 0
    assert engine.reuse(ids) == 59
    np.testing.assert_allclose(engine.forward(ids[59:]), wanted, atol=1e-4)
    assert store.counts.hits == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendError("no"), MemoryError()], ids=str)
def test_a_save_that_fails_loses_only_what_it_would_have_saved(decoder: Decoder, error: BaseException) -> None:
    engine, store = new_engine(decoder)
    ids, other = random_ids(52, 60), random_ids(53, 60)
    engine.forward(ids)
    session = session_of(engine)
    with pytest.MonkeyPatch.context() as patch:

        def failing(buffer: Buffer, out: Array, offset_bytes: int) -> None:
            raise error

        patch.setattr(session, "read_bytes", failing)
        if isinstance(error, MemoryError):
            assert engine.reuse(other) == 0
        else:
            with pytest.raises(type(error)):
                engine.reuse(other)
            assert engine.cache.ids == tuple(ids)
    assert store.counts.prefixes == 0
    assert list(generate(engine, other, GenerationOptions(max_new_tokens=3)))


def test_what_is_no_number_is_not_kept(decoder: Decoder) -> None:
    engine, store = new_engine(decoder)
    ids, other = random_ids(54, 60), random_ids(55, 60)
    engine.forward(ids)
    view = engine.cache.views(1, 0, 60)[1]
    assert isinstance(view.buffer, TorchBuffer)
    view.buffer.data.view(np.float32)[500] = np.inf
    engine.forward(other[engine.reuse(other) :])
    assert store.counts.prefixes == 0
    engine.forget()
    assert engine.reuse(ids) == 0


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65504.0, -0.0, 1e-7])
def test_finite(dtype: DType, value: float) -> None:
    rows = to_storage(np.array([[1.0, value, -3.0]], dtype=np.float32), dtype).view(np.uint8)
    assert all_finite([rows, rows], dtype) == np.isfinite(value)


def test_a_cache_that_was_forgotten_is_not_taken_for_a_stored_one(decoder: Decoder) -> None:
    engine, _ = new_engine(decoder)
    ids, other = random_ids(56, 60), random_ids(57, 60)
    for prompt in (ids, other, ids):
        engine.forward(prompt[engine.reuse(prompt) :])
    engine.forget()
    engine.forward(other)  # the same ids, computed anew
    rows = engine.cache.read_rows(0)
    engine.forward(ids[engine.reuse(ids) :])
    engine.reuse(other)
    state = engine.cache.read_rows(0)
    assert all(np.array_equal(now, then[:59]) for now, then in zip(state, rows, strict=True))


def test_a_store_of_other_nets(decoder: Decoder) -> None:
    _, store = new_engine(decoder)
    other = Engine(open_session(random_decoder(tiny_config(num_layers=1)), PLAN))
    with pytest.raises(UsageError, match="different nets"):
        other.keep_prefixes(store)
    assert other.keep_prefixes(None)
    with pytest.raises(UsageError, match="different nets"):
        Engine(open_session(decoder, PLAN, DType.F16)).keep_prefixes(store)


def test_no_longer(decoder: Decoder) -> None:
    engine, store = new_engine(decoder)
    ids, other = random_ids(58, 60), random_ids(59, 60)
    for prompt in (ids, other):
        engine.forward(prompt[engine.reuse(prompt) :])
    assert engine.keep_prefixes(None)
    assert engine.reuse(ids) == 0 == engine.shared_prefix(other)
    store.clear()
    assert (store.counts.prefixes, store.counts.bytes) == (0, 0)


def test_engines_that_cannot() -> None:
    engine = TableEngine(random_table(VOCAB))
    assert not engine.keep_prefixes(PrefixStore(PLENTY))
    assert engine.shared_prefix([1, 2, 3]) == 0


# Questions from other threads


def test_what_a_prompt_would_find(decoder: Decoder) -> None:
    engine, _ = new_engine(decoder)
    ids, other = random_ids(60, 60), random_ids(61, 40)
    assert engine.shared_prefix(ids) == 0
    engine.forward(ids)
    assert engine.shared_prefix(ids) == 59
    assert engine.shared_prefix([*ids, 1]) == 60
    engine.forward(other[engine.reuse(other) :])
    assert (engine.shared_prefix([*ids[:30], 1]), engine.shared_prefix(other[:20])) == (30, 19)
    assert (engine.shared_prefix([]), engine.shared_prefix([5])) == (0, 0)
    plain = Engine(open_session(decoder, PLAN))
    plain.forward(ids)
    assert plain.shared_prefix([*ids[:30], 1]) == 30


def test_asked_while_it_works(decoder: Decoder) -> None:
    engine, store = new_engine(decoder, 130 * TOKEN_BYTES)
    prompts = [random_ids(seed, 50) for seed in range(70, 74)]
    done, problems, asked = threading.Event(), [], itertools.count()

    def ask() -> None:
        while not done.is_set():
            try:
                found = [engine.shared_prefix(prompt) for prompt in prompts]
                counts = store.counts
                if not (all(0 <= length < 50 for length in found) and 0 <= counts.bytes <= store.limit_bytes):
                    problems.append((found, counts))
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not happen
                problems.append(error)
            next(asked)

    thread = threading.Thread(target=ask)
    thread.start()
    for ids in prompts * 4:
        list(generate(engine, ids, GenerationOptions(max_new_tokens=4)))
    done.set()
    thread.join()
    assert problems == [] and next(asked) > 3


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_common_length(one: list[int], other: list[int], shared: int) -> None:
    first, second = (*one[:shared], *other), (*one[:shared], *one)
    plain = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(map(len, (first, second)))
    )
    assert common_length(first, second) == common_length(second, first) == plain


# Anything in any order


class Marked:
    """An engine's cache whose rows are numbers that say over which row, and for which token, each was computed."""

    made: list[tuple[int, int]]

    def __init__(self, engine: Engine, made: list[tuple[int, int]]) -> None:
        self.engine, self.made = engine, made

    def compute(self, ids: Sequence[int], *, drafted: bool) -> None:
        """Write rows after those that are there."""
        held = self.rows()
        last = int(held[-1]) if len(held) else -1
        cache = self.engine.cache
        for place, token in enumerate(ids, start=cache.length):
            self.made.append((last, token))
            last = len(self.made) - 1
            for layer in range(2):
                row_bytes = cache.row_bytes(layer, 0)
                for view in cache.views(layer, 0, 1):
                    assert isinstance(view.buffer, TorchBuffer)
                    view.buffer.data[place * row_bytes : (place + 1) * row_bytes].view(np.float32)[:] = last
        cache.extend(ids, drafted=drafted)

    def rows(self) -> Array:
        """The number of each row; all parts of a row have the same."""
        arrays = [array.view(np.float32) for array in self.engine.cache.read_rows(0)]
        first: Array = arrays[0][:, :1]
        assert all((array == first).all() for array in arrays), "rows of several tokens were mixed"
        return first[:, 0]

    def check(self) -> None:
        """Every row is one of its token, and was computed over the one before it."""
        before = -1
        for row, token in zip(self.rows(), self.engine.cache.ids, strict=True):
            assert self.made[int(row)] == (before, token)
            before = int(row)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    limit=st.sampled_from([40, 90, 200, 10_000]),
    engines=st.integers(1, 2),
    alphabet=st.sampled_from([2, 50]),
)
def test_rows_always_go_with_those_they_were_computed_over(
    data: st.DataObject, limit: int, engines: int, alphabet: int
) -> None:
    """Any prompts in any order, one store for one engine or two, much room or little."""
    store, made = PrefixStore(limit * TOKEN_BYTES), []
    decoder = random_decoder(tiny_config(num_layers=2))
    caches = [Marked(Engine(open_session(decoder, PLAN)), made) for _ in range(engines)]
    for marked in caches:
        marked.engine.keep_prefixes(store)
    said: list[list[int]] = [[]]
    for step in range(data.draw(st.integers(3, 14))):
        marked = data.draw(st.sampled_from(caches))
        cache = marked.engine.cache
        begun = data.draw(st.sampled_from(said))
        start = begun[: data.draw(st.integers(0, len(begun)))]
        ids = (start + random_ids(data.draw(st.integers(0, 5)) + alphabet, 40))[: data.draw(st.integers(1, 120))]
        ids = [token % alphabet for token in ids]
        foreseen = marked.engine.shared_prefix(ids)
        kept = marked.engine.reuse(ids)
        assert kept == cache.length == common_length(cache.ids, tuple(ids)) <= min(foreseen, len(ids) - 1)
        marked.check()
        state = cache.state
        assert state.settled <= kept and list(state.starts) == sorted({*state.starts})
        assert kept == 0 or state.starts[0] == 0
        marked.compute(ids[kept:], drafted=bool(step % 3 == 2))
        said.append(ids)
        counts = store.counts
        assert counts.bytes == counts.tokens * TOKEN_BYTES <= store.limit_bytes
        if data.draw(st.integers(0, 9)) == 0:
            marked.engine.forget()
