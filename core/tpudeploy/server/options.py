"""From the fields of a request to the options of a generation."""

from __future__ import annotations

from typing import Any

from tpudeploy.errors import UsageError
from tpudeploy.launch.generation import generation_options
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.server.bodies import GeneratingBody, SamplingBody
from tpudeploy.server.errors import invalid
from tpudeploy.server.settings import Limits, ServerSettings

_LEAST_TOP_P = 1e-6
"""Stands for 0, which OpenAI's API allows: the most likely token alone."""
_SEEDS = 1 << 64
_MOST_BIASES = 1024
_ID_DIGITS = 10


def options_of(
    body: SamplingBody, settings: ServerSettings, *, max_tokens: int | None, logprobs: int | None = None
) -> GenerationOptions:
    """How to generate.

    :param logprobs: see :class:`GenerationOptions`.
    :raises ApiError: a value that the runtime does not take.
    """
    more: dict[str, Any] = {}
    if isinstance(body, GeneratingBody):
        more = {
            "ignore_eos": bool(body.ignore_eos),
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "logit_bias": _biases(body.logit_bias or {}),
        }
    try:
        return generation_options(
            max_new_tokens=max_tokens,
            temperature=body.temperature,
            top_k=max(body.top_k or 0, 0),
            top_p=1.0 if body.top_p is None else max(body.top_p, _LEAST_TOP_P),
            repetition_penalty=body.repetition_penalty or 1.0,
            seed=None if body.seed is None else body.seed % _SEEDS,
            drafter=settings.drafter,
            logprobs=logprobs,
            **more,
        )
    except UsageError as error:
        raise invalid(str(error)) from error


def _biases(given: dict[str, float]) -> dict[int, float]:
    """By token id. :raises ApiError: keys that are no ids."""
    if len(given) > _MOST_BIASES:
        raise invalid(f"logit_bias takes at most {_MOST_BIASES} tokens.", "logit_bias")
    if not all(key.isascii() and key.isdecimal() and len(key) < _ID_DIGITS for key in given):
        raise invalid("The keys of logit_bias are token ids.", "logit_bias")
    return {int(key): bias for key, bias in given.items()}


def stop_of(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    """Strings that end an answer. :raises ApiError: too many, too long, or empty."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.stop_strings:
        raise invalid(f"stop takes at most {limits.stop_strings} strings, not {len(stops)}.", "stop")
    for text in stops:
        if not 0 < len(text) <= limits.stop_chars:
            raise invalid(f"A stop string has 1 to {limits.stop_chars} characters, not {len(text)}.", "stop")
    return stops
