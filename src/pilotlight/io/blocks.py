"""Where finished rows are that are not in order yet: which block of which segment holds which index.

Also what counts: the first valid block that holds an index wins, and its errors are counted with its indices, its
counters with its first row. Small per row: a kept run of rows is eight numbers.
What does not live here: the bytes (`segments.py`), putting them in order (`ordering.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from pilotlight.core.ranges import IndexSet, Span
from pilotlight.io.segments import BlockHeader, Place

Run = tuple[int, int, int]
"""start, stop, line: rows start <= i < stop are the lines from `line` on of their block's body."""

_RUN_NUMBERS = 8


class BlockIndex:
    """Grows by `add`, shrinks by `drop`. `range_rows`: rows that are put in order at a time."""

    def __init__(self, range_rows: int) -> None:
        self.range_rows = range_rows
        self.done = IndexSet()
        self.errors: dict[str, int] = {}
        self.counters: dict[str, float] = {}
        self._runs: dict[int, array[int]] = {}
        self._segments: list[str] = []
        self._numbers: dict[str, int] = {}
        self._live: list[int] = []

    def segment(self, path: str) -> int:
        """The number by which runs name a segment."""
        if path not in self._numbers:
            self._numbers[path] = len(self._segments)
            self._segments.append(path)
            self._live.append(0)
        return self._numbers[path]

    def path(self, segment: int) -> str:
        """The reverse."""
        return self._segments[segment]

    def add(self, segment: int, place: Place, header: BlockHeader, void: IndexSet | None = None) -> None:
        """Take in a block; rows that are done already, or void, are passed over."""
        line = 0
        kept: list[Span] = []
        done, where = self.done, (segment, *place)
        for start, stop in header.spans:
            if void or (start in done if stop - start == 1 else done.within(start, stop)):
                fresh = done.missing(start, stop)
                if void:
                    fresh = [gap for low, high in fresh for gap in void.missing(low, high)]
            else:
                fresh = ((start, stop),)
            for low, high in fresh:
                done.add(low, high)
                self._keep(low, high, line + low - start, where)
            kept += fresh
            line += stop - start
        if not kept:
            return
        if kept[0][0] == header.spans[0][0]:
            add_counts(self.counters, header.counters)
        if header.errors:
            add_counts(self.errors, errors_within(header, kept))

    def runs(self, start: int, stop: int) -> dict[int, dict[Place, list[Run]]]:
        """The rows start <= i < stop by segment and block, in no order. Both ends in the same range."""
        segments: dict[int, dict[tuple[int, ...], list[Run]]] = {}
        for low, high, line, segment, *place in self._each(start):
            if low < start:
                line += start - low  # noqa: PLW2901 - the run is cut here
                low = start  # noqa: PLW2901
            high = min(high, stop)  # noqa: PLW2901
            if low < high:
                blocks = segments.get(segment)
                if blocks is None:
                    blocks = segments[segment] = {}
                key = tuple(place)
                if key in blocks:
                    blocks[key].append((low, high, line))
                else:
                    blocks[key] = [(low, high, line)]
        return {
            segment: {Place(*place): runs for place, runs in blocks.items()} for segment, blocks in segments.items()
        }

    def bytes_of(self, start: int) -> int:
        """About how many bytes the rows of the range that holds `start` have."""
        bodies = {(run[3], run[4]): run[7] for run in self._each(start)}
        return sum(bodies.values())

    def drop(self, start: int) -> None:
        """Forget the runs of the range that holds `start`, which is in order now. `done` stays."""
        for run in self._each(start):
            self._live[run[3]] -= run[1] - run[0]
        self._runs.pop(start // self.range_rows, None)

    def dead_segments(self, but: str) -> list[str]:
        """Segments that nothing is left in, except the one that is being written; each is told once."""
        dead: list[str] = []
        for number, (path, live) in enumerate(zip(self._segments, self._live, strict=True)):
            if live == 0 and path not in ("", but):
                dead.append(path)
                self._segments[number] = ""
        return dead

    def _each(self, start: int) -> Iterator[tuple[int, ...]]:
        numbers = self._runs.get(start // self.range_rows)
        each = iter(numbers.tolist() if numbers else [])
        return zip(*[each] * _RUN_NUMBERS, strict=True)

    def _keep(self, start: int, stop: int, line: int, where: tuple[int, ...]) -> None:
        self._live[where[0]] += stop - start
        while start < stop:
            number = start // self.range_rows
            end = min(stop, (number + 1) * self.range_rows)
            runs = self._runs.get(number)
            if runs is None:
                runs = self._runs[number] = array("q")
            runs.fromlist([start, end, line, *where])
            line += end - start
            start = end


def add_counts(total: dict[str, int] | dict[str, float], more: dict[str, int] | dict[str, float]) -> None:
    """Add name by name."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value  # type: ignore[assignment]


def errors_within(header: BlockHeader, spans: Iterable[Span]) -> dict[str, int]:
    """How many error rows of each kind a block has among these indices."""
    inside = IndexSet(spans)
    counts = {kind: sum(index in inside for index in indices) for kind, indices in header.errors.items()}
    return {kind: count for kind, count in counts.items() if count}


def void_rows(header: BlockHeader, kinds: Iterable[str]) -> IndexSet:
    """The error rows of these kinds (none named: of all) in a block."""
    wanted = set(kinds)
    return IndexSet(
        (index, index + 1)
        for kind, indices in header.errors.items()
        if not wanted or kind in wanted
        for index in indices
    )
