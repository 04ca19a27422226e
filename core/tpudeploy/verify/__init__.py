"""Verifying a model: how far each of its nets, and the whole of it, are from the torch reference.

Importing it loads no torch; calling :func:`verify_model` does.
"""

from tpudeploy.verify.model import VerifyOptions, verify_model
from tpudeploy.verify.prompts import Prompt
from tpudeploy.verify.report import NetRow, PromptRow, Skipped, TargetReport, Verdict, VerifyReport
from tpudeploy.verify.targets import usable_backends

__all__ = [
    "NetRow",
    "Prompt",
    "PromptRow",
    "Skipped",
    "TargetReport",
    "Verdict",
    "VerifyOptions",
    "VerifyReport",
    "usable_backends",
    "verify_model",
]
