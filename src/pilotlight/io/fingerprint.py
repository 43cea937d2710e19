"""The input's fingerprint: CRC-32 per block of 4,096 rows, over the rows' bytes as they were read.

It tells whether a resumed job reads what it read before. It does not depend on how rows were cut into chunks, on file
names or on blank lines.
"""

from __future__ import annotations

import zlib

from pilotlight.wire import Chunk

BLOCK_ROWS = 4096

BlockCrc = tuple[int, int, int]
"""Block number, its rows, the CRC-32 of its lines with a newline after each."""


class Fingerprint:
    """Feed it every chunk once, in order; a chunk must not cross a multiple of 4,096 rows."""

    def __init__(self) -> None:
        self.rows = 0
        """Rows fed so far."""
        self._crc = 0

    def feed(self, chunk: Chunk) -> list[BlockCrc]:
        """The blocks that this chunk completes (none or one)."""
        assert chunk.start == self.rows, "chunks must come in order"
        assert chunk.start // BLOCK_ROWS == (chunk.stop - 1) // BLOCK_ROWS, "a chunk crosses a block's end"
        self._crc = zlib.crc32(b"\n", zlib.crc32(chunk.blob, self._crc))
        self.rows = chunk.stop
        if self.rows % BLOCK_ROWS:
            return []
        done = (self.rows // BLOCK_ROWS - 1, BLOCK_ROWS, self._crc)
        self._crc = 0
        return [done]

    def end(self) -> list[BlockCrc]:
        """The last, partial block, if there is one."""
        rest = self.rows % BLOCK_ROWS
        return [(self.rows // BLOCK_ROWS, rest, self._crc)] if rest else []
