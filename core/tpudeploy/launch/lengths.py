"""How many tokens a bundle should hold, where the user does not say."""

from __future__ import annotations

from tpudeploy.contracts.net_plan import DEFAULT_SEQ_LENGTH
from tpudeploy.errors import SequenceTooLongError, UsageError

ANSWER_ROOM_TOKENS = 256
"""Room for an answer of no stated length."""


def choose_seq_length(asked: int | None, model_length: int, *, prompt_tokens: int, max_new_tokens: int | None) -> int:
    """What was asked for; otherwise the default, doubled until prompt and answer fit, as far as the model goes.

    Doubling keeps the number of different bundles small. A prompt that fits is never refused because its answer
    might not: the answer then ends at the model's limit.

    :param model_length: tokens that the model was made for.
    :raises SequenceTooLongError: more than the model was made for.
    :raises UsageError: not a positive number.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"the sequence length must be 1 or more, not {asked}.")
    longest = asked or model_length
    if longest > model_length:
        raise SequenceTooLongError(
            f"sequence length {longest} is over this model's {model_length} tokens.",
            hint=f"Choose --seq-length {model_length} or less.",
        )
    if prompt_tokens > longest:
        what = f"--seq-length is {longest}" if asked else f"this model holds {longest}"
        raise SequenceTooLongError(f"the prompt has {prompt_tokens} tokens, but {what}.", hint="Shorten the prompt.")
    if asked is not None:
        return asked
    # The last token of an answer need not be in the cache.
    needed = prompt_tokens + (max_new_tokens or ANSWER_ROOM_TOKENS) - 1
    length = DEFAULT_SEQ_LENGTH
    while length < needed:
        length *= 2
    return min(length, model_length)
