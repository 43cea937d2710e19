"""Models are found, told apart by content, and missing ones are one helpful sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilotlight.core.errors import ConfigError, ModelNotFound
from pilotlight.manager import models
from pilotlight.wire import Context, JobRequest, Operation, Sampling, StreamInput, StreamOutput


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "some-model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_a_folder_is_its_absolute_path_and_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = models.resolve(str(folder))
    monkeypatch.chdir(folder.parent)
    assert models.resolve("some-model") == absolute
    assert absolute.path == str(folder)
    assert absolute.name == "some-model"


@pytest.mark.parametrize("changed", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_content_changes_the_identity(folder: Path, changed: str) -> None:
    before = models.resolve(str(folder)).identity
    (folder / changed).write_bytes((folder / changed).read_bytes()[::-1])
    assert models.resolve(str(folder)).identity != before


def test_a_copy_elsewhere_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    other = folder.rename(tmp_path / "elsewhere")
    (other / "README.md").write_text("a card changes no answer")
    moved = models.resolve(str(other))
    other.rename(folder)
    assert models.resolve(str(folder)).identity == moved.identity


def test_large_weights_are_sampled_at_both_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WHOLE_BYTES_MAX", 100)
    monkeypatch.setattr(models, "SAMPLE_BYTES", 10)
    weights = folder / "model.safetensors"
    digests: set[str] = set()
    for at in (0, 999):
        data = bytearray(1000)
        data[at] = 1
        weights.write_bytes(data)
        digests.add(models.content_digest(folder))
    weights.write_bytes(bytes(1001))
    digests.add(models.content_digest(folder))
    assert len(digests) == 3


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="safetensors"):
        models.resolve(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        models.resolve(name)


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--revision"):
        models.resolve(str(folder), "main")


def test_an_uncached_hub_model_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match="hf download owner/name --revision v1") as caught:
        models.resolve("owner/name", "v1")
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_cached_hub_model_is_its_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--owner--name"
    (cache / "snapshots").mkdir(parents=True)
    folder.rename(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = models.resolve("owner/name")
    assert found.identity == f"owner/name@{commit}"
    assert found.path.endswith(commit)
    assert found == models.resolve("owner/name", commit)


def _request(context: Context, operation: Operation | None = None) -> JobRequest:
    operation = operation or Operation(kind="generate", sampling=Sampling(max_tokens=5))
    return JobRequest(context=context, operation=operation, input=StreamInput(), output=StreamOutput())


def test_a_request_is_resolved_as_a_whole(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
    options = {"dtype": "auto", "max_model_len": 64}
    raw = Context(runtime="auto", name=str(folder), identity="", model_path=str(folder), options=options)
    request = models.resolve_request(_request(raw))
    assert request.context.runtime == "transformers"
    assert request.context.identity.startswith("sha256:")
    assert request.context.options == options
    assert request.context.memory_bytes == len(b"weights")
    assert request.operation.sampling.temperature == 0.3
    assert models.resolve_request(request) == request


@pytest.mark.parametrize("runtime", ["echo", "python"])
def test_contexts_without_a_model_are_left_alone(runtime: str) -> None:
    request = _request(Context(runtime=runtime, name="x", identity="y"))
    assert models.resolve_request(request) is request
