"""Keys and values of a batch in which every row has its own length.

Each row's tokens lie at columns 0, 1, 2 … in the order of their positions, padding (if any) after them; what lies at
or beyond a row's length is never attended to and is overwritten as the row grows. So rows can leave, join and share a
prefix without moving anything else, and a decoding step writes one column per row in place, where transformers'
own cache would copy everything it holds.

Only for models whose attention needs nothing but a mask and explicit positions (`Network.plain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

GROWTH_COLUMNS = 64

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer, keys and values of shape (rows, heads, columns, width)."""


class _SlotLayer(DynamicLayer):
    """One layer's buffers; the columns and cursors are its `Slots`'."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._slots = slots
        self._start: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self._slots.columns

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        slots = self._slots
        stop = slots.columns + key_states.shape[2]
        self.keys = self._written(self.keys, key_states, 0, stop)
        self.values = self._written(self.values, value_states, 1, stop)
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys and values; only after the first pass."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def begin(self, keys: Tensor, values: Tensor) -> None:
        """The prefix's keys and values, one row for all."""
        self._start = (keys, values)

    def _written(self, buffer: Tensor | None, states: Tensor, which: int, stop: int) -> Tensor:
        slots = self._slots
        if buffer is None or buffer.shape[2] < stop:
            rows, heads, _, width = states.shape
            grown = states.new_zeros((rows, heads, stop + slots.reserve, width))
            if buffer is not None:
                grown[:, :, : buffer.shape[2]] = buffer
            elif self._start is not None:
                grown[:, :, : slots.columns] = self._start[which]
            buffer = grown
        if slots.cursors is None:
            buffer[:, :, slots.columns : stop] = states
        else:
            buffer[slots.every_row, :, slots.cursors] = states[:, :, 0]
        return buffer


class Slots:
    """A batch's cache. columns: in use so far. cursors: None while whole blocks of columns are added (prefill), else
    the column that each row writes next."""

    def __init__(self, layers: int, *, prefix: KeysValues | None = None, reserve: int = 0) -> None:
        self._layers = [_SlotLayer(self) for _ in range(layers)]
        self.cache = Cache(layers=list(self._layers))
        self.columns = 0
        self.reserve = reserve
        self.cursors: Tensor | None = None
        self.every_row: Tensor | None = None
        if prefix is not None:
            self.columns = prefix[0][0].shape[2]
            for layer, (keys, values) in zip(self._layers, prefix, strict=True):
                layer.begin(keys, values)

    def advance(self, columns: int) -> None:
        """A block of columns was added by a forward pass."""
        self.columns += columns

    def write_at(self, lengths: Tensor, columns: int) -> None:
        """The next pass adds one token per row, row i at column `lengths[i]`; `columns` is the longest length."""
        self.cursors = lengths
        self.every_row = torch.arange(lengths.shape[0], device=lengths.device)
        self.columns = columns

    def shared(self, columns: int) -> KeysValues:
        """The first columns of row 0, to be a prefix of others. A view where nothing follows, else a copy."""
        return [
            (_part(keys, columns), _part(values, columns)) for keys, values in (layer.buffers for layer in self._layers)
        ]

    def select(self, rows: Sequence[int], columns: int) -> None:
        """Keep these rows, in this order, and their first columns."""
        for layer in self._layers:
            keys, values = layer.buffers
            index = torch.tensor(rows, device=keys.device)
            layer.keys = _kept(keys, index, columns, self.reserve)
            layer.values = _kept(values, index, columns, self.reserve)
        self.columns = columns

    def absorb(self, other: Slots) -> None:
        """Add the other's rows after ours."""
        for mine, its in zip(self._layers, other._layers, strict=True):
            keys, values = its.buffers
            mine.keys = _stacked(mine.buffers[0], keys)
            mine.values = _stacked(mine.buffers[1], values)
        self.columns = max(self.columns, other.columns)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all buffers."""
        tensors = [item for layer in self._layers for item in (layer.keys, layer.values) if item is not None]
        return sum(item.numel() * item.element_size() for item in tensors)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row in all layers."""
        buffers = [item for layer in self._layers for item in (layer.keys, layer.values) if item is not None]
        return sum(item.shape[1] * item.shape[3] * item.element_size() for item in buffers)


def _part(buffer: Tensor, columns: int) -> Tensor:
    part = buffer[:1, :, :columns]
    return part if part.shape == buffer.shape else part.clone()


def _kept(buffer: Tensor, index: Tensor, columns: int, reserve: int) -> Tensor:
    columns = min(columns, buffer.shape[2])
    kept = buffer.new_zeros((index.shape[0], buffer.shape[1], columns + reserve, buffer.shape[3]))
    kept[:, :, :columns] = buffer[:, :, :columns].index_select(0, index)
    return kept


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    columns = max(first.shape[2], second.shape[2])
    both = first.new_zeros((first.shape[0] + second.shape[0], first.shape[1], columns, first.shape[3]))
    both[: first.shape[0], :, : first.shape[2]] = first
    both[first.shape[0] :, :, : second.shape[2]] = second
    return both
