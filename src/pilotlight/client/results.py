"""What a row's answer looks like in Python, and how it is read from a result line.

A row never raises: what went wrong with it is its `.error`, and its other fields are then empty.
Lines are `{"index", "result"}`, `{"index", "pickle"}` or `{"index", "error"}`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import cloudpickle
import msgspec


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no result. `kind` is snake_case (`bad_row`, `prompt_too_long`, `function_error`)."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True, slots=True)
class Result:
    """One row's answer. `index` is its place in the input; `prompt` what was handed in, where that was one value."""

    index: int
    value: Any = None
    error: RowError | None = None
    prompt: Any = None

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated text, under vLLM's names."""

    index: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Generation(Result):
    """Answer to `generate` and `chat`. finish_reason: `stop`, `length`, or `error`. usage: token counts."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def outputs(self) -> list[Completion]:
        """VLLM's form of the same: always one completion, an empty one for an error."""
        return [Completion(0, self.text, self.finish_reason)]


@dataclass(frozen=True, slots=True)
class Classification(Result):
    """Answer to `classify`: the likeliest label, and each label's probability among the labels given."""

    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict[str, float])
    usage: dict[str, int] = field(default_factory=dict[str, int])


Reader = Callable[[int, bytes, Any], Result]
"""Makes the answer from index, result line and prompt."""


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _error(line: dict[str, Any]) -> RowError | None:
    told = line.get("error")
    return None if told is None else RowError(told["kind"], told["message"])


def read_generation(index: int, line: bytes, prompt: Any) -> Generation:
    """An answer to `generate`."""
    decoded = msgspec.json.decode(line)
    error, value = _error(decoded), decoded.get("result")
    if error is not None:
        return Generation(index, None, error, prompt, finish_reason="error")
    told = _object(value)
    return Generation(
        index, value, None, prompt, told.get("text", ""), told.get("finish_reason"), told.get("usage", {})
    )


def read_classification(index: int, line: bytes, prompt: Any) -> Classification:
    """An answer to `classify`."""
    decoded = msgspec.json.decode(line)
    error, value = _error(decoded), decoded.get("result")
    told = _object(value)
    return Classification(
        index, value, error, prompt, told.get("label"), told.get("probabilities", {}), told.get("usage", {})
    )


def read_pickle(index: int, line: bytes, prompt: Any) -> Result:
    """An answer of a user's function. A value that can't be unpickled here is that row's error."""
    decoded = msgspec.json.decode(line)
    error = _error(decoded)
    if error is not None:
        return Result(index, None, error, prompt)
    try:
        value = cloudpickle.loads(base64.b64decode(decoded["pickle"]))
    except Exception as failure:
        return Result(index, None, RowError("bad_result", f"the result can't be unpickled here: {failure}"), prompt)
    return Result(index, value, None, prompt)
