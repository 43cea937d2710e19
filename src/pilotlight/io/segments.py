r"""Segments: append-only files of finished rows, in the order in which they finished.

A segment is a sequence of blocks, one per `ResultChunk`, each written by one system call:

    pl1 <crc32> <header bytes> <body bytes> {"spans":[[0,2]],"errors":{},"counters":{}}\n
    first output line\n
    second output line\n

The CRC covers header and body. A block that does not check was never written: the reader goes on at the next line that
starts with `pl1 `. What does not live here: which of several blocks counts for an index (`blocks.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from pilotlight.io.files import Files, output_error
from pilotlight.wire import ResultChunk, Span

SEGMENT_BYTES = 64 << 20
_MARK = re.compile(rb"pl1 ([0-9a-f]{8}) ([0-9]{1,9}) ([0-9]{1,12}) ")
_NEXT = b"\npl1 "


class BlockHeader(msgspec.Struct, omit_defaults=True):
    """A `ResultChunk` without its rows."""

    spans: list[Span]
    errors: dict[str, list[int]] = {}
    counters: dict[str, float] = {}


class Place(NamedTuple):
    """Where a block is in its segment, in bytes from the front."""

    header_at: int
    header_bytes: int
    body_at: int
    body_bytes: int


decode_header = msgspec.json.Decoder(BlockHeader).decode
_encode_header = msgspec.json.Encoder().encode


def segment_name(epoch: int, number: int) -> str:
    """The name of an epoch's n-th segment."""
    return f"segment-{epoch}-{number}.pl"


def segment_of_name(name: str) -> tuple[int, int] | None:
    """Epoch and number, if that is a segment's name."""
    found = re.fullmatch(r"segment-(\d+)-(\d+)\.pl", name)
    return (int(found[1]), int(found[2])) if found else None


class SegmentWriter:
    """Writes one epoch's segments. One thread writes; `sync` may be called from another.

    After a failed write nothing of that block counts; the next write starts a new segment.
    """

    def __init__(self, folder: str, epoch: int, files: Files, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._epoch = epoch
        self._files = files
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._number = 0
        self._fd = -1
        self._end = 0
        self._unsynced: list[int] = []
        """Full segments that wait for their last sync before they are closed."""
        self._dirty = False
        self._new_names = False
        self.path = ""
        """The segment that the next write goes to, unless it is full."""

    def write(self, chunk: ResultChunk) -> tuple[str, Place]:
        """Append a block; returns the segment's path and the place. Raises `OutputError`."""
        assert chunk.blob.count(b"\n") + 1 == chunk.count, "a result chunk must have one line per row"
        header = _encode_header(BlockHeader(chunk.spans, chunk.errors, chunk.counters))
        crc = zlib.crc32(chunk.blob, zlib.crc32(header))
        mark = b"pl1 %08x %d %d " % (crc, len(header), len(chunk.blob))
        with self._lock:
            try:
                if self._fd < 0:
                    self._open()
                self._files.write_all(self._fd, [mark, header, b"\n", chunk.blob, b"\n"])
            except OSError as error:
                path = self.path
                self._abandon()
                raise output_error(path, error) from error
            header_at = self._end + len(mark)
            place = Place(header_at, len(header), header_at + len(header) + 1, len(chunk.blob))
            self._end = place.body_at + place.body_bytes + 1
            self._dirty = True
            path = self.path
            if self._end >= self._segment_bytes:
                self._unsynced.append(self._fd)
                self._fd, self.path = -1, ""
        return path, place

    def sync(self) -> None:
        """Make all blocks survive a power cut. After an `OutputError` from here, nothing is known about them."""
        with self._lock:
            full, self._unsynced = self._unsynced, []
            current = os.dup(self._fd) if self._dirty and self._fd >= 0 else -1
            new_names, self._new_names, self._dirty = self._new_names, False, False
        fds = [*full, current] if current >= 0 else full
        try:
            for fd in fds:
                self._files.datasync(fd)
            if new_names:
                self._files.sync_folder(self._folder)
        except OSError as error:
            raise output_error(self._folder, error) from error
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Let go of the files, as they are. Idempotent."""
        with self._lock:
            for fd in [*self._unsynced, self._fd]:
                if fd >= 0:
                    os.close(fd)
            self._unsynced, self._fd = [], -1

    def _open(self) -> None:
        self.path = os.path.join(self._folder, segment_name(self._epoch, self._number))
        self._number += 1
        self._fd = self._files.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._end = 0
        self._new_names = True

    def _abandon(self) -> None:
        if self._fd >= 0 and self._end == 0:
            # A full disk is tried again and again; that must not litter.
            os.close(self._fd)
            with contextlib.suppress(OSError):
                self._files.unlink(self.path)
        elif self._fd >= 0:
            with contextlib.suppress(OSError):
                self._files.truncate(self._fd, self._end)
            self._unsynced.append(self._fd)
        self._fd, self.path = -1, ""


def scan_blocks(data: bytes) -> Iterator[tuple[Place, BlockHeader]]:
    """The valid blocks of a segment's content, in order."""
    view = memoryview(data)
    at = 0
    while at >= 0 and at < len(data):
        found = _MARK.match(data, at)
        if found and (block := _block(view, found)):
            yield block
            place = block[0]
            at = place.body_at + place.body_bytes + 1
            if data.startswith(b"pl1 ", at):
                continue
            at -= 1
        at = data.find(_NEXT, at)
        at = at + 1 if at >= 0 else -1


def scan_segment(path: str) -> Iterator[tuple[int, ResultChunk]]:
    """The valid blocks of a segment file with their offsets, in order; torn and garbled ones are passed over.

    Repeated indices are not removed here: the first one counts.
    """
    data = read_segment(path)
    for place, header in scan_blocks(data):
        body = data[place.body_at : place.body_at + place.body_bytes]
        # The mark is rebuilt by no one: its line starts after the newline before the header.
        offset = data.rfind(b"\n", 0, place.header_at) + 1
        yield offset, ResultChunk(header.spans, body, header.errors, header.counters)


def read_segment(path: str) -> bytes:
    """Its content: read, not mapped, because a writer that is still alive may cut it."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _block(view: memoryview, mark: re.Match[bytes]) -> tuple[Place, BlockHeader] | None:
    header_at, header_bytes, body_bytes = mark.end(), int(mark[2]), int(mark[3])
    body_at = header_at + header_bytes + 1
    if body_at + body_bytes > len(view):
        return None
    header = view[header_at : header_at + header_bytes]
    body = view[body_at : body_at + body_bytes]
    if zlib.crc32(body, zlib.crc32(header)) != int(mark[1], 16):
        return None
    try:
        decoded = decode_header(header)
    except msgspec.DecodeError:
        return None
    return Place(header_at, header_bytes, body_at, body_bytes), decoded
