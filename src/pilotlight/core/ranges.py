"""Sets of request indices as sorted, disjoint, non-touching intervals: ten million rows are a few pairs.

`IndexSet` is the one way the core counts rows. Every operation costs O(log n + k) comparisons, plus a list insertion,
where n is the number of intervals and k those touched.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Span = tuple[int, int]
"""Half-open: start <= index < stop."""


class IndexSet:
    """A mutable set of non-negative integers held as intervals."""

    __slots__ = ("_count", "_starts", "_stops")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._count = 0
        self.update(spans)

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._starts, index) - 1
        return at >= 0 and index < self._stops[at]

    def __iter__(self) -> Iterator[Span]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IndexSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IndexSet({self.spans()!r})"

    def spans(self) -> list[Span]:
        """The intervals, in order."""
        return list(zip(self._starts, self._stops, strict=True))

    def indices(self) -> Iterator[int]:
        """Every member, in order. For small sets."""
        for start, stop in self.spans():
            yield from range(start, stop)

    def copy(self) -> IndexSet:
        """An independent copy."""
        other = IndexSet()
        other._starts, other._stops, other._count = self._starts.copy(), self._stops.copy(), self._count
        return other

    def add(self, start: int, stop: int) -> int:
        """Add start <= i < stop; returns how many were new."""
        if start >= stop:
            return 0
        if not self._stops or start > self._stops[-1]:
            self._starts.append(start)
            self._stops.append(stop)
            self._count += stop - start
            return stop - start
        left = bisect_left(self._stops, start)
        right = bisect_right(self._starts, stop)
        if left == right:
            self._starts.insert(left, start)
            self._stops.insert(left, stop)
            self._count += stop - start
            return stop - start
        low, high = min(start, self._starts[left]), max(stop, self._stops[right - 1])
        if right - left == 1:  # as a rule: no list has to be made
            held = self._stops[left] - self._starts[left]
            self._starts[left], self._stops[left] = low, high
        else:
            held = sum(self._stops[i] - self._starts[i] for i in range(left, right))
            self._starts[left:right] = [low]
            self._stops[left:right] = [high]
        self._count += high - low - held
        return high - low - held

    def remove(self, start: int, stop: int) -> int:
        """Remove start <= i < stop; returns how many were there."""
        if start >= stop:
            return 0
        left = bisect_right(self._stops, start)
        right = bisect_left(self._starts, stop)
        if left >= right:
            return 0
        if right - left == 1 and (self._starts[left] >= start or self._stops[left] <= stop):
            return self._remove_end(left, start, stop)
        held = sum(self._stops[i] - self._starts[i] for i in range(left, right))
        starts: list[int] = []
        stops: list[int] = []
        if self._starts[left] < start:
            starts.append(self._starts[left])
            stops.append(start)
        if self._stops[right - 1] > stop:
            starts.append(stop)
            stops.append(self._stops[right - 1])
        kept = sum(b - a for a, b in zip(starts, stops, strict=True))
        self._starts[left:right] = starts
        self._stops[left:right] = stops
        self._count -= held - kept
        return held - kept

    def _remove_end(self, at: int, start: int, stop: int) -> int:
        """Remove an interval, or one of its ends: as a rule no list has to be made."""
        low, high = self._starts[at], self._stops[at]
        if start <= low and stop >= high:
            del self._starts[at], self._stops[at]
            gone = high - low
        elif start <= low:
            self._starts[at] = stop
            gone = stop - low
        else:
            self._stops[at] = start
            gone = high - start
        self._count -= gone
        return gone

    def update(self, spans: Iterable[Span]) -> int:
        """Add all spans; returns how many indices were new."""
        new = 0
        for start, stop in spans:
            new += self.add(start, stop)
        return new

    def discard(self, spans: Iterable[Span]) -> int:
        """Remove all spans; returns how many indices were there."""
        gone = 0
        for start, stop in spans:
            gone += self.remove(start, stop)
        return gone

    def within(self, start: int, stop: int) -> list[Span]:
        """The members in start <= i < stop, as spans."""
        left = bisect_right(self._stops, start)
        right = bisect_left(self._starts, stop)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(left, right)]

    def missing(self, start: int, stop: int) -> list[Span]:
        """The non-members in start <= i < stop, as spans."""
        gaps: list[Span] = []
        at = start
        for low, high in self.within(start, stop):
            if at < low:
                gaps.append((at, low))
            at = high
        if at < stop:
            gaps.append((at, stop))
        return gaps

    def covers(self, start: int, stop: int) -> bool:
        """Whether every index of start <= i < stop is a member."""
        return start >= stop or self.within(start, stop) == [(start, stop)]

    def take(self, count: int, *, last: bool = False) -> list[Span]:
        """Remove and return the `count` smallest members (the largest if `last`), fewer if there are not so many."""
        taken: list[Span] = []
        while count > 0 and self._starts:
            at = -1 if last else 0
            start, stop = self._starts[at], self._stops[at]
            if stop - start > count:
                start, stop = (stop - count, stop) if last else (start, start + count)
            self._remove_end(at, start, stop)
            taken.append((start, stop))
            count -= stop - start
        return taken[::-1] if last else taken


def span_count(spans: Iterable[Span]) -> int:
    """Number of indices in disjoint spans."""
    count = 0
    for start, stop in spans:
        count += stop - start
    return count
