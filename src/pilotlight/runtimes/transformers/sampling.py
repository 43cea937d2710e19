"""How a row's next token is chosen from its logits; names, order and meanings are vLLM's.

Penalties, then greedy, or temperature, min_p, top_k, top_p and one draw. Each row draws from a generator of its own,
seeded by (seed, index in the job), so that its answer does not depend on the batch, the worker or a repeat.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor

from pilotlight.wire import Sampling

T = TypeVar("T")

GREEDY_BELOW = 1e-5
"""vLLM treats lower temperatures as 0."""


class BadSampling(ValueError):
    """A parameter is out of range; the text names it."""


@dataclass(slots=True)
class Chooser:
    """One row's parameters, resolved, and its memory of what it chose."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    stop: list[str]
    stop_ids: frozenset[int]
    skip_special_tokens: bool
    include_stop: bool
    prompt_ids: list[int]
    draws: random.Random
    chosen: list[int] = field(default_factory=list[int])
    seen: Tensor | None = None
    counts: Tensor | None = None

    @property
    def greedy(self) -> bool:
        """Takes the likeliest token."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Looks at what came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def plain(self) -> bool:
        """The bare argmax decides."""
        return self.greedy and not self.penalised and len(self.chosen) >= self.min_tokens


def chooser(sampling: Sampling, *, index: int, prompt_ids: list[int], eos_ids: frozenset[int]) -> Chooser:
    """Check and resolve a row's parameters; what is None takes vLLM's default. Raises `BadSampling`."""
    temperature = _or(sampling.temperature, 1.0)
    top_p, top_k, min_p = _or(sampling.top_p, 1.0), _or(sampling.top_k, 0), _or(sampling.min_p, 0.0)
    repetition = _or(sampling.repetition_penalty, 1.0)
    min_tokens = _or(sampling.min_tokens, 0)
    _check(temperature >= 0, f"temperature is {temperature}; it can't be negative.")
    _check(0 < top_p <= 1, f"top_p is {top_p}; it must be above 0 and at most 1.")
    _check(top_k >= -1, f"top_k is {top_k}; it must be positive, or 0 or -1 for no limit.")
    _check(0 <= min_p <= 1, f"min_p is {min_p}; it must be between 0 and 1.")
    _check(repetition > 0, f"repetition_penalty is {repetition}; it must be positive.")
    _check(min_tokens >= 0, f"min_tokens is {min_tokens}; it can't be negative.")
    _check(sampling.max_tokens is None or sampling.max_tokens >= 1, f"max_tokens is {sampling.max_tokens}; at least 1.")
    stop_ids = frozenset(_or(sampling.stop_token_ids, []))
    return Chooser(
        temperature=temperature,
        top_p=top_p,
        top_k=max(0, top_k),
        min_p=min_p,
        repetition_penalty=repetition,
        presence_penalty=_or(sampling.presence_penalty, 0.0),
        frequency_penalty=_or(sampling.frequency_penalty, 0.0),
        min_tokens=min_tokens,
        stop=[text for text in _or(sampling.stop, []) if text],
        stop_ids=stop_ids if sampling.ignore_eos else stop_ids | eos_ids,
        skip_special_tokens=_or(sampling.skip_special_tokens, True),
        include_stop=_or(sampling.include_stop_str_in_output, False),
        prompt_ids=prompt_ids,
        draws=random.Random(f"{sampling.seed or 0}:{index}"),  # noqa: S311  (nothing is secret)
    )


@torch.inference_mode()
def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each row from its logits, shape (rows, vocabulary); remembers them. Logits may be changed."""
    if all(item.plain for item in choosers):
        tokens = _listed(logits.argmax(dim=-1))
    else:
        tokens = _choose(logits.float(), choosers)
    for item, token in zip(choosers, tokens, strict=True):
        item.chosen.append(token)
        if item.counts is not None and item.seen is not None:
            item.counts[token] += 1
            item.seen[token] = True
    return tokens


def _choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    for row, item in enumerate(choosers):
        if len(item.chosen) < item.min_tokens and item.stop_ids:
            barred = [token for token in item.stop_ids if 0 <= token < logits.shape[1]]
            logits[row, barred] = -torch.inf
        if item.penalised:
            _penalise(logits[row], item)
    tokens = _listed(logits.argmax(dim=-1))
    drawing = [row for row, item in enumerate(choosers) if not item.greedy]
    if drawing:
        drawn = _draw(logits[drawing] if len(drawing) < len(choosers) else logits, [choosers[row] for row in drawing])
        for row, token in zip(drawing, drawn, strict=True):
            tokens[row] = token
    return tokens


def _penalise(logits: Tensor, item: Chooser) -> None:
    """In place. Repetition looks at prompt and answer; presence and frequency at the answer."""
    if item.counts is None or item.seen is None:
        item.counts = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
        item.seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        item.seen[item.prompt_ids] = True
        for token in item.chosen:
            item.counts[token] += 1
            item.seen[token] = True
    if item.repetition_penalty != 1:
        penalty = item.repetition_penalty
        changed = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits.copy_(torch.where(item.seen, changed, logits))
    if item.frequency_penalty or item.presence_penalty:
        logits.sub_(item.frequency_penalty * item.counts)
        logits.sub_(item.presence_penalty * (item.counts > 0))


def _draw(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """One draw per row by the inverse of its cumulative distribution, over tokens from likeliest to least."""
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)

    logits = logits / column([item.temperature for item in choosers])
    limits = [item.top_k or logits.shape[1] for item in choosers]
    columns = min(logits.shape[1], max(limits))
    # A total is needed before tokens are cut off: min_p compares with the likeliest, top_p with what top_k left.
    ordered, order = logits.topk(columns, dim=-1) if columns < logits.shape[1] else logits.sort(dim=-1, descending=True)
    if any(item.min_p for item in choosers):
        floor = ordered[:, :1] + column([item.min_p for item in choosers]).log()
        ordered = ordered.masked_fill(ordered < floor, -torch.inf)
    if min(limits) < columns:
        beyond = torch.arange(columns, device=device) >= column([float(limit) for limit in limits])
        ordered = ordered.masked_fill(beyond, -torch.inf)
    chances = ordered.softmax(dim=-1, dtype=torch.float64)
    sums = chances.cumsum(dim=-1)
    top_p = column([item.top_p for item in choosers]).double()
    cut = (sums - chances) >= top_p
    cut[:, 0] = False
    chances = chances.masked_fill(cut, 0.0)
    sums = chances.cumsum(dim=-1)
    points = torch.tensor([[item.draws.random()] for item in choosers], dtype=torch.float64, device=device)
    places = torch.searchsorted(sums, points * sums[:, -1:], right=True)
    last = (chances > 0).sum(dim=-1, keepdim=True) - 1
    return _listed(order.gather(1, torch.minimum(places, last)).squeeze(1))


def _listed(tokens: Tensor) -> list[int]:
    return cast("list[int]", tokens.tolist())  # pyright: ignore[reportUnknownMemberType]


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise BadSampling(text)
