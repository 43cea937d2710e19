"""`SamplingParams`: how `generate` picks tokens, under vLLM's names and with vLLM's limits.

Unlike vLLM's class, what is left unset (None) follows the model's generation_config.json, as vLLM's server does it;
`manager/sampling.py` fills it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

from pilotlight.core.errors import ConfigError
from pilotlight.wire import Sampling


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """vLLM's `SamplingParams`, as far as small models need it. Raises `ConfigError` on a value that makes no sense.

    max_tokens: None: as many as fit for chats, 16 for plain prompts. temperature: 0 is greedy. top_k: 0 or -1
    considers every token. seed: None lets one follow from the request, so equal calls draw
    equal tokens; set one for other draws. Each row's own seed follows from it and the row's index.
    stop: texts that end an answer and are not part of it (unless `include_stop_str_in_output`).
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    n: int = 1

    def __post_init__(self) -> None:
        """Check every value that is set."""
        if self.n != 1:
            raise ConfigError(f"n must be 1, not {self.n!r}: hand a prompt in several times for several answers")
        for name, least, most, most_is_in in _LIMITS:
            _check(name, getattr(self, name), least, most, most_is_in=most_is_in)
        for name in ("max_tokens", "min_tokens", "top_k", "seed"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name} must be a whole number, not {value!r}")
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise ConfigError(f"{name} must be greater than 0")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens ({self.min_tokens}) must not be greater than max_tokens ({self.max_tokens})")
        stops = cast("Sequence[object]", self._stops or ())
        if any(not isinstance(text, str) or not text for text in stops):
            raise ConfigError(f"stop must be texts that are not empty, not {self.stop!r}")

    @property
    def _stops(self) -> list[str] | None:
        return [self.stop] if isinstance(self.stop, str) else None if self.stop is None else list(self.stop)

    def to_wire(self) -> Sampling:
        """The same as it travels."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "n"}
        ids = self.stop_token_ids
        values |= {"stop": self._stops, "stop_token_ids": None if ids is None else list(ids)}
        return Sampling(**values)


_INFINITE = float("inf")
_LIMITS: list[tuple[str, float, float, bool]] = [
    ("max_tokens", 1, _INFINITE, False),
    ("min_tokens", 0, _INFINITE, False),
    ("temperature", 0, _INFINITE, False),
    ("top_p", 0, 1, True),
    ("top_k", -1, _INFINITE, False),
    ("min_p", 0, 1, True),
    ("repetition_penalty", 0, _INFINITE, False),
    ("presence_penalty", -2, 2, True),
    ("frequency_penalty", -2, 2, True),
]


def _check(name: str, value: object, least: float, most: float, *, most_is_in: bool) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    # Written so that NaN fails.
    if not (least <= value <= most if most_is_in else least <= value < most):
        limit = f"between {least:g} and {most:g}" if most_is_in else f"{least:g} or more"
        raise ConfigError(f"{name} must be {limit}, not {value!r}")
