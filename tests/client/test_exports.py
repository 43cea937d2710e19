"""The public surface is what it says, and importing it costs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pilotlight

NAMES = [
    "Classification",
    "ConfigError",
    "Context",
    "ContextView",
    "Generation",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobView",
    "LLM",
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


def test_exports() -> None:
    assert sorted(pilotlight.__all__) == NAMES
    assert sorted(dir(pilotlight)) == NAMES
    assert all(getattr(pilotlight, name) is not None for name in NAMES)


def test_a_model_is_named_without_importing_anything_heavy() -> None:
    script = (
        "import sys, pilotlight as pl; pl.LLM('x/y'); pl.SamplingParams(top_k=3); pl.Pool(1);"
        "print([name for name in ('torch', 'transformers', 'rich', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_the_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pilotlight.cli.main import invoke\ninvoke(['--help'])\n"
        "print([name for name in ('torch', 'transformers', 'msgspec', 'numpy', 'asyncio') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"
