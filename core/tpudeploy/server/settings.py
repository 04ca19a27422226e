"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from tpudeploy.contracts.drafter import Drafter
from tpudeploy.runtime.prompt_lookup import PromptLookup


@dataclass(frozen=True)
class Limits:
    """How much one request, and all that wait, may ask for.

    :param queue: requests that may wait for a worker; those that run do not count.
    :param timeout_s: seconds from a request's arrival to the end of its answer.
    :param body_bytes: of a request.
    :param body_s: seconds in which the head of a request must have arrived, and then its body.
    :param stalled_s: seconds for which a client may take nothing of what it is sent.
    """

    queue: int = 64
    timeout_s: float = 600.0
    body_bytes: int = 4 << 20
    body_s: float = 30.0
    stalled_s: float = 60.0
    messages: int = 1024
    tools: int = 128
    stop_strings: int = 4
    stop_chars: int = 256
    prompts: int = 16


@dataclass(frozen=True)
class ServerSettings:
    """How to serve.

    :param api_keys: whoever has one of these is answered; none: everybody is.
    :param names: names for the model beside its own.
    :param cors_origins: origins whose pages may ask; ``*`` for any.
    :param allowed_hosts: what a Host header may name; empty: anything.
    :param log_prompts: write prompts and answers to the log.
    :param keep_alive_s: seconds between signs of life in a stream that has nothing to say yet.
    """

    api_keys: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    log_prompts: bool = False
    keep_alive_s: float = 10.0
    limits: Limits = field(default_factory=Limits)
    drafter: Drafter | None = field(default_factory=PromptLookup)


LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names under which a server on the loopback interface may be asked for."""
