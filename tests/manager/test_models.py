"""Models are found, told apart by content, and missing ones are one helpful sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from pilotlight.core.errors import ConfigError, ModelNotFound
from pilotlight.files import identity
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
    monkeypatch.setattr(identity, "WHOLE_BYTES_MAX", 100)
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 10)
    weights = folder / "model.safetensors"
    digests: set[str] = set()
    for at in (0, 999):
        data = bytearray(1000)
        data[at] = 1
        weights.write_bytes(data)
        digests.add(identity.content_digest(folder))
    weights.write_bytes(bytes(1001))
    digests.add(identity.content_digest(folder))
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


def test_a_name_that_is_too_long_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match=r"can't be read: xxx"):
        models.resolve("x" * 5000)
    with pytest.raises(ModelNotFound):
        models.resolve("~nobody-of-that-name/model")


def test_a_broken_link_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").symlink_to("gone")
    with pytest.raises(ModelNotFound, match=r"tokenizer\.model: No such file"):
        models.resolve(str(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [".", "model.safetensors"])
def test_what_may_not_be_read_is_named(folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    try:
        with pytest.raises(ModelNotFound, match="Permission denied"):
            models.resolve(str(folder))
    finally:
        (folder / name).chmod(0o700)


def test_an_unreadable_folder_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(ModelNotFound, match="some-model: Permission denied"):
        models.resolve(str(folder))


def test_a_second_copy_of_the_weights_does_not_count(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"x" * 100)
    assert models.weight_bytes(folder) == len(b"weights")
    (folder / "model-1.safetensors").write_bytes(b"xx")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}})
    )
    assert models.weight_bytes(folder) == 2


def test_an_index_that_does_not_fit_is_refused(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    raw = Context(runtime="auto", name=str(folder), identity="", model_path=str(folder))
    index.write_text("[]")
    with pytest.raises(ConfigError, match=r"index\.json"):
        models.resolve_request(_request(raw))
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ModelNotFound, match=r"gone\.safetensors"):
        models.resolve_request(_request(raw))


@pytest.mark.parametrize(
    "error", [HfHubHTTPError.__bases__[0]("slow"), RuntimeError("xet"), OSError(28, "No space left")]
)
def test_a_download_that_breaks_off_is_a_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(model: str, **wishes: Any) -> str:
        asked.update(wishes)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelNotFound, match="hf download owner/name"):
        models.resolve("owner/name")
    assert {"consolidated*", "original/*"} <= set(asked["ignore_patterns"])
