"""Effective sampling: the user's word, then the model's, then vLLM's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotlight.core.errors import ConfigError
from pilotlight.manager.sampling import effective
from pilotlight.wire import Operation, Sampling


def _effective(folder: Path, **given: object) -> Sampling:
    return effective(str(folder), Operation(kind="generate", sampling=Sampling(**given))).sampling  # type: ignore[arg-type]


def test_defaults_are_vllms(tmp_path: Path) -> None:
    sampling = _effective(tmp_path)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1.0, 1.0, 0, 1.0)
    assert sampling.max_tokens is None
    assert all(getattr(sampling, name) is not None for name in sampling.__struct_fields__ if name != "max_tokens")


def test_the_users_word_beats_the_models_and_the_models_the_defaults(tmp_path: Path) -> None:
    model = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 77, "bos_token_id": 1, "top_k": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(model))
    sampling = _effective(tmp_path, temperature=0.0)
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.top_k) == (0.0, 0.9, 77, 0)


def test_every_value_that_is_zero_or_empty_counts_as_set(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert _effective(tmp_path, temperature=0.0, seed=0).temperature == 0.0
    assert _effective(tmp_path, seed=0).seed == 0


def test_an_unset_seed_is_the_same_for_a_rerun_and_another_for_another_request(tmp_path: Path) -> None:
    first = _effective(tmp_path, top_p=0.5)
    assert first == _effective(tmp_path, top_p=0.5)
    assert first.seed != _effective(tmp_path, top_p=0.4).seed


def test_it_is_idempotent(tmp_path: Path) -> None:
    once = effective(str(tmp_path), Operation(kind="generate", sampling=Sampling(top_k=-1)))
    assert effective(str(tmp_path), once) == once
    assert once.sampling.top_k == 0


def test_classify_samples_nothing(tmp_path: Path) -> None:
    operation = Operation(kind="classify", labels=["a", "b"])
    assert effective(str(tmp_path), operation) == operation
    heated = msgspec.structs.replace(operation, sampling=Sampling(temperature=0.7))
    assert effective(str(tmp_path), heated) == operation


@pytest.mark.parametrize("text", ["{", "[1]", '{"temperature": "hot"}', "null"])
def test_a_broken_generation_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        effective(str(tmp_path), Operation(kind="generate"))


@pytest.mark.parametrize("kind", ["generate", "classify"])
def test_a_truncation_keeps_something(tmp_path: Path, kind: Any) -> None:
    for value in (0, -2):
        with pytest.raises(ConfigError, match=f"truncate_prompt_tokens.*{value}"):
            effective(str(tmp_path), Operation(kind=kind, truncate_prompt_tokens=value))
    for value in (-1, 1, None):
        assert effective(str(tmp_path), Operation(kind=kind, truncate_prompt_tokens=value)).kind == kind
