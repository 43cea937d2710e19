"""The prompt prefix that an operation's rows share, computed once.

What is shared is the longest common prefix of token ids over a batch's rows (not of characters: a tokenizer may
merge across the seam). The keys and values of the last one are kept while batches go on sharing it; a batch that
shares less uses a part, one that shares more extends it. Exact up to rounding, since attention is causal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.slots import KeysValues, Slots

TOKENS_MIN = 16
"""Shorter prefixes cost more in copying and masks than they save."""
ROWS_MIN = 4


class SharedPrefix:
    """One operation's prefix. `enabled` false: nothing is ever shared."""

    def __init__(self, network: Network, *, enabled: bool = True) -> None:
        self._network = network
        self._enabled = enabled and network.plain
        self._ids: list[int] = []
        self._kept: KeysValues = []

    @property
    def length(self) -> int:
        """Tokens kept."""
        return len(self._ids)

    def shares(self, ids: list[int]) -> bool:
        """Whether a row begins with all that is kept; rows that do and rows that don't are better batched apart."""
        length = len(self._ids)
        return length > 0 and len(ids) > length and ids[:length] == self._ids

    def for_batch(self, batch: Sequence[list[int]]) -> tuple[int, KeysValues | None]:
        """How many leading tokens of each row are computed already, and their keys and values.

        At least one token of each row is left to compute. (0, None) where sharing does not pay.
        """
        if not self._enabled:
            return 0, None
        common = common_prefix(batch)
        common = common[: min(len(ids) for ids in batch) - 1]
        usable = len(common_prefix([self._ids, common]))
        if len(batch) >= ROWS_MIN and len(common) - usable >= TOKENS_MIN:
            self._extend(common, usable)
            usable = len(common)
        if usable < TOKENS_MIN:
            return 0, None
        if usable == len(self._ids):
            return usable, self._kept
        return usable, _cut(self._kept, usable)

    def drop(self) -> None:
        """Free what is kept."""
        self._ids, self._kept = [], []

    @property
    def memory_bytes(self) -> int:
        """Bytes of the kept keys and values."""
        return sum(item.numel() * item.element_size() for pair in self._kept for item in pair)

    def _extend(self, ids: list[int], usable: int) -> None:
        network = self._network
        start = _cut(self._kept, usable) if usable else None
        slots = Slots(network.layers, prefix=start)
        tokens = torch.tensor([ids[usable:]], device=network.device)
        positions = torch.arange(usable, len(ids), device=network.device).unsqueeze(0)
        keep = torch.zeros((1, 1), dtype=torch.long, device=network.device)
        network.logits(tokens, keep, positions=positions, slots=slots)
        self._ids, self._kept = ids, slots.shared(len(ids))


def common_prefix(batch: Sequence[list[int]]) -> list[int]:
    """The longest list of ids that every row begins with."""
    low, high = min(batch), max(batch)
    for place, (one, other) in enumerate(zip(low, high, strict=False)):
        if one != other:
            return low[:place]
    return low


def _cut(kept: KeysValues, columns: int) -> KeysValues:
    return [(keys[:, :, :columns], values[:, :, :columns]) for keys, values in kept]
