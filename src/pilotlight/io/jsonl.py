"""JSON lines as a job's input: plain, gzip or zstd, one file or several read as one.

A row is a line that is not blank; its bytes are handed on untouched and never parsed here, except by `first_rows`,
which looks at a few of them before anything starts.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from pilotlight.core.errors import InputError, RequestError
from pilotlight.io.compression import ByteReader
from pilotlight.io.fingerprint import BLOCK_ROWS
from pilotlight.io.lines import LineBlocks
from pilotlight.io.rows import decode_row
from pilotlight.wire import Chunk

CHUNK_ROWS_MAX = 1024
CHUNK_BYTES_MAX = 256 << 10
_BOM = b"\xef\xbb\xbf"


class JsonlSource:
    """A `ports.Source` over files. The constructor opens each file once, so that what can't be read is told at once.

    paths: read in this order as one input. limit: stop after so many rows. Raises `InputError`.
    """

    def __init__(self, paths: Sequence[str], limit: int | None = None) -> None:
        if not paths:
            raise InputError("no input file was given")
        if limit is not None and limit < 0:
            raise InputError(f"a limit of {limit} rows makes no sense")
        self._names = _names(paths)
        self._paths = list(paths)
        self._limit = limit
        self._file = -1
        self._blocks: LineBlocks | None = None
        self._lines: list[bytes] = []
        self._line_at: int = 0
        self._blank = False
        self._raw_before = 0
        """Bytes of the file that had been taken from the disk before the present block."""
        self._line_number = 1
        self._row = 0
        self._sizes: list[int] = []
        self._kept: dict[int, ByteReader] = {}
        """Readers of pipes, which can be opened only once."""
        self._told = True
        try:
            for at, (path, name) in enumerate(zip(paths, self._names, strict=True)):
                self._check(at, path, name)
        except BaseException:
            self.close()
            raise
        self._sizes_before = [0, *accumulate(self._sizes)]

    def read(self, rows_max: int) -> list[Chunk]:
        """See `ports.Source`."""
        assert rows_max > 0, "asked for no rows"
        if self._limit is not None:
            rows_max = min(rows_max, self._limit - self._row)
        chunks: list[Chunk] = []
        while rows_max > 0:
            if self._line_at >= len(self._lines):
                if not self._fill():
                    break
                continue
            if chunk := self._chunk(rows_max):
                chunks.append(chunk)
                rows_max -= chunk.count
        return chunks

    @property
    def fraction(self) -> float | None:
        """The share of the bytes whose rows were read, or of the limit's rows if that is more; None for pipes."""
        limit = self._row / self._limit if self._limit else 0.0
        by_bytes = self._fraction_of_bytes()
        return by_bytes if by_bytes is None else min(1.0, max(by_bytes, limit))

    def _fraction_of_bytes(self) -> float | None:
        total = self._sizes_before[-1]
        if not self._told:
            return None
        if total == 0 or self._file >= len(self._paths):
            return 1.0
        if self._file < 0:
            return 0.0
        read = float(self._sizes[self._file])
        if self._blocks is not None:
            used = self._line_at / len(self._lines) if self._lines else 1.0
            read = self._raw_before + (self._blocks.reader.raw_bytes - self._raw_before) * used
        return (self._sizes_before[self._file] + read) / total

    def close(self) -> None:
        """See `ports.Source`."""
        if self._blocks:
            self._blocks.reader.close()
            self._blocks = None
        for reader in self._kept.values():
            reader.close()
        self._kept.clear()
        self._lines, self._line_at = [], 0
        self._file = len(self._paths)

    def _check(self, at: int, path: str, name: str) -> None:
        reader = ByteReader(path, name)
        if stat.S_ISREG(os.stat(path).st_mode):
            try:
                _first_bytes(reader)
            finally:
                reader.close()
            self._sizes.append(reader.raw_total)
        else:
            self._kept[at] = reader
            self._sizes.append(0)
            self._told = False

    def _fill(self) -> bool:
        """Split the next block into lines; False at the end of the last file."""
        while True:
            if self._blocks is None:
                self._file += 1
                if self._file >= len(self._paths):
                    self._file = len(self._paths)
                    return False
                name = self._names[self._file]
                reader = self._kept.pop(self._file, None) or ByteReader(self._paths[self._file], name)
                self._blocks = LineBlocks(reader)
                self._line_number = 1
                self._lines = []
                self._raw_before = 0
                first = True
            else:
                first = False
                self._raw_before = self._blocks.reader.raw_bytes
            self._line_number += len(self._lines)
            self._lines, self._line_at = [], 0
            try:
                block = self._blocks.next()
            except InputError as error:
                raise InputError(f"{error} (after line {self._line_number - 1})") from None
            if block is None:
                self._blocks.reader.close()
                self._blocks = None
                continue
            if first and block.startswith(_BOM):
                block = block[len(_BOM) :]
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n").removesuffix(b"\r")
            self._lines = block.split(b"\n")
            self._blank = not all(map(bytes.strip, self._lines))
            return True

    def _chunk(self, rows_max: int) -> Chunk | None:
        """The next run of rows as a chunk; None where only blank lines were passed."""
        at = self._line_at
        stop = min(len(self._lines), at + min(rows_max, CHUNK_ROWS_MAX, BLOCK_ROWS - self._row % BLOCK_ROWS))
        if self._blank:
            while at < len(self._lines) and not self._lines[at].strip():
                at += 1
            if at > self._line_at:
                self._line_at = at
                return None
            stop = next((i for i in range(at + 1, stop) if not self._lines[i].strip()), stop)
        lines = self._lines[at:stop]
        blob = b"\n".join(lines)
        if len(blob) > CHUNK_BYTES_MAX and len(lines) > 1:
            ends = list(accumulate(map(len, lines)))
            count = max(1, bisect_right(ends, CHUNK_BYTES_MAX - len(lines)))
            lines = lines[:count]
            blob = b"\n".join(lines)
        chunk = Chunk(self._row, len(lines), self._line_number + at, self._names[self._file], blob)
        self._line_at = at + len(lines)
        self._row += len(lines)
        return chunk


def first_rows(paths: Sequence[str], rows_max: int) -> list[dict[str, Any] | RequestError]:
    """The first rows, decoded; a row that is not a JSON object stands there as its error. Raises `InputError`."""
    source = JsonlSource(paths, limit=rows_max)
    rows: list[dict[str, Any] | RequestError] = []
    try:
        while rows_max > len(rows) and (chunks := source.read(rows_max - len(rows))):
            for chunk in chunks:
                for at, line in enumerate(chunk.blob.split(b"\n")):
                    try:
                        rows.append(decode_row(line, chunk.origin, chunk.line + at))
                    except RequestError as error:
                        rows.append(error)
    finally:
        source.close()
    return rows


def _names(paths: Sequence[str]) -> list[str]:
    seen = Counter(os.path.basename(path) for path in paths)
    return [name if seen[name := os.path.basename(path)] == 1 else path for path in paths]


def _first_bytes(reader: ByteReader) -> None:
    """Raise what is wrong with the start of a compressed file, or with what is inside it."""
    if b"\0" in reader.read()[:4096]:
        raise InputError(f"{reader.name} is not a text file: it should have one JSON object per line")
