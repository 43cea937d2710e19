"""What made a job's answers, for its report: the versions of the libraries, and digests of the templates.

Nothing is imported: versions come from the packages' metadata, templates from the model's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import msgspec

from pilotlight.wire import JobRequest

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


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
