"""Fetching published checkpoints: from Hugging Face or ModelScope into the models folder, resumable and checked."""

from tpudeploy.fetch.download import fetch_checkpoint
from tpudeploy.fetch.model import FetchFile, FetchPlan, FetchProgress, Hub, no_fetch_progress
from tpudeploy.fetch.plan import plan_fetch

__all__ = [
    "FetchFile",
    "FetchPlan",
    "FetchProgress",
    "Hub",
    "fetch_checkpoint",
    "no_fetch_progress",
    "plan_fetch",
]
