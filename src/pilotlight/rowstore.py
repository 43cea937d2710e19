"""Rows as bytes, by index: what a manager has read and not yet seen finished, what a worker was leased and not yet fed.

Chunks are kept as they came and cut only when someone asks for a part; a chunk goes when the last of its rows is
dropped. So memory follows what is outstanding, never the size of the input.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable

from pilotlight.wire import Chunk, Span


class RowStore:
    """Chunks of one job or one lease. Chunks never overlap."""

    __slots__ = ("_chunks", "_left", "_lines", "_starts", "bytes_held")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._chunks: dict[int, Chunk] = {}
        self._left: dict[int, int] = {}
        self._lines: dict[int, list[bytes]] = {}
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk's rows."""
        if not self._starts or chunk.start > self._starts[-1]:
            self._starts.append(chunk.start)
        else:
            insort(self._starts, chunk.start)
        self._chunks[chunk.start] = chunk
        self._left[chunk.start] = chunk.count
        self.bytes_held += len(chunk.blob)

    def get(self, spans: Iterable[Span]) -> list[Chunk]:
        """The rows of these spans, all of which must be here, as chunks in order."""
        return [self._cut(chunk, low, high) for chunk, low, high in self._overlaps(spans)]

    def drop(self, spans: Iterable[Span]) -> None:
        """Forget rows. Each row may be dropped once; rows that are not here are passed over."""
        for chunk, low, high in self._overlaps(spans):
            left = self._left[chunk.start] - (high - low)
            if left > 0:
                self._left[chunk.start] = left
                continue
            del self._left[chunk.start], self._chunks[chunk.start]
            self._lines.pop(chunk.start, None)
            del self._starts[bisect_right(self._starts, chunk.start) - 1]
            self.bytes_held -= len(chunk.blob)

    def _overlaps(self, spans: Iterable[Span]) -> list[tuple[Chunk, int, int]]:
        found: list[tuple[Chunk, int, int]] = []
        for start, stop in spans:
            at = max(bisect_right(self._starts, start) - 1, 0)
            while at < len(self._starts) and self._starts[at] < stop:
                chunk = self._chunks[self._starts[at]]
                low, high = max(start, chunk.start), min(stop, chunk.stop)
                if low < high:
                    found.append((chunk, low, high))
                at += 1
        return found

    def _cut(self, chunk: Chunk, start: int, stop: int) -> Chunk:
        if (start, stop) == (chunk.start, chunk.stop):
            return chunk
        lines = self._lines.get(chunk.start)
        if lines is None:
            lines = self._lines[chunk.start] = chunk.blob.split(b"\n")
        offset = start - chunk.start
        blob = b"\n".join(lines[offset : offset + stop - start])
        return Chunk(start, stop - start, chunk.line + offset, chunk.origin, blob)
