"""What near ties leave of speculation on deep models: passes by rounding, by how sure the model is, and by rule.

    python scripts/bench_ties.py

Answers of the demo's dialogues are replayed by the runtime itself over an engine that knows them. Leads are the demo's
own, or drawn harsher: a share of the tokens leads by at most a fifth of the best logit, by any of it alike. Rounding is
that of `bench_rounding.py`: normal, of the given root mean square of the change of a lead, in all rows of verify passes
and all that are computed over a cache with drafted rows. Every answer must come out as without drafts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bench_head import answers
from bench_speculation import COSTS, GROUNDED
from tpudeploy.compile.source import open_source, parse_model
from tpudeploy.contracts.dtypes import Array
from tpudeploy.graph.reference import StreamedReference
from tpudeploy.plugins import registry
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.runtime.rounding import Rounding
from tpudeploy.runtime.token_engine import Settled, TokenEngine
from tpudeploy.settings import load_settings

BEST = 20.0
SEEDS = 3
"""So many times leads are drawn for each text."""
CASES = (
    ("F16, 28 layers", 0.0013, 0.002 * math.sqrt(28), 0.002),
    ("BF16, 40 layers", 0.0090, 0.016 * math.sqrt(40), 0.016),
    ("BF16, a third of it", 0.0030, 0.016 * math.sqrt(40), 0.016),
)
"""Name, root mean square of the change of a lead, presumed margin, least margin."""


@dataclass(frozen=True)
class Text:
    """Ids, where the answer begins, and the lead (share of the best logit) of each token of it."""

    ids: list[int]
    start: int
    leads: Array


class Replay(TokenEngine):
    """Says what a text says, with its leads, and rounds where a chip would."""

    def __init__(self, text: Text, noise: float, rounding: Rounding) -> None:
        self._text, self._noise, self._rounding = text, noise, rounding
        self._held: list[int] = []
        self._settled = 0
        self.seq_limit = len(text.ids)

    @property
    def seq_length(self) -> int:
        """See :class:`TokenEngine`."""
        return self.seq_limit

    @property
    def vocab_size(self) -> int:
        """See :class:`TokenEngine`."""
        return max(self._text.ids) + 2

    @property
    def rounding(self) -> Rounding:
        """See :class:`TokenEngine`."""
        return self._rounding

    @property
    def pending(self) -> int:
        """See :class:`TokenEngine`."""
        return len(self._held) - self._settled

    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        """See :class:`TokenEngine`: the sequence only ever grows."""
        del self._held[len(ids) - 1 :]
        self._settled = min(self._settled, len(self._held))
        return len(self._held)

    def pass_size(self, count: int) -> int:
        """See :class:`TokenEngine`."""
        return count

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        """See :class:`TokenEngine`."""
        exact = self.pending == 0
        self._held += ids
        if exact:
            self._settled = len(self._held)
        return self._row(len(self._held), 0.0 if exact else self._noise, 0)[None]

    def draft_limit(self) -> int:
        """See :class:`TokenEngine`."""
        return max(0, min(16, self.seq_limit - len(self._held)) - 1)

    def verify_extra(self) -> float:
        """See :class:`TokenEngine`."""
        return COSTS["int8"].extra

    def verify(self, ids: Sequence[int]) -> Array:
        """See :class:`TokenEngine`."""
        return np.array([self._row(len(self._held) + row + 1, self._noise, 1) for row in range(len(ids))])

    def accept(self, ids: Sequence[int]) -> None:
        """See :class:`TokenEngine`."""
        self._held += ids

    def settle(self, wanted: Container[int] = ()) -> Iterator[Settled]:
        """See :class:`TokenEngine`."""
        ids, start = self._held[self._settled :], self._settled
        del self._held[start:]
        for place, token in enumerate(ids, start):
            row = self.forward([token])[0]
            yield Settled(1, place, row if place in wanted else None)

    def forget(self) -> None:
        """See :class:`TokenEngine`."""

    def close(self) -> None:
        """See :class:`TokenEngine`."""

    def _row(self, count: int, noise: float, kind: int) -> Array:
        row = np.zeros(self.vocab_size, dtype=np.float32)
        if self._text.start <= count < len(self._text.ids):
            best = self._text.ids[count]
            row[best] = BEST
            row[(best + 1) % len(row)] = BEST * (1 - self._text.leads[count - self._text.start])
        if noise:
            # Of two logits' difference, `noise`; the same each time, as a chip's is.
            random = np.random.default_rng((count, kind, *self._text.ids[:8]))
            row += (BEST * noise / math.sqrt(2) * random.standard_normal(len(row))).astype(np.float32)
        return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="chatglm3")
    parser.add_argument("--every", type=int, default=1, help="take every n-th dialogue only")
    options = parser.parse_args()
    texts = demo_texts(options.family, options.every)
    print(f"{'rounding':22}{'answers':10}{'leads':10}{'rule':10}tokens  passes  settled recomputed  speed-up")
    for case in CASES:
        for kind in ("grounded", "other"):
            for leads, share in (("demo", None), ("harsh", 0.05 if kind == "grounded" else 0.25)):
                chosen = texts[kind]
                if share is not None:
                    chosen = [harsher(text, share, seed) for seed in range(SEEDS) for text in chosen]
                for rule in ("constant", "measured"):
                    print(f"{case[0]:22}{kind:10}{leads:10}{rule:10}{_replayed(chosen, case, rule)}", flush=True)


def demo_texts(family: str, every: int) -> dict[str, list[Text]]:
    """The dialogues of a demo model up to their last answers."""
    adapter, variant = parse_model(f"{family}:demo", registry())
    source = open_source(adapter, variant, load_settings())
    folder = Path(str(variant.bundled)).parent
    names = [dialogue["name"] for dialogue in json.loads((folder / "dialogues.json").read_text(encoding="utf-8"))]
    reference = StreamedReference(source.weights())
    texts: dict[str, list[Text]] = {"grounded": [], "other": []}
    for name, (ids, start) in islice(zip(names, answers(source, folder), strict=True), 0, None, every):
        logits = np.sort(reference.logits(ids).numpy()[start - 1 : -1], axis=1)
        leads = (logits[:, -1] - logits[:, -2]) / np.maximum(1, np.abs(logits[:, -1]))
        texts["grounded" if name.startswith(GROUNDED) else "other"].append(Text(ids, start, leads))
    return texts


def harsher(text: Text, share: float, seed: int) -> Text:
    """The text with leads of a model that is often unsure."""
    random = np.random.default_rng((seed, *text.ids))
    count = len(text.leads)
    leads = np.where(random.random(count) < share, random.random(count) * 0.2, 0.5)
    return Text(text.ids, text.start, leads)


def _replayed(texts: Sequence[Text], case: tuple[str, float, float, float], rule: str) -> str:
    _, noise, presumed, least = case
    rounding = Rounding(presumed, least)
    tokens = passes = settled = recomputed = 0
    cost = 0.0
    for text in texts:
        engine = Replay(text, noise, rounding if rule == "measured" else Constant(presumed))
        wanted = GenerationOptions(drafter=PromptLookup(), max_new_tokens=len(text.ids) - text.start)
        generation = generate(engine, text.ids[: text.start], wanted)
        said = [event.token_id for event in generation]
        assert said == text.ids[text.start :], "an answer is not what it would be without drafts"
        counts = generation.result.drafts
        tokens += len(said) - 1
        passes += counts.passes
        settled += counts.settled
        recomputed += counts.recomputed
        cost += counts.passes + counts.verify_passes * COSTS["int8"].extra
    margin = f"margin {rounding.margin if rule == 'measured' else presumed:.3f}"
    return f"{tokens:6}{passes:8}{settled:9}{recomputed:11}{tokens / cost:10.2f}   {margin}"


class Constant(Rounding):
    """A margin that nothing changes."""

    def compare(self, row: Array, settled: Array) -> None:
        """Learn nothing."""


if __name__ == "__main__":
    main()
