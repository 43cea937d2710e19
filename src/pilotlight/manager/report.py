"""A run's report: what was asked for, where and when it ran, and what made its answers.

What made them: the versions of the libraries, and digests of the templates. Nothing is imported for that: versions
come from the packages' metadata, templates from the model's folder. What the output says of itself (rows, errors,
digests) is added by `io/workfolder.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import msgspec

from pilotlight import __version__
from pilotlight.manager.jobs import PathJob
from pilotlight.manager.ledger import since
from pilotlight.views import Totals
from pilotlight.wire import JobRequest, PathInput, PoolSpec

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def run_report(job: PathJob, spec: PoolSpec, totals: Totals) -> dict[str, Any]:
    """What a run's report says; see the module's text. Reads the model's folder."""
    request = job.request
    assert isinstance(request.input, PathInput)
    context = {k: v for k, v in msgspec.to_builtins(request.context).items() if k != "load"}
    return {
        "pilotlight": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.began_s)),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(time.monotonic() - job.began_monotonic_s, 3),
        "arguments": request.arguments,
        "inputs": request.input.paths,
        "context": {**context, "id": request.context.id},
        "operation": {**msgspec.to_builtins(request.operation), "id": request.operation.id},
        "made_with": made_with(request),
        "rows_resumed": job.rows_resumed,
        "job": job.job_id,
        "pool_name": spec.name,
        "log_dir": spec.log_dir,
        "pool": msgspec.to_builtins(since(totals, job.totals_before)),
    }


def made_with(request: JobRequest) -> dict[str, Any]:
    """`versions` (package -> version, of those that are installed), `prompt_template_sha256` and
    `chat_template_sha256`; each only where there is such a thing. Reads the model's folder; never raises for what it
    finds there."""
    found: dict[str, Any] = {}
    template = request.operation.prompt_template
    if request.context.model_path is not None:
        found["versions"] = _versions()
        if (chat := _chat_template(Path(request.context.model_path))) is not None:
            found["chat_template_sha256"] = _sha256(chat)
    if template is not None:
        found["prompt_template_sha256"] = _sha256(template)
    return found


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _chat_template(folder: Path) -> str | None:
    """As transformers looks for it: a file of its own comes before what the tokenizer's settings say."""
    with contextlib.suppress(OSError, ValueError):
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        settings = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes(), type=dict[str, Any])
        given: Any = settings.get("chat_template")
        if isinstance(given, list):  # several by name, of which chats without tools use `default`
            named = [cast("dict[str, Any]", item) for item in cast("list[Any]", given) if isinstance(item, dict)]
            given = next((item.get("template") for item in named if item.get("name") == "default"), None)
        return given if isinstance(given, str) else None
    return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
