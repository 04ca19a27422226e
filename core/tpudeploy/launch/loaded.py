"""A model that is ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import Self

from tpudeploy.contracts.backend import Backend
from tpudeploy.errors import TokenizerError
from tpudeploy.launch.text import TextTools
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.runtime.conversation import Conversation
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import Cancelled, Generation, GenerationOptions, generate, never

NO_TOKENIZER_HINT = "Give token ids with --prompt-ids, or put the model's tokenizer files beside its weights."


@dataclass
class LoadedModel:
    """A bundle on its device, with what is needed to talk to it. A context manager; closing twice does nothing.

    :param text: tokenizer and template; None where the bundle ships no tokenizer or no plugin knows the model.
    """

    bundle: Bundle
    backend: Backend
    engine: Engine
    text: TextTools | None

    @property
    def title(self) -> str:
        """Name for people, for example ``chatglm3:6b``."""
        manifest = self.bundle.manifest
        return f"{manifest.model}:{manifest.variant}" if manifest.variant else manifest.model

    @property
    def quant(self) -> str:
        """Name of the quantization mode."""
        return self.bundle.manifest.quant.mode.value

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        stops = frozenset(self.bundle.manifest.stop_ids)
        return stops | self.text.template.stop_ids if self.text else stops

    def require_text(self) -> TextTools:
        """Tokenizer and template. :raises TokenizerError: there is none."""
        if self.text is None:
            raise TokenizerError(f"there is no tokenizer for {self.title}.", hint=NO_TOKENIZER_HINT)
        return self.text

    def conversation(
        self, *, system: str = "", tools: Sequence[dict[str, Any]] = (), options: GenerationOptions
    ) -> Conversation:
        """A new conversation. :raises TokenizerError: the model has no tokenizer here."""
        text = self.require_text()
        options = replace(options, stop_ids=options.stop_ids | self.stop_ids)
        return Conversation(self.engine, text.tokenizer, text.template, system=system, tools=tools, options=options)

    def generate(
        self, prompt_ids: Sequence[int], options: GenerationOptions, *, cancelled: Cancelled = never
    ) -> Generation:
        """Continue token ids as they are, without a template."""
        options = replace(options, stop_ids=options.stop_ids | self.stop_ids)
        return generate(self.engine, prompt_ids, options, cancelled=cancelled)

    def close(self) -> None:
        """Free the device. Idempotent."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
