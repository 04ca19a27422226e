"""A model that is ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from tpudeploy.contracts.backend import Backend
from tpudeploy.errors import TokenizerError
from tpudeploy.launch.text import TextTools
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.runtime.conversation import Conversation
from tpudeploy.runtime.generator import Generation, GenerationOptions, generate, never
from tpudeploy.runtime.token_engine import TokenEngine
from tpudeploy.runtime.writer import Cancelled

NO_TOKENIZER_HINT = "Give token ids with --prompt-ids, or put the model's tokenizer files beside its weights."


@dataclass(frozen=True)
class Identity:
    """What was loaded.

    :param title: name for people, for example ``chatglm3:6b``.
    :param quant: name of the quantization mode; ``bmodel`` for a file of others, which does not tell.
    :param path: the bundle's folder, or the file.
    :param stop_ids: ids that end an answer, as far as they are known without a tokenizer.
    :param model: family and variant; empty where that is the title.
    """

    title: str
    quant: str
    path: Path
    stop_ids: frozenset[int]
    model: str = ""


def identity_of(bundle: Bundle) -> Identity:
    """What a bundle says of itself."""
    manifest = bundle.manifest
    title = f"{manifest.model}:{manifest.variant}" if manifest.variant else manifest.model
    return Identity(title, manifest.quant.mode.value, bundle.folder, frozenset(manifest.stop_ids))


@dataclass
class LoadedModel:
    """A model on its device, with what is needed to talk to it. A context manager; closing twice does nothing.

    :param text: tokenizer and template; None where there is no tokenizer or no plugin knows the model.
    :param devices: ids of the devices that it is on, one a chip; empty where the backend chose.
    :param load_s: what it took to load the tokenizer and to put nets and buffers on their devices.
    """

    identity: Identity
    backend: Backend
    engine: TokenEngine
    text: TextTools | None
    devices: tuple[int, ...] = ()
    load_s: float = 0.0

    @property
    def title(self) -> str:
        """Name for people, for example ``chatglm3:6b``."""
        return self.identity.title

    @property
    def model(self) -> str:
        """Family and variant, for example ``chatglm3:6b``."""
        return self.identity.model or self.identity.title

    @property
    def quant(self) -> str:
        """Name of the quantization mode."""
        return self.identity.quant

    @property
    def path(self) -> Path:
        """The bundle's folder, or the file."""
        return self.identity.path

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        stops = self.identity.stop_ids
        return stops | self.text.template.stop_ids if self.text else stops

    def require_text(self) -> TextTools:
        """Tokenizer and template. :raises TokenizerError: there is none."""
        if self.text is None:
            raise TokenizerError(f"there is no tokenizer for {self.title}.", hint=NO_TOKENIZER_HINT)
        return self.text

    def with_stops(self, options: GenerationOptions) -> GenerationOptions:
        """The same options; what ends this model's answers is among them."""
        return replace(options, stop_ids=options.stop_ids | self.stop_ids)

    def conversation(
        self, *, system: str = "", tools: Sequence[dict[str, Any]] = (), options: GenerationOptions
    ) -> Conversation:
        """A new conversation. :raises TokenizerError: the model has no tokenizer here."""
        text = self.require_text()
        options = self.with_stops(options)
        return Conversation(self.engine, text.tokenizer, text.template, system=system, tools=tools, options=options)

    def generate(
        self, prompt_ids: Sequence[int], options: GenerationOptions, *, cancelled: Cancelled = never
    ) -> Generation:
        """Continue token ids as they are, without a template."""
        options = self.with_stops(options)
        return generate(self.engine, prompt_ids, options, cancelled=cancelled)

    def close(self) -> None:
        """Free the device. Idempotent."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
