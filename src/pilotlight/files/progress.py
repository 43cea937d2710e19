"""How far a copy is: written by the threads that make it, read by whoever shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Piece = TypeVar("Piece", bytes, memoryview)


class Progress:
    """Bytes of some files, by name. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def expect(self, sizes: dict[str, int]) -> None:
        """These files are to come, of so many bytes."""
        with self._lock:
            self._sizes = dict(sizes)

    def here(self, name: str, count: int | None = None) -> None:
        """So many of a file's bytes are here; None: all."""
        with self._lock:
            self._here[name] = self._sizes.get(name, 0) if count is None else count

    def counting(self, name: str, pieces: Iterable[Piece], have: int = 0) -> Iterator[Piece]:
        """What comes of a file, counted as it passes; `have` bytes were here before."""
        self.here(name, have)
        for piece in pieces:
            have += len(piece)
            self.here(name, have)
            yield piece

    @property
    def bytes(self) -> tuple[int, int]:
        """How many are here, of how many."""
        with self._lock:
            return sum(self._here.values()), sum(self._sizes.values())
