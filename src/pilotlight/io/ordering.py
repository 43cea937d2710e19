"""Putting finished rows in order: from blocks and bases to one ordered file.

Bodies that already are a contiguous run of rows are copied whole; only mixed ones are split into lines. What does not
live here: when a range may be ordered, and what makes that durable (`workfolder.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from pilotlight.core.errors import OutputError
from pilotlight.io.bases import BaseFile
from pilotlight.io.blocks import BlockIndex, add_counts, errors_within
from pilotlight.io.compression import Form, pack
from pilotlight.io.files import Files
from pilotlight.io.segments import Place, decode_header

_TEXT_BYTES = 32 << 20
_READ_BYTES = 8 << 20
_GAP_BYTES = 4096


class Gathered(NamedTuple):
    """Some rows in order, each with its newline, and what is counted of them."""

    text: bytes
    errors: dict[str, int]
    counters: dict[str, float]


def gather(index: BlockIndex, bases: Sequence[BaseFile], start: int, stop: int) -> Iterator[Gathered]:
    """The rows start <= i < stop of one range, all of which are done, in pieces of bounded size."""
    rows = stop - start
    text_bytes = index.bytes_of(start) + sum(base.bytes_within(start, stop) for base in bases)
    pieces = 1 + text_bytes // _TEXT_BYTES
    step = max(1, -(-rows // pieces))
    for low in range(start, stop, step):
        yield _gather(index, bases, low, min(stop, low + step))


def _gather(index: BlockIndex, bases: Sequence[BaseFile], start: int, stop: int) -> Gathered:
    parts: list[tuple[int, int, bytes]] = []
    errors: dict[str, int] = {}
    counters: dict[str, float] = {}
    for segment, blocks in index.runs(start, stop).items():
        for place, header_raw, body in _read(index.path(segment), sorted(blocks)):
            runs = blocks[place]
            header = decode_header(header_raw)
            if header.errors:
                add_counts(errors, errors_within(header, [(low, high) for low, high, _ in runs]))
            if header.counters and any(line == 0 for _, _, line in runs):
                add_counts(counters, header.counters)
            if len(header.spans) == 1 and header.spans[0] == runs[0][:2]:
                parts.append((*runs[0][:2], body))
                continue
            lines = body.split(b"\n")
            for low, high, line in runs:
                text = lines[line] if high - low == 1 else b"\n".join(lines[line : line + high - low])
                parts.append((low, high, text))
    for base in bases:
        kept = base.kept(start, stop)
        if not kept:
            continue
        first = kept[0][0]
        lines = base.lines(first, kept[-1][1])
        parts += [(low, high, b"\n".join(lines[low - first : high - first])) for low, high in kept]
        for kind, rows in base.errors.items():
            if count := sum(high - low for low, high in rows.within(start, stop)):
                add_counts(errors, {kind: count})
    parts.sort(key=itemgetter(0))
    at = start
    for low, high, _ in parts:
        assert low == at, f"row {at} is not where it should be"
        at = high
    assert at == stop, f"row {at} is missing"
    text = b"\n".join([part for _, _, part in parts]) + b"\n"
    assert text.count(b"\n") == stop - start, "the text has not one line per row"
    return Gathered(text, errors, counters)


def _read(path: str, places: Sequence[Place]) -> Iterator[tuple[Place, bytes, bytes]]:
    """Header and body of blocks, neighbours by one read. `places` in ascending order."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = 0
        while first < len(places):
            begin = places[first].header_at
            last, end = first, _end(places[first])
            while (
                last + 1 < len(places)
                and places[last + 1].header_at - end < _GAP_BYTES
                and _end(places[last + 1]) - begin < _READ_BYTES
            ):
                last += 1
                end = _end(places[last])
            data = _pread(fd, path, begin, end - begin)
            for place in places[first : last + 1]:
                header_at, header_bytes, body_at, body_bytes = place
                header = data[header_at - begin : header_at - begin + header_bytes]
                yield place, header, data[body_at - begin : body_at - begin + body_bytes]
            first = last + 1
    finally:
        os.close(fd)


def _end(place: Place) -> int:
    return place.body_at + place.body_bytes


def _pread(fd: int, path: str, at: int, count: int) -> bytes:
    data = os.pread(fd, count, at)
    while len(data) < count:
        more = os.pread(fd, count - len(data), at + len(data))
        if not more:
            raise OutputError(f"{path} got shorter: run the same command again, what is lost will be done again")
        data += more
    return data


class OrderedFile:
    """The file that becomes the output: only ever appended to. Raises OSError."""

    def __init__(self, path: str, form: Form, size: int, files: Files) -> None:
        """`size`: bytes that count; what stands behind them is cut off."""
        self.path = path
        self.form: Form = form
        self.size = size
        self._files = files
        self._name_synced = False
        self._fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            if os.fstat(self._fd).st_size != size:
                files.truncate(self._fd, size)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, text: bytes) -> None:
        """Write; it does not count before `commit`."""
        self._files.write_all(self._fd, [pack(text, self.form)])

    def commit(self) -> int:
        """Make it survive a power cut; returns the new size, which the caller then sets."""
        self._files.datasync(self._fd)
        if not self._name_synced:
            self._files.sync_folder(os.path.dirname(self.path))
            self._name_synced = True
        return os.fstat(self._fd).st_size

    def cut(self) -> None:
        """Drop what does not count, as far as that works now."""
        with contextlib.suppress(OSError):
            self._files.truncate(self._fd, self.size)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
