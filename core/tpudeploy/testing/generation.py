"""A prompt and a few tokens after it, driven by hand through a session: the least that a runtime does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tpudeploy.contracts.backend import BoundNet, Buffer, Session, TensorView
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetKind, Stage, TensorSpec
from tpudeploy.testing.launching import Example
from tpudeploy.testing.tiny_decoder import DECODE, PREFILL, causal_mask

_PROMPT = (5, 200, 31, 7, 99, 150, 3, 42)
_NEW_TOKENS = (17, 230, 64)


def continue_greedily(session: Session) -> tuple[Array, Array]:
    """Run a prompt in one pass and three given tokens in one each, keys and values going straight into a cache.

    :returns: logits (4, vocab) of the session, and of the reference: after the prompt, and after each token.
    """
    hand = HandDriver(session)
    found = [hand.run(PREFILL, _PROMPT)]
    found += [hand.run(DECODE, (token,)) for token in _NEW_TOKENS]
    ids = np.array([[*_PROMPT, *_NEW_TOKENS]])
    wanted = Example.decoder.as_stored(session.manifest.quant).run(ids)[0, len(_PROMPT) - 1 :]
    return np.concatenate(found), wanted


@dataclass
class _Pass:
    ids: TensorView
    positions: TensorView
    mask: TensorView
    states: TensorView
    nets: list[BoundNet]


class HandDriver:
    """Prefill and decode passes over one cache, hidden states alternating between two buffers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        nets = session.manifest.nets
        self._dtype = nets.activation
        self._cached = 0
        self._row_bytes = nets.config.kv_size * self._dtype.itemsize_bytes
        rows = nets.seq_length + PREFILL.new_tokens
        self._caches = [
            {name: session.allocate(rows * self._row_bytes) for name in ("k", "v")}
            for _ in range(nets.config.num_layers)
        ]
        state_bytes = PREFILL.new_tokens * nets.config.hidden_size * self._dtype.itemsize_bytes
        self._states = [session.allocate(state_bytes) for _ in range(2)]
        self._passes = {stage: self._bind(stage) for stage in (PREFILL, DECODE)}
        head = nets.net("lm_head")
        self._logits = session.tensor(head.output("logits"))
        last = self._passes[PREFILL].states.buffer
        self._head = session.bind(
            "lm_head",
            {"hidden_states": self._view(head.input("hidden_states"), last)},
            {"logits": self._logits},
        )

    def _bind(self, stage: Stage) -> _Pass:
        session, nets = self._session, self._session.manifest.nets
        kind = NetKind.EMBEDDING if stage == PREFILL else NetKind.EMBEDDING_ONE
        embedding = next(net for net in nets.of_kind(kind) if net.stage.new_tokens == stage.new_tokens)
        blocks = [net for net in nets.nets if net.stage == stage and net.kind.is_block]
        shared = {name: session.tensor(blocks[0].input(name)) for name in ("position_ids", "attention_mask")}
        ids = session.tensor(embedding.input("input_ids"))
        states = self._view(blocks[0].input("input_states"), self._states[0])
        bound = [session.bind(embedding.name, {"input_ids": ids}, {"input_states": states})]
        for layer, net in enumerate(blocks):
            inputs = {"input_states": states, **shared}
            states = self._view(net.output("output_states"), self._states[(layer + 1) % 2])
            outputs = {"output_states": states}
            for name, cache in self._caches[layer].items():
                inputs[f"history_{name}"] = self._view(net.input(f"history_{name}"), cache)
                outputs[f"present_{name}"] = self._view(net.output(f"present_{name}"), cache)
            bound.append(session.bind(net.name, inputs, outputs))
        return _Pass(ids, shared["position_ids"], shared["attention_mask"], states, bound)

    def _view(self, spec: TensorSpec, buffer: Buffer) -> TensorView:
        return TensorView(buffer, spec.shape, self._dtype)

    def run(self, stage: Stage, ids: tuple[int, ...]) -> Array:
        """Logits (1, vocab) after ``ids``, which fill the stage."""
        step, new = self._passes[stage], stage.new_tokens
        self._session.write(step.ids, np.array([ids], dtype=np.int32))
        self._session.write(step.positions, np.arange(self._cached, self._cached + new, dtype=np.int32)[None])
        self._session.write(step.mask, causal_mask(new, self._cached, stage.cache_length))
        for net in step.nets[1:]:
            net.move_output("present_k", self._cached * self._row_bytes)
            net.move_output("present_v", self._cached * self._row_bytes)
        for net in step.nets:
            net.launch()
        self._cached += new
        row_bytes = step.states.size_bytes // new
        self._head.move_input("hidden_states", (new - 1) * row_bytes)
        self._head.launch()
        logits: Array = self._session.read(self._logits)[0]
        return logits
