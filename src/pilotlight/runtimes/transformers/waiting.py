"""Rows that wait for a forward pass, handed out in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class _HasIds(Protocol):
    @property
    def ids(self) -> list[int]: ...


Item = TypeVar("Item", bound=_HasIds)


class Waiting(Generic[Item]):
    """A bounded crowd, not a queue: each batch is the oldest row and those nearest to it in length."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def oldest(self) -> Item:
        """The row that is in the next batch whatever else is. Only while not empty."""
        return self._items[0]

    def add(self, items: Sequence[Item]) -> None:
        """Rows in order of arrival."""
        self._items.extend(items)

    def put_back(self, items: Sequence[Item]) -> None:
        """Rows that were taken and could not run; they are the oldest again."""
        self._items[:0] = items

    def take(self, tokens_max: int, rows_max: int, fits: Callable[[Item, Item], bool], *, shared: int) -> list[Item]:
        """At least one row; more while rows times the longest stay within `tokens_max`.

        `fits(oldest, other)` says whether two rows may be in one batch. `shared`: leading tokens that cost nothing.
        """
        oldest = self._items[0]
        order = sorted(
            (place for place, item in enumerate(self._items) if place == 0 or fits(oldest, item)),
            key=lambda place: len(self._items[place].ids),
        )
        low = high = order.index(0)

        def length(at: int) -> int:
            return len(self._items[order[at]].ids)

        while high - low + 1 < min(rows_max, len(order)):
            below = length(low) - length(low - 1) if low > 0 else None
            above = length(high + 1) - length(high) if high + 1 < len(order) else None
            down = above is None or (below is not None and below <= above)
            longest = length(high if down else high + 1)
            if (high - low + 2) * max(1, longest - shared) > tokens_max:
                if down or low == 0:
                    break
                down = True
                if (high - low + 2) * max(1, length(high) - shared) > tokens_max:
                    break
            low, high = (low - 1, high) if down else (low, high + 1)
        taken = order[low : high + 1]
        batch = [self._items[place] for place in taken]
        gone = set(taken)
        self._items = [item for place, item in enumerate(self._items) if place not in gone]
        return batch
