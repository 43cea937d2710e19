"""Whole lines out of a stream of bytes, a block at a time, so that no Python code runs per line.

What does not live here: what a line means, and which lines count as rows (`jsonl.py`).
"""

from __future__ import annotations

from pilotlight.core.errors import InputError
from pilotlight.io.compression import ByteReader

_LINE_BYTES_MAX = 256 << 20


class LineBlocks:
    """The lines of one file. Each block is lines joined by one newline, without a last one."""

    def __init__(self, reader: ByteReader) -> None:
        self.reader = reader
        self._parts: list[bytes] = []
        self._held = 0

    def next(self) -> bytes | None:
        """The next block, or None at the end. A last line without a newline is a line like any other."""
        while data := self.reader.read():
            cut = data.rfind(b"\n")
            if cut < 0:
                self._hold(data)
                continue
            block = b"".join((*self._parts, data[:cut]))
            self._parts, self._held = [], 0
            if cut + 1 < len(data):
                self._hold(data[cut + 1 :])
            return block
        if not self._parts:
            return None
        block = b"".join(self._parts)
        self._parts, self._held = [], 0
        return block

    def _hold(self, data: bytes) -> None:
        self._parts.append(data)
        self._held += len(data)
        if self._held > _LINE_BYTES_MAX:
            raise InputError(
                f"{self.reader.name} has a line of more than {_LINE_BYTES_MAX >> 20} MiB: it should have one JSON "
                "object per line (for one big JSON array: jq -c '.[]')"
            )
