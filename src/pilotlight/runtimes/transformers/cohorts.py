"""A batch of rows that decode together: their cache, and one forward pass per token.

`SlotCohort` keeps keys and values in `Slots`: rows join and leave at any time. `OwnCohort` is for models with
another kind of cache (windows, recurrent states): left-padded rows over the model's own cache, which may leave but
not join, so several such cohorts take turns. Both hand out the logits of each row's last token.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.reading import PAD, read_prompts
from pilotlight.runtimes.transformers.slots import GROWTH_COLUMNS, KeysValues, Slots


class Cohort(Protocol):
    """What `generate` needs of a batch; rows are named by their place."""

    holes_max: float
    """Part of the rows that may idle before `select` takes them out."""

    def decode(self, tokens: Sequence[int | None]) -> Tensor:
        """Append one token to each row; logits of shape (rows, vocabulary). None: this row idles, and its logits
        mean nothing."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        ...

    def absorb(self, other: Any) -> bool:
        """Add the other's rows after ours; False where that can't be done."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes of keys and values."""
        ...


def begin(
    network: Network, batch: Sequence[list[int]], kept: KeysValues, *, tokens_max: int
) -> Generator[int, None, tuple[Cohort, Tensor]]:
    """Read prompts that begin with what is `kept`; the cohort and the logits after each, (rows, vocabulary). A reader;
    see `reading`."""
    if not network.plain:
        return OwnCohort.begin(network, batch)
    return (yield from SlotCohort.begin(network, batch, kept, tokens_max=tokens_max))


class SlotCohort:
    """Rows of a plain model; see `Cohort`. Taking rows out copies the rest, so a few may idle."""

    holes_max = 0.125

    def __init__(self, network: Network, slots: Slots, lengths: list[int]) -> None:
        self._network = network
        self._slots = slots
        self._lengths = lengths

    @classmethod
    def begin(
        cls, network: Network, batch: Sequence[list[int]], kept: KeysValues, *, tokens_max: int
    ) -> Generator[int, None, tuple[SlotCohort, Tensor]]:
        """Read the prompts, those tokens excepted that are kept."""
        read = yield from read_prompts(network, batch, kept, tokens_max=tokens_max, reserve=GROWTH_COLUMNS)
        assert read.slots is not None
        return cls(network, read.slots, read.lengths), read.logits

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int | None]) -> Tensor:
        """See `Cohort`. An idle row rewrites the column after its last."""
        device = self._network.device
        longest = max(self._lengths)
        lengths = torch.tensor(self._lengths, device=device)
        self._slots.write_at(lengths, longest)
        mask = None
        if min(self._lengths) < longest:
            mask = (torch.arange(longest + 1, device=device) <= lengths[:, None])[:, None, None, :]
        ids = torch.tensor([PAD if token is None else token for token in tokens], device=device).unsqueeze(1)
        keep = torch.zeros_like(ids)
        logits = self._network.logits(ids, keep, positions=lengths.unsqueeze(1), mask=mask, slots=self._slots)
        self._lengths = [
            length if token is None else length + 1 for length, token in zip(self._lengths, tokens, strict=True)
        ]
        return logits[:, 0]

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """See `Cohort`."""
        self._lengths = [self._lengths[row] for row in rows]
        self._slots.select(rows, max(self._lengths))

    @torch.inference_mode()
    def absorb(self, other: Any) -> bool:
        """See `Cohort`."""
        assert isinstance(other, SlotCohort)
        self._slots.absorb(other._slots)  # noqa: SLF001  (one of us)
        self._lengths += other._lengths  # noqa: SLF001
        return True

    @property
    def memory_bytes(self) -> int:
        """See `Cohort`."""
        return self._slots.memory_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self._slots.token_bytes


class OwnCohort:
    """Rows of a model whose cache we don't touch; see `Cohort`."""

    holes_max = 0.0

    def __init__(self, network: Network, mask: Tensor, lengths: Tensor, cache: Any) -> None:
        self._network = network
        self._mask = mask
        self._lengths = lengths
        self._cache = cache

    @classmethod
    @torch.inference_mode()
    def begin(cls, network: Network, batch: Sequence[list[int]]) -> tuple[OwnCohort, Tensor]:
        """Read the prompts, padded on the left."""
        longest = max(len(ids) for ids in batch)
        gaps = [longest - len(ids) for ids in batch]
        ids = torch.tensor([[PAD] * gap + row for gap, row in zip(gaps, batch, strict=True)], device=network.device)
        mask = torch.arange(longest, device=network.device) >= torch.tensor(gaps, device=network.device)[:, None]
        positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        logits, cache = network.logits_own_cache(ids, mask.long(), positions, None)
        lengths = torch.tensor([len(row) for row in batch], device=network.device)
        return cls(network, mask.long(), lengths, cache), logits

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int | None]) -> Tensor:
        """See `Cohort`; no row idles here."""
        ids = torch.tensor(tokens, device=self._network.device).unsqueeze(1)
        self._mask = torch.cat((self._mask, self._mask.new_ones((self._mask.shape[0], 1))), dim=-1)
        positions = self._lengths.unsqueeze(1)
        logits, self._cache = self._network.logits_own_cache(ids, self._mask, positions, self._cache)
        self._lengths = self._lengths + 1
        return logits

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """See `Cohort`."""
        index = torch.tensor(rows, device=self._network.device)
        self._cache.batch_select_indices(index)
        self._mask, self._lengths = self._mask[index], self._lengths[index]

    def absorb(self, other: Any) -> bool:  # noqa: ARG002
        """Never."""
        return False

    @property
    def memory_bytes(self) -> int:
        """See `Cohort`; and states of other kinds."""
        size = 0
        for layer in cast("list[object]", getattr(self._cache, "layers", [])):
            parts = vars(layer)
            size += sum(part.numel() * part.element_size() for part in parts.values() if isinstance(part, Tensor))
        return size
