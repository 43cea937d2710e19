"""An ordered file made before, as a starting point when its error rows are to be done again.

It is only read: once to find the error rows, once more, in step with the ordering, to take over the others.
"""

from __future__ import annotations

from pilotlight.core.errors import InputError, OutputError
from pilotlight.core.ranges import IndexSet
from pilotlight.io.compression import ByteReader, form_of_name
from pilotlight.io.journal import Base
from pilotlight.io.lines import LineBlocks
from pilotlight.io.rows import error_kind


class BaseFile:
    """Rows start <= i < stop of a file whose line i is row i. Raises `OutputError` if it is not what it was."""

    def __init__(self, path: str, base: Base) -> None:
        self.path = path
        self.base = base
        self.void = IndexSet()
        """Error rows that are to be done again."""
        self.errors: dict[str, IndexSet] = {}
        """Error rows that stay."""
        self._blocks: LineBlocks | None = None
        self._at = 0
        self._lines: list[bytes] = []

    def scan(self) -> None:
        """Find the error rows."""
        base = self.base
        while self._at < base.stop:
            count = min(1 << 16, base.stop - self._at)
            start = self._at
            for index, line in enumerate(self.lines(start, start + count), start):
                if index >= base.start and (kind := error_kind(line)) is not None:
                    void = not base.kinds or kind in base.kinds
                    rows = self.void if void else self.errors.setdefault(kind, IndexSet())
                    rows.add(index, index + 1)
        self.close()

    def kept(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The rows in start <= i < stop that come from here."""
        return self.void.missing(max(start, self.base.start), min(stop, self.base.stop))

    def bytes_within(self, start: int, stop: int) -> int:
        """About how many bytes these rows have, taking packed ones for eight times their size."""
        rows = max(0, min(stop, self.base.stop) - max(start, self.base.start))
        packed = 1 if form_of_name(self.path) == "plain" else 8
        return rows * packed * self.base.bytes // max(1, self.base.stop)

    def lines(self, start: int, stop: int) -> list[bytes]:
        """These lines. Cheap if asked for in order."""
        if self._blocks is None or start < self._at:
            self.close()
            try:
                self._blocks = LineBlocks(ByteReader(self.path, self.path))
            except InputError as error:
                raise self._changed(str(error)) from None
        taken: list[bytes] = []
        while self._at < stop:
            if not self._lines:
                try:
                    block = self._blocks.next()
                except InputError as error:
                    raise self._changed(str(error)) from None
                if block is None:
                    raise self._changed("it has too few lines")
                self._lines = block.split(b"\n")
            skip = max(0, start - self._at)
            count = min(len(self._lines), stop - self._at)
            taken += self._lines[skip:count]
            self._lines = self._lines[count:]
            self._at += count
        return taken

    def close(self) -> None:
        """Idempotent; the next `lines` starts again."""
        if self._blocks:
            self._blocks.reader.close()
        self._blocks, self._at, self._lines = None, 0, []

    def _changed(self, why: str) -> OutputError:
        return OutputError(
            f"{self.path} is not what it was when its error rows were taken up again ({why}): "
            "put it back, or start afresh with --overwrite"
        )
