"""The journal of a working folder: facts about the job that its segments don't hold.

One file per epoch, `journal-<epoch>.jsonl`: a new epoch begins by writing all that is known into its own (so that a
paused predecessor can't write into it), and counts once its `Epoch` record is there. A line is
`["<crc32>",{record}]`; lines that don't check were never written. What does not live here: what to do about the facts
(`opening.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotlight.io.files import Files, output_error
from pilotlight.io.fingerprint import BlockCrc


class Begin(msgspec.Struct, frozen=True, tag="begin", tag_field="record"):
    """The first epoch of this job: what it is, and whether it may take the place of a finished output."""

    epoch: int
    identity: dict[str, Any]
    overwrite: bool
    replaces: bool


class Retry(msgspec.Struct, frozen=True, tag="retry", tag_field="record"):
    """Error rows of these kinds (none named: all) in segments of earlier epochs are void."""

    epoch: int
    kinds: list[str]


class Base(msgspec.Struct, frozen=True, tag="base", tag_field="record"):
    """Rows start <= i < stop stand in an ordered file made before, but for error rows of these kinds (none: all).

    file: its name in the folder; "" is the output itself. bytes: what of it counts.
    """

    file: str
    start: int
    stop: int
    bytes: int
    kinds: list[str]


class Ordered(msgspec.Struct, frozen=True, tag="ordered", tag_field="record"):
    """The first `rows` rows are in order in the first `bytes` bytes of `file`; sums are over these rows."""

    file: str
    rows: int = 0
    bytes: int = 0
    errors: dict[str, int] = {}
    counters: dict[str, float] = {}


class Input(msgspec.Struct, frozen=True, tag="input", tag_field="record"):
    """Fingerprint of one block of the input."""

    block: int
    rows: int
    crc: int


class InputEnd(msgspec.Struct, frozen=True, tag="input_end", tag_field="record"):
    """The input has so many rows."""

    rows: int


class InputDiffers(msgspec.Struct, frozen=True, tag="input_differs", tag_field="record"):
    """A resumed run met another input: `--overwrite` must start afresh."""


class Attempts(msgspec.Struct, frozen=True, tag="attempts", tag_field="record"):
    """Index -> attempts charged so far."""

    counts: dict[int, int]


class Finishing(msgspec.Struct, frozen=True, tag="finishing", tag_field="record"):
    """The ordered file is complete; if it is gone from the folder, it is the output."""

    rows: int
    bytes: int


class Epoch(msgspec.Struct, frozen=True, tag="epoch", tag_field="record"):
    """All known facts stand before this line; what follows happened in this epoch."""

    epoch: int


Record = Begin | Retry | Base | Ordered | Input | InputEnd | InputDiffers | Attempts | Finishing | Epoch

_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(tuple[str, msgspec.Raw]).decode
_decode_record = msgspec.json.Decoder(Record).decode


@dataclass(slots=True)
class Facts:
    """What a journal says, summed up."""

    begin: Begin
    ordered: Ordered = field(default_factory=lambda: Ordered(""))
    retries: list[Retry] = field(default_factory=list[Retry])
    bases: list[Base] = field(default_factory=list[Base])
    inputs: dict[int, BlockCrc] = field(default_factory=dict[int, BlockCrc])
    rows_total: int | None = None
    input_differs: bool = False
    attempts: dict[int, int] = field(default_factory=dict[int, int])
    finishing: Finishing | None = None
    epoch: int = 0

    def take(self, record: Record) -> None:
        """Add one record."""
        match record:
            case Begin():
                self.begin = record
            case Retry():
                self.retries.append(record)
            case Base():
                self.bases.append(record)
            case Ordered():
                self.ordered = record
            case Input(block, rows, crc):
                self.inputs[block] = (block, rows, crc)
            case InputEnd(rows):
                self.rows_total = rows
            case InputDiffers():
                self.input_differs = True
            case Attempts(counts):
                self.attempts.update(counts)
            case Finishing():
                self.finishing = record
            case Epoch(epoch):
                self.epoch = epoch

    def records(self) -> list[Record]:
        """The shortest journal that says the same, without its `Epoch`."""
        records: list[Record] = [self.begin, *self.retries, *self.bases, self.ordered]
        records += [Input(*block) for block in self.inputs.values()]
        if self.attempts:
            records.append(Attempts(self.attempts))
        if self.rows_total is not None:
            records.append(InputEnd(self.rows_total))
        if self.input_differs:
            records.append(InputDiffers())
        return records


def journal_name(epoch: int) -> str:
    """The name of an epoch's journal."""
    return f"journal-{epoch}.jsonl"


def journal_of_name(name: str) -> int | None:
    """The epoch, if that is a journal's name."""
    found = re.fullmatch(r"journal-(\d+)\.jsonl", name)
    return int(found[1]) if found else None


def read_journal(path: str) -> Facts | None:
    """What a journal says; None if its epoch never began."""
    facts: Facts | None = None
    with open(path, "rb") as file:
        for line in file:
            record = _record(line)
            if record is None:
                continue
            if facts is None:
                if not isinstance(record, Begin):
                    return None
                facts = Facts(record)
            facts.take(record)
    return facts if facts and facts.epoch else None


class Journal:
    """The journal of the running epoch. Callers serialise their calls."""

    def __init__(self, folder: str, epoch: int, files: Files) -> None:
        """Claims the epoch: the file must not be there. Raises OSError."""
        self.path = os.path.join(folder, journal_name(epoch))
        self._files = files
        self._fd = files.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._end = 0
        self._torn = False
        self.dirty = False

    def append(self, records: Iterable[Record]) -> None:
        """Write records, all by one system call. Raises `OutputError`; then none of them counts."""
        lines: list[bytes] = []
        for record in records:
            raw = _encode(record)
            lines.append(b'["%08x",%b]\n' % (zlib.crc32(raw), raw))
        data = b"".join(lines)
        if self._torn:
            data = b"\n" + data
        try:
            self._files.write_all(self._fd, [data])
        except OSError as error:
            self._torn = True
            with contextlib.suppress(OSError):
                self._files.truncate(self._fd, self._end)
                self._torn = False
            raise output_error(self.path, error) from error
        self._torn = False
        self._end = os.fstat(self._fd).st_size
        self.dirty = True

    def sync(self) -> None:
        """Make what was written survive a power cut. Raises `OutputError`."""
        if self.dirty:
            self.dirty = False
            try:
                self._files.datasync(self._fd)
            except OSError as error:
                raise output_error(self.path, error) from error

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _record(line: bytes) -> Record | None:
    try:
        crc, raw = _decode_line(line)
        return _decode_record(raw) if int(crc, 16) == zlib.crc32(raw) else None
    except (msgspec.DecodeError, ValueError):
        return None
