"""Fields that this server does not know, or knows and cannot honour.

A field that would change the answer must not be swallowed; one that only concerns bookkeeping may. What nobody here
has heard of is ignored, as other servers do, and named in the response's header ``X-Ignored-Fields``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpudeploy.server.bodies import Body
from tpudeploy.server.errors import unsupported

_HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prediction", "reasoning_effort", "verbosity", "stream_options", "reasoning", "include", "truncation",
        "max_tool_calls",
    }
)  # fmt: skip
"""They change nothing of an answer of this model."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none",),
    "n": (1,),
    "best_of": (0, 1),
    "echo": (False,),
    "suffix": ("",),
    "min_p": (0,),
    "min_tokens": (0,),
    "typical_p": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar": ("",),
    "prompt_logprobs": (0,),
    "prompt_embeds": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "documents": ([],),
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
}
"""Values beside null that ask for nothing; any other value would change the answer."""

_INSTEAD = {
    "n": "This server gives one answer a request. Ask several times.",
    "functions": "Use tools instead.",
    "function_call": "Use tool_choice instead.",
    "modalities": "This model reads and writes text only.",
    "audio": "This model reads and writes text only.",
    "previous_response_id": "It stores nothing: send the whole conversation as input.",
    "conversation": "It stores nothing: send the whole conversation as input.",
}


def refuse_what_cannot_be(body: Body) -> list[str]:
    """Look at the fields that no route looks at.

    :returns: names of those that nobody knows.
    :raises ApiError: one of them would change the answer.
    """
    for name in body.model_fields_set:
        value = getattr(body, name)
        if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            raise unsupported(f"{name} is not supported by this server. {_INSTEAD.get(name, '')}".strip(), name)
    extra = body.model_extra or {}
    known = _HARMLESS | _NEUTRAL.keys()
    return sorted(name for name, value in extra.items() if value is not None and name not in known)
