"""Prompt prefixes as attachments: their keys and values, computed once per live model and kept while there is room.

A `Prefix` is known by its token ids alone, so that jobs with the same template and examples share it, one after the
other or at once. It is computed when a batch first needs it, from the longest kept one that it extends; it may be let
go at any time, and comes back when needed. Exact up to rounding, since attention is causal.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch

from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.reading import read_block
from pilotlight.runtimes.transformers.sharing import TOKENS_MIN
from pilotlight.runtimes.transformers.slots import KeysValues, Slots

KNOWN_MAX = 64


@dataclass(slots=True, eq=False)
class Prefix:
    """kept: empty while it is not computed. operations: ids of those whose rows began with it and may do so again.
    used: when it was last needed, in batches."""

    ids: list[int]
    parent: Prefix | None = None
    kept: KeysValues = field(default_factory=list[tuple[torch.Tensor, torch.Tensor]])
    operations: set[str] = field(default_factory=set[str])
    used: int = 0

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(item.numel() * item.element_size() for pair in self.kept for item in pair)

    @property
    def start(self) -> Prefix | None:
        """The longest part of it that is computed."""
        part = self.parent
        while part is not None and not part.kept:
            part = part.parent
        return part

    @property
    def missing(self) -> int:
        """Tokens to be read before it is kept."""
        start = self.start
        return 0 if self.kept else self.length - (start.length if start is not None else 0)

    def begins(self, ids: list[int]) -> bool:
        """Whether these ids begin with it, and go on."""
        length = len(self.ids)
        return len(ids) > length and ids[length - 1] == self.ids[-1] and ids[:length] == self.ids

    def extends(self, other: Prefix | None) -> bool:
        """Whether the other is this one or a part of it. None is a part of all."""
        mine: Prefix | None = self
        while mine is not None and mine is not other:
            mine = mine.parent
        return mine is other


class Prefixes:
    """All prefixes of one model."""

    def __init__(self, network: Network, *, token_bytes: int, bytes_max: int) -> None:
        """token_bytes: of one token's keys and values (0: unknown, so nothing is shared)."""
        self._network = network
        self._token_bytes = token_bytes
        self._bytes_max = bytes_max
        self._known: list[Prefix] = []  # longest first
        self._batches = 0

    @property
    def enabled(self) -> bool:
        """Whether anything may be shared at all."""
        return self._network.plain and self._bytes_max >= TOKENS_MIN * self._token_bytes > 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(prefix.memory_bytes for prefix in self._known)

    def find(self, ids: list[int], operation_id: str) -> Prefix | None:
        """The longest known one that these ids begin with and go on after. The operation needs it from now on."""
        found = next((prefix for prefix in self._known if prefix.begins(ids)), None)
        if found is not None:
            found.operations.add(operation_id)
        return found

    def fitting(self, prefix: Prefix | None) -> Prefix | None:
        """This one, or the longest part of it that there is room for."""
        while prefix is not None and not prefix.kept and prefix.length * self._token_bytes > self._bytes_max:
            prefix = prefix.parent
        return prefix

    def propose(self, ids: list[int], operation_id: str) -> Prefix | None:
        """Know this one from now on, as much of it as there is room for; None if that is no news."""
        ids = ids[: self._bytes_max // self._token_bytes]
        if len(ids) < TOKENS_MIN:
            return None
        known = next((prefix for prefix in self._known if prefix.ids == ids), None)
        if known is not None:
            known.operations.add(operation_id)
            return None
        while len(self._known) >= KNOWN_MAX:
            least = min(self._known, key=_worth)
            least.kept = []
            self._known.remove(least)
        parent = self.find(ids, operation_id)
        prefix = Prefix(ids, parent, operations={operation_id}, used=self._batches)
        self._know(prefix)
        return prefix

    @torch.inference_mode()
    def read(self, prefix: Prefix, tokens_max: int) -> Generator[int, None, KeysValues]:
        """Its keys and values, computed if need be in passes of at most `tokens_max` tokens. A reader; see `reading`.

        Others make room for it, first those that no operation needs any more, then the longest unused.
        """
        self._batches += 1
        prefix.used = self._batches
        if prefix.kept:
            return prefix.kept
        if prefix not in self._known:
            self._know(prefix)
        start = prefix.start
        at, begun = (start.length, start.kept) if start is not None else (0, [])
        if start is not None:
            start.used = self._batches
        self._make_room(prefix)
        slots = Slots(self._network.layers, prefix=begun or None)
        while at < prefix.length:
            block = prefix.ids[at : at + tokens_max]
            read_block(self._network, slots, block)
            at += len(block)
            yield len(block)
        prefix.kept = slots.shared(prefix.length)
        return prefix.kept

    def drop(self, *, but: Prefix | None = None) -> bool:
        """Free everything but one, and keep less from now on; False if nothing was there."""
        held = [prefix for prefix in self._known if prefix.kept and prefix is not but]
        if held:
            self._bytes_max = max(self._bytes_max // 2, but.memory_bytes if but else 0)
        for prefix in held:
            prefix.kept = []
        return bool(held)

    def let_go(self) -> None:
        """Free everything; all may come back."""
        for prefix in self._known:
            prefix.kept = []

    def forget(self, operation_id: str) -> None:
        """This operation's rows are over. What only they needed stays until its room is wanted."""
        for prefix in self._known:
            prefix.operations.discard(operation_id)
        self._known = [prefix for prefix in self._known if prefix.kept or prefix.operations]

    def _know(self, prefix: Prefix) -> None:
        self._known.append(prefix)
        self._known.sort(key=lambda known: -known.length)

    def _make_room(self, prefix: Prefix) -> None:
        need = prefix.length * self._token_bytes
        for other in sorted(self._known, key=_worth):
            if self.memory_bytes + need <= self._bytes_max:
                return
            other.kept = []


def _worth(prefix: Prefix) -> tuple[bool, int]:
    return bool(prefix.operations), prefix.used
