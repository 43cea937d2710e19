"""Pilotlight: high-throughput inference with small models on GPUs that come and go.

The public names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pilotlight.client.contexts import Context, context
    from pilotlight.client.jobs import Job
    from pilotlight.client.llm import LLM
    from pilotlight.client.pool import Pool
    from pilotlight.client.results import Classification, Generation, Result, RowError
    from pilotlight.client.sampling import SamplingParams
    from pilotlight.core.errors import ConfigError, JobCancelled, JobFailed, PilotlightError
    from pilotlight.views import ContextView, JobView
    from pilotlight.wire import Operation, WorkerShape

_HOME = {
    "Context": "client.contexts",
    "context": "client.contexts",
    "Job": "client.jobs",
    "LLM": "client.llm",
    "Pool": "client.pool",
    "Classification": "client.results",
    "Generation": "client.results",
    "Result": "client.results",
    "RowError": "client.results",
    "SamplingParams": "client.sampling",
    "ConfigError": "core.errors",
    "JobCancelled": "core.errors",
    "JobFailed": "core.errors",
    "PilotlightError": "core.errors",
    "ContextView": "views",
    "JobView": "views",
    "Operation": "wire",
    "WorkerShape": "wire",
}

__all__ = [
    "LLM",
    "Classification",
    "ConfigError",
    "Context",
    "ContextView",
    "Generation",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobView",
    "Operation",
    "PilotlightError",
    "Pool",
    "Result",
    "RowError",
    "SamplingParams",
    "WorkerShape",
    "__version__",
    "context",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
