"""A bmodel that others made as a target: the file is described by the backend, and understood by its layout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.source import local_folder, parse_model
from tpudeploy.contracts.adapter import ModelAdapter, ModelVariant
from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.contracts.progress import Progress, no_progress
from tpudeploy.errors import BundleError, TokenizerError, UnknownNameError, UsageError
from tpudeploy.launch.backends import choose_backend, choose_devices
from tpudeploy.launch.fit import require_room
from tpudeploy.launch.loaded import Identity, LoadedModel
from tpudeploy.launch.request import LaunchRequest
from tpudeploy.launch.requirement import nets_requirement
from tpudeploy.launch.targets import Target
from tpudeploy.launch.text import TextTools, has_tokenizer, load_text
from tpudeploy.launch.usage import check_usage
from tpudeploy.plugins import PluginRegistry
from tpudeploy.runtime.foreign.detect import detect_layout
from tpudeploy.runtime.foreign.engine import ForeignEngine
from tpudeploy.runtime.foreign.layout import ForeignLayout, HiddenMark
from tpudeploy.settings import Settings

TABLE = "embedding.bin"
QUANT = "bmodel"
"""Stands where a quantization mode is shown: the file does not tell."""


@dataclass(frozen=True)
class ForeignTarget(Target):
    """A bmodel of a known layout.

    :param path: the file.
    :param tokenizer: folder of a tokenizer, or None.
    :param mark: how hidden positions are marked; None asks the nets.
    :param table: a file with the embedding, or None.
    """

    request: LaunchRequest
    adapter: ModelAdapter
    variant: ModelVariant
    backend: Backend
    path: Path
    nets: Loadable
    layout: ForeignLayout
    tokenizer: Path | None
    mark: HiddenMark | None
    table: Path | None

    @classmethod
    def open(cls, request: LaunchRequest, settings: Settings, registry: PluginRegistry) -> ForeignTarget:
        """Read what the file says of itself.

        :raises UsageError: no model or another option's contradiction.
        :raises BundleError: no such file, damaged, or of a layout that is not known.
        """
        check_usage(request)
        path = _existing(request)
        adapter, variant = parse_model(request.model, registry)
        mark = parse_mark(request.mask)
        backend = choose_backend(registry, request.backend, BundleFormat.BMODEL)
        nets = backend.describe(path)
        table = _find_table(path, request.tokenizer_dir)
        layout = detect_layout(nets, path.name, has_table=table is not None)
        if request.seq_length not in (None, layout.cache_length):
            raise UsageError(f"{path.name} holds {layout.cache_length} tokens; --seq-length cannot change that.")
        tokenizer = request.tokenizer_dir or local_folder(adapter, variant, settings)
        return cls(request, adapter, variant, backend, path, nets, layout, tokenizer, mark, table)

    def text(self) -> TextTools | None:
        """From the folder that was named, or else from the model's checkpoint on this machine."""
        if self.tokenizer is None:
            return None
        if self.request.tokenizer_dir is None and not has_tokenizer(self.adapter, self.tokenizer):
            return None
        tools = load_text(self.adapter, self.tokenizer)
        have, need = self.layout.known_ids or self.layout.vocab_size, tools.tokenizer.vocab_size
        if have is not None and have < need:
            raise TokenizerError(
                f"the tokenizer in {self.tokenizer} has {need} ids, but {self.path.name} knows {have}.",
                hint="Give --tokenizer-dir the folder of the model that the bmodel was made from.",
            )
        return tools

    def load(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> LoadedModel:
        """Put the file on its device."""
        started = time.perf_counter()
        text = self.text()
        devices: Sequence[int] = self.request.devices
        if len(devices) in (0, self.nets.chips):  # another number is told by the backend
            devices = choose_devices(self.backend, devices, self.nets.chips)
            needed = nets_requirement(self.path.name, self.path.parent, self.nets, self.backend)
            require_room(needed, self.backend, devices)
        session = self.backend.load(self.path.parent, self.nets, devices=devices)
        try:
            engine = ForeignEngine(session, self.layout, self.mark, table=self.table)
        except BaseException:
            session.close()
            raise
        stops = frozenset(self.variant.config.eos_ids)
        title = f"{self.adapter.name} ({self.path.name})"
        identity = Identity(title, QUANT, self.path, stops, model=f"{self.adapter.name}:{self.variant.name}")
        load_s = time.perf_counter() - started
        return LoadedModel(identity, self.backend, engine, text, tuple(devices), load_s)


def _find_table(path: Path, tokenizer: Path | None) -> Path | None:
    """The embedding that ``llm_convert --embedding_disk`` leaves in a file: in ``config``, with the tokenizer."""
    folders = [path.parent, path.parent / "config", *([tokenizer] if tokenizer is not None else [])]
    return next((folder / TABLE for folder in folders if (folder / TABLE).is_file()), None)


def parse_mark(text: str) -> HiddenMark | None:
    """What ``--mask`` says; None for nothing. :raises UnknownNameError: no such mark."""
    if not text:
        return None
    try:
        return HiddenMark(text)
    except ValueError:
        raise UnknownNameError("mask", text, [mark.value for mark in HiddenMark]) from None


def _existing(request: LaunchRequest) -> Path:
    """:raises BundleError: there is no such file."""
    if request.bmodel is None or not request.bmodel.is_file():
        raise BundleError(f"there is no file {request.bmodel}.", hint="Give --bmodel the path of a .bmodel file.")
    return request.bmodel.resolve()
