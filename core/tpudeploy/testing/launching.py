"""Examples of nets: what goes in, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tpudeploy.contracts.backend import BoundNet, Session, TensorView
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetKind, NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.testing.tiny_decoder import TinyDecoder, causal_mask

_CACHED = 17


@dataclass(frozen=True)
class Example:
    """Arrays for one net.

    :param inputs: float32 or integers, by name.
    :param outputs: float32, by name: what the weights as stored give in float32 arithmetic.
    """

    decoder: ClassVar[TinyDecoder] = TinyDecoder()
    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Bound:
    """A net that was bound to tensors of its own."""

    net: BoundNet
    inputs: dict[str, TensorView]
    outputs: dict[str, TensorView]


def example_of(net: NetSpec, quant: QuantScheme, *, seed: int = 1) -> Example:
    """An example for one of the tiny decoder's nets, the same each time."""
    random = np.random.default_rng(seed)
    decoder = Example.decoder.as_stored(quant)
    match net.kind:
        case NetKind.EMBEDDING | NetKind.EMBEDDING_ONE:
            shape = net.input("input_ids").shape
            ids = random.integers(0, decoder.config.vocab_size, shape, dtype=np.int32)
            return Example({"input_ids": ids}, {"input_states": decoder.embed(ids)})
        case NetKind.LM_HEAD:
            states = _normal(random, net.input("hidden_states").shape)
            return Example({"hidden_states": states}, {"logits": decoder.logits(states)})
        case _:
            return _block_example(net, decoder, random)


def _block_example(net: NetSpec, decoder: TinyDecoder, random: np.random.Generator) -> Example:
    new, cache_length = net.stage.new_tokens, net.stage.cache_length
    cached = min(_CACHED, cache_length)
    inputs = {
        "input_states": _normal(random, net.input("input_states").shape),
        "position_ids": np.arange(cached, cached + new, dtype=np.int32)[None],
        "attention_mask": causal_mask(new, cached, cache_length),
    }
    history = None
    if cache_length:
        history = (_normal(random, net.input("history_k").shape), _normal(random, net.input("history_v").shape))
        inputs |= {"history_k": history[0], "history_v": history[1]}
    results = decoder.block(
        net.layer or 0, inputs["input_states"], inputs["position_ids"], inputs["attention_mask"], history
    )
    return Example(inputs, dict(zip(("output_states", "present_k", "present_v"), results, strict=True)))


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def bind_fresh(session: Session, net: NetSpec, example: Example, *, room: int = 1) -> Bound:
    """Allocate a buffer for each tensor, write the inputs, and bind the net.

    :param room: how many times its size each tensor's buffer has.
    """

    def tensor(name: str) -> TensorView:
        spec = next(spec for spec in (*net.inputs, *net.outputs) if spec.name == name)
        return TensorView(session.allocate(room * spec.size_bytes, chip=net.chip), spec.shape, spec.dtype)

    inputs = {spec.name: tensor(spec.name) for spec in net.inputs}
    outputs = {spec.name: tensor(spec.name) for spec in net.outputs}
    for name, values in example.inputs.items():
        session.write(inputs[name], values)
    return Bound(session.bind(net.name, inputs, outputs), inputs, outputs)
