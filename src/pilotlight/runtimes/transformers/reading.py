"""Prompts into logits and a cache: padded batches in one pass, a long row alone in several.

Every reader is a generator: it yields, between two passes, how many tokens it has read, so that whoever runs it can do
something else or give a sign of life, and at last returns what it read.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.slots import KeysValues, Slots

T = TypeVar("T")

PAD = 0


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that were read. logits: after each row's last token, (rows, vocabulary). lengths: in tokens. slots: None
    where no cache was asked for."""

    logits: Tensor
    lengths: list[int]
    slots: Slots | None


@torch.inference_mode()
def read_prompts(
    network: Network, batch: Sequence[list[int]], kept: KeysValues, *, tokens_max: int, reserve: int | None
) -> Generator[int, None, Prompts]:
    """Read rows that all begin with the tokens whose keys and values are `kept` (empty: none), and go on after.

    tokens_max: what one pass may hold of a row that is alone; several rows are read in one. reserve: columns kept
    free in the cache; None: no cache is needed.
    """
    start = kept[0][0].shape[2] if kept else 0
    rest = [ids[start:] for ids in batch]
    parts = len(batch) == 1 and len(rest[0]) > tokens_max
    slots: Slots | None = None
    if kept or parts or reserve is not None:
        slots = Slots(network.layers, prefix=kept or None, reserve=reserve or 0)
    if parts and slots is not None:
        slots.reserve += len(rest[0])
        while len(rest[0]) > tokens_max:
            read_block(network, slots, rest[0][:tokens_max])
            rest = [rest[0][tokens_max:]]
            yield tokens_max
        slots.reserve = reserve or 0
    ids, longest = padded(rest, network.device)
    at = slots.columns if slots is not None else 0
    ends = torch.tensor([[len(item) - 1] for item in rest], device=network.device)
    positions = torch.arange(at, at + longest, device=network.device).expand(ids.shape)
    logits = network.logits(ids, ends, positions=positions, slots=slots)
    if slots is not None:
        slots.advance(longest)
    return Prompts(logits[:, 0], [len(ids) for ids in batch], slots)


@torch.inference_mode()
def read_block(network: Network, slots: Slots, ids: Sequence[int]) -> None:
    """Add some tokens of one row to a cache, and wait for it."""
    tokens = torch.tensor([ids], device=network.device)
    positions = torch.arange(slots.columns, slots.columns + len(ids), device=network.device).unsqueeze(0)
    keep = torch.zeros((1, 1), dtype=torch.long, device=network.device)
    network.logits(tokens, keep, positions=positions, slots=slots)
    slots.advance(len(ids))
    if network.device.type == "cuda":
        torch.cuda.synchronize(network.device)


def result_of(work: Generator[int, None, T]) -> T:
    """Run a reader to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def padded(batch: Sequence[list[int]], device: torch.device) -> tuple[Tensor, int]:
    """Rows of ids, padded on the right, and the longest length."""
    longest = max(len(ids) for ids in batch)
    return torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in batch], device=device), longest
