"""How much of a token's time the host takes: the real runtime over a device that does nothing.

Usage, from the repository's root, with the package installed::

    python scripts/bench_host.py [--tokens 200] [--seq-length 512] [--flat]

Nets are not run and device memory is plain memory. What is left is what the runtime adds to each token on any
backend: choosing a pass, writing its inputs, moving where present keys and values go, launching, reading and
converting logits, and sampling.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

import numpy as np

from tpudeploy.contracts.backend import BoundNet, Buffer, MemoryReport, Session, TensorView
from tpudeploy.contracts.bundle import BundleFormat, CompilerInfo, Manifest
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.loadable import loadable_of
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.quant import QuantMode, resolve_quant
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.runtime.sampling import SamplingOptions

TARGET_MS = 2.0
MODELS = {
    "ChatGLM3-6B": (28, 65024, DType.F16),
    "GLM-4-9B": (40, 151552, DType.BF16),
}
SAMPLING = {
    "greedy": SamplingOptions(),
    "top-p 0.8": SamplingOptions(temperature=0.8, top_p=0.8, seed=1),
    "top-k 50, top-p 0.8": SamplingOptions(temperature=0.8, top_k=50, top_p=0.8, seed=1),
    "all options": SamplingOptions(temperature=0.8, top_k=50, top_p=0.8, repetition_penalty=1.1, seed=1),
    "temperature only": SamplingOptions(temperature=0.8, seed=1),
}


class IdleBuffer(Buffer):
    """Plain memory."""

    def __init__(self, size_bytes: int, chip: int) -> None:
        self.size_bytes = size_bytes
        self.chip = chip
        self.data = np.zeros(size_bytes, dtype=np.uint8)


class IdleNet(BoundNet):
    """Launches nothing, but checks and stores offsets as a backend must."""

    def __init__(self, views: dict[str, TensorView]) -> None:
        self._limits = {name: view.buffer.size_bytes - view.size_bytes for name, view in views.items()}
        self._offsets = dict.fromkeys(views, 0)

    def launch(self) -> None:
        """Do nothing."""

    def move_output(self, name: str, offset_bytes: int) -> None:
        """Store an offset."""
        assert 0 <= offset_bytes <= self._limits[name]
        self._offsets[name] = offset_bytes

    move_input = move_output


class IdleSession(Session):
    """A device that does nothing; its logits are always the same."""

    def __init__(self, manifest: Manifest) -> None:
        self.loaded = loadable_of(manifest)
        self._manifest = manifest
        self._buffers: list[IdleBuffer] = []

    def allocate(self, size_bytes: int, *, chip: int = 0) -> IdleBuffer:
        """New memory."""
        self._buffers.append(IdleBuffer(size_bytes, chip))
        return self._buffers[-1]

    def write_bytes(self, buffer: Buffer, data: Array, offset_bytes: int) -> None:
        """Copy in."""
        assert isinstance(buffer, IdleBuffer)
        buffer.data[offset_bytes : offset_bytes + data.nbytes] = data.reshape(-1).view(np.uint8)

    def read_bytes(self, buffer: Buffer, out: Array, offset_bytes: int) -> None:
        """Copy out."""
        assert isinstance(buffer, IdleBuffer)
        out.reshape(-1).view(np.uint8)[:] = buffer.data[offset_bytes : offset_bytes + out.nbytes]

    def sync(self) -> None:
        """Nothing to wait for."""

    def memory(self) -> MemoryReport:
        """What was allocated."""
        return MemoryReport(weights_bytes=0, buffers_bytes=sum(buffer.size_bytes for buffer in self._buffers))

    def close(self) -> None:
        """Nothing to free."""

    def set_logits(self, net: NetSpec, values: Array) -> None:
        """Make ``values`` the output of the buffers that are as large as the net's logits."""
        size = net.output("logits").size_bytes
        for buffer in self._buffers:
            if buffer.size_bytes == size:
                self.write(TensorView(buffer, net.output("logits").shape, net.output("logits").dtype), values)

    def _bind(self, net: NetSpec, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
        del net
        return IdleNet({**inputs, **outputs})


def full_config(layers: int, vocab_size: int, seq_length: int) -> DecoderConfig:
    """The shapes that both families share, at full width."""
    return DecoderConfig(
        num_layers=layers,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=2,
        head_dim=128,
        ffn_size=13696,
        vocab_size=vocab_size,
        seq_length=seq_length,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rotary_dim=64,
    )


def new_engine(config: DecoderConfig, activation: DType, *, flat: bool) -> Engine:
    """An engine over an idle device whose logits look like a language model's, or are flat."""
    manifest = Manifest(
        model="idle",
        variant="",
        checkpoint_digest="",
        format=BundleFormat.BMODEL,
        quant=resolve_quant(QuantMode.INT8, activation),
        nets=plan_nets(config, NetPlan(seq_length=config.seq_length), activation),
        net_files={},
        compiler=CompilerInfo(name="none", version="0"),
        tpudeploy_version="0",
        files=(),
    )
    session = IdleSession(manifest)
    engine = Engine(session)
    random = np.random.default_rng(0)
    logits = random.normal(0, 2.5, (1, 1, config.vocab_size)).astype(np.float32)
    if not flat:
        # A few tokens stand out, as in a language model's output; the other thousands share little.
        logits[0, 0, random.integers(0, config.vocab_size, 20)] = np.linspace(10, 20, 20)
    session.set_logits(manifest.nets.net("lm_head"), logits)
    return engine


def time_tokens(engine: Engine, sampling: SamplingOptions, tokens: int) -> list[float]:
    """Host milliseconds of each decoded token, at the far end of the cache."""
    prompt = [position % 1000 for position in range(engine.seq_length - tokens)]
    generation = generate(engine, prompt, GenerationOptions(sampling=sampling, drafter=None))
    next(generation)
    times = []
    started = time.perf_counter()
    for _ in generation:
        now = time.perf_counter()
        times.append((now - started) * 1000)
        started = now
    return times


def main() -> int:
    """Print a table; 1 where a median misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="tokens to time in each case")
    parser.add_argument("--seq-length", type=int, default=512, help="tokens that the cache holds")
    parser.add_argument("--flat", action="store_true", help="logits in which nothing stands out: top-p's worst case")
    options = parser.parse_args()
    missed = False
    print(f"{'model':12} {'sampling':20} {'median ms':>10} {'p95 ms':>8}   (target {TARGET_MS} ms)")
    for name, (layers, vocab_size, activation) in MODELS.items():
        config = full_config(layers, vocab_size, options.seq_length)
        engine = new_engine(config, activation, flat=options.flat)
        for what, sampling in SAMPLING.items():
            times = sorted(time_tokens(engine, sampling, options.tokens))
            median = statistics.median(times)
            missed |= median >= TARGET_MS
            print(f"{name:12} {what:20} {median:10.3f} {times[int(len(times) * 0.95)]:8.3f}")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
