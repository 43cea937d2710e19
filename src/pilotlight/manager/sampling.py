"""Effective sampling: what the user set, else the model's generation_config.json, else vLLM's defaults.

Done once, before a job starts, so that every replica, every retry and every rerun draws the same tokens. A seed that
nobody set follows from the request: equal requests draw equal tokens, as vLLM's engine does with its default seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pilotlight.core.errors import ConfigError
from pilotlight.wire import Operation, Sampling

_DEFAULTS = Sampling(
    min_tokens=0,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    stop=[],
    stop_token_ids=[],
    ignore_eos=False,
    skip_special_tokens=True,
    include_stop_str_in_output=False,
)
"""vLLM's `SamplingParams`, as of 0.11; `max_tokens` stays None ("as many as fit" or 16: the runtime decides)."""

_FROM_MODEL = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_tokens": "max_new_tokens",
}
"""Ours -> the model's name; the same six that vLLM's `ModelConfig.get_diff_sampling_param` takes."""


def effective(model_path: str, operation: Operation) -> Operation:
    """The operation with every sampling value set, but for `max_tokens` where nobody says any.

    Only `generate` samples; of others, what was said about sampling is dropped. Raises `ConfigError` for a
    generation_config.json that can't be read, and for a truncation that makes no sense.
    """
    keep = operation.truncate_prompt_tokens
    if keep is not None and keep != -1 and keep < 1:
        raise ConfigError(f"truncate_prompt_tokens is -1 (as many as fit) or 1 and more, not {keep}")
    if operation.kind != "generate":
        return msgspec.structs.replace(operation, sampling=Sampling())
    values = {
        **_set(_DEFAULTS),
        **_of_model(Path(model_path) / "generation_config.json"),
        **_set(operation.sampling),
    }
    if values["top_k"] == -1:
        values["top_k"] = 0
    effective_operation = msgspec.structs.replace(operation, sampling=Sampling(**values))
    if values.get("seed") is None:
        # Drawn from the request itself, so that a rerun that goes on after an interruption asks for the same thing.
        values["seed"] = seed_of(effective_operation)
        effective_operation = msgspec.structs.replace(operation, sampling=Sampling(**values))
    return effective_operation


def seed_of(operation: Operation) -> int:
    """The seed where nobody sets one, drawn from everything else in the operation."""
    unseeded = msgspec.structs.replace(operation.sampling, seed=None)
    return int(msgspec.structs.replace(operation, sampling=unseeded).id, 16) & 0x7FFF_FFFF


def _set(sampling: Sampling) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(sampling).items() if value is not None}


def _of_model(path: Path) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        found = {ours: given[theirs] for ours, theirs in _FROM_MODEL.items() if given.get(theirs) is not None}
        return _set(msgspec.convert(found, Sampling))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
