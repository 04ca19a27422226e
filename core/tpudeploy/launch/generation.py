"""How to generate, from what a user says of it."""

from __future__ import annotations

from collections.abc import Mapping

from tpudeploy.contracts.drafter import NO_DRAFTS, PROMPT_LOOKUP, Drafter
from tpudeploy.errors import UnknownNameError
from tpudeploy.plugins import PluginRegistry
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.runtime.sampling import SamplingOptions


def generation_options(
    *,
    max_new_tokens: int | None = None,
    ignore_eos: bool = False,
    greedy: bool = False,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    drafter: Drafter | None = None,
    logprobs: int | None = None,
) -> GenerationOptions:
    """Options of one answer.

    :param greedy: wins over the temperature.
    :param temperature: None means greedy, or 1 where tokens are to be drawn because of ``top_k`` or ``top_p``.
    :param logit_bias: by token id; None for none.
    :param drafter: see :func:`find_drafter`; None for none.
    :param logprobs: see :class:`GenerationOptions`.
    :raises UsageError: a value out of its range.
    """
    if temperature is None:
        temperature = 1.0 if top_k > 0 or top_p < 1 else 0.0
    sampling = SamplingOptions(
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias or {},
        seed=seed,
    )
    return GenerationOptions(
        max_new_tokens=max_new_tokens, ignore_eos=ignore_eos, drafter=drafter, sampling=sampling, logprobs=logprobs
    )


def find_drafter(name: str, registry: PluginRegistry) -> Drafter | None:
    """The drafter called ``name``; None for ``none``.

    :raises UnknownNameError: no plugin has one of that name.
    """
    if name == NO_DRAFTS:
        return None
    if name == PROMPT_LOOKUP:
        return PromptLookup()
    if name not in registry.drafters:
        raise UnknownNameError("drafter", name, [PROMPT_LOOKUP, *registry.drafters, NO_DRAFTS])
    return registry.drafters[name]
