"""From the fields of a request to the options of a generation."""

from __future__ import annotations

from tpudeploy.errors import UsageError
from tpudeploy.launch.generation import generation_options
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.server.bodies import GeneratingBody, SamplingBody
from tpudeploy.server.errors import invalid, unsupported
from tpudeploy.server.settings import Limits, ServerSettings

_LEAST_TOP_P = 1e-6
"""Stands for 0, which OpenAI's API allows: the most likely token alone."""
_SEEDS = 1 << 64


def options_of(body: SamplingBody, settings: ServerSettings, *, max_tokens: int | None) -> GenerationOptions:
    """How to generate.

    :raises ApiError: a value that the runtime does not take.
    """
    if isinstance(body, GeneratingBody):
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(body, name):
                raise unsupported(f"{name} is not supported by this server.", name)
    top_p = 1.0 if body.top_p is None else max(body.top_p, _LEAST_TOP_P)
    try:
        return generation_options(
            max_new_tokens=max_tokens,
            ignore_eos=bool(getattr(body, "ignore_eos", False)),
            temperature=body.temperature,
            top_k=max(body.top_k or 0, 0),
            top_p=top_p,
            repetition_penalty=body.repetition_penalty or 1.0,
            seed=None if body.seed is None else body.seed % _SEEDS,
            drafter=settings.drafter,
        )
    except UsageError as error:
        raise invalid(str(error)) from error


def stop_of(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    """Strings that end an answer. :raises ApiError: too many, too long, or empty."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.stop_strings:
        raise invalid(f"stop takes at most {limits.stop_strings} strings, not {len(stops)}.", "stop")
    for text in stops:
        if not 0 < len(text) <= limits.stop_chars:
            raise invalid(f"A stop string has 1 to {limits.stop_chars} characters, not {len(text)}.", "stop")
    return stops
