"""The API's description against the server: requests that it allows, and many that it does not, made by schemathesis.

No response is a 5xx, and each has a status, a content type and a body that the description has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from cli_support import environment, run_program
from server_support import RunningServer, ScriptedEngine, fake_model
from tpudeploy.launch import LaunchRequest, open_target
from tpudeploy.plugins import registry
from tpudeploy.server.settings import LOOPBACK_HOSTS, Limits, ServerSettings
from tpudeploy.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports is not ours
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import checks

KEY = "a key of the test"
HEADERS = {"Authorization": f"Bearer {KEY}"}
EXCLUDED = [
    # What a schema cannot say is refused as well: a prompt that is too long, four stop strings at most, ...
    checks.positive_data_acceptance,
]
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def settings_of() -> ServerSettings:
    return ServerSettings(api_keys=(KEY.replace(" ", "-"),), allowed_hosts=LOOPBACK_HOSTS, limits=Limits(timeout_s=20))


@pytest.fixture(scope="module")
def scripted() -> Iterator[RunningServer]:
    engine = ScriptedEngine("fine", endless=False)
    with RunningServer([fake_model(engine, calls=True)], settings_of()) as server:
        yield server
