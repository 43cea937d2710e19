"""A report says what made the answers."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pilotlight.manager.report import made_with
from pilotlight.wire import Context, JobRequest, Operation, StreamInput, StreamOutput


def _made(folder: Path | None, template: str | None = None) -> dict[str, Any]:
    path = None if folder is None else str(folder)
    context = Context(runtime="transformers", name="m", identity="x", model_path=path)
    operation = Operation(kind="generate", prompt_template=template)
    return made_with(JobRequest(context=context, operation=operation, input=StreamInput(), output=StreamOutput()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_templates_are_digested(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "settings é"}))
    made = _made(tmp_path, "Claim: {claim}")
    assert made["prompt_template_sha256"] == _sha256("Claim: {claim}")
    assert made["chat_template_sha256"] == _sha256("settings é")
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert _made(tmp_path)["chat_template_sha256"] == _sha256("own file")
    assert "prompt_template_sha256" not in _made(tmp_path)


def test_of_several_chat_templates_the_default_counts(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert _made(tmp_path)["chat_template_sha256"] == _sha256("b")


@pytest.mark.parametrize("text", ["{", "[]", '{"chat_template": 3}', '{"chat_template": ["x"]}', "{}"])
def test_odd_settings_have_no_template(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert "chat_template_sha256" not in _made(tmp_path)


def test_versions_are_those_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "tokenizers":
            raise metadata.PackageNotFoundError
        return f"{package} 1"

    monkeypatch.setattr(metadata, "version", version)
    versions = _made(tmp_path)["versions"]
    assert versions == {name: f"{name} 1" for name in ("torch", "transformers", "safetensors")}


def test_a_function_is_made_with_none_of_them() -> None:
    assert _made(None) == {}
