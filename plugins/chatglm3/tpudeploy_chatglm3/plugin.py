"""The plugin's entry point: registers the family."""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.hookspecs import hookimpl
from tpudeploy_chatglm3.adapter import ChatGLM3


@hookimpl
def tpudeploy_models() -> Sequence[ModelAdapter]:
    """Register ChatGLM3."""
    return [ChatGLM3()]
