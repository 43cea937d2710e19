"""A source whose rows are known again: every block that is read has its fingerprint journaled before anyone sees it."""

from __future__ import annotations

from pilotlight.core.errors import InputChanged
from pilotlight.io.fingerprint import BLOCK_ROWS, Fingerprint
from pilotlight.io.workfolder import JobFolder
from pilotlight.ports import Source
from pilotlight.wire import Chunk

VERIFY_ROWS = 16 * BLOCK_ROWS


class JournaledSource:
    """`ports.Source` around another one. Reads whole blocks, so it may return more rows than asked for."""

    def __init__(self, source: Source, folder: JobFolder) -> None:
        self._source = source
        self._folder = folder
        self._fingerprint = Fingerprint()
        self._upto = 0
        self._ended = False

    def read(self, rows_max: int) -> list[Chunk]:
        """See `ports.Source`. Raises `InputChanged` where a resumed job read other rows before."""
        target = -(-(self._upto + rows_max) // BLOCK_ROWS) * BLOCK_ROWS
        chunks: list[Chunk] = []
        while not self._ended and self._upto < target:
            more = self._source.read(target - self._upto)
            for chunk in more:
                self._upto = chunk.stop
                for block in self._fingerprint.feed(chunk):
                    self._folder.record_input(*block)
            if not more:
                self._ended = True
                for block in self._fingerprint.end():
                    self._folder.record_input(*block)
                self._folder.record_input_end(self._upto)
            chunks += more
        return chunks

    @property
    def fraction(self) -> float | None:
        """See `ports.Source`."""
        return self._source.fraction

    def close(self) -> None:
        """See `ports.Source`."""
        self._source.close()


def verify(source: Source, folder: JobFolder) -> None:
    """Read what an earlier run had read, and compare. Uses `source` up. Raises `InputChanged`.

    An input that was read to its end must end there again; of another, only the blocks that were read must be equal.
    """
    known = {block: (rows, crc) for block, rows, crc in folder.input_blocks}
    to_the_end = folder.rows_total is not None
    fingerprint = Fingerprint()
    found: dict[int, tuple[int, int]] = {}
    while to_the_end or not found.keys() >= known.keys():
        chunks = source.read(VERIFY_ROWS)
        blocks = [block for chunk in chunks for block in fingerprint.feed(chunk)] if chunks else fingerprint.end()
        found |= {block: (rows, crc) for block, rows, crc in blocks}
        if not chunks:
            break
    for block, expected in sorted(known.items()):
        if found.get(block, expected)[1] != expected[1] and found[block][0] == expected[0]:
            first = block * BLOCK_ROWS + 1
            raise _changed(folder, f"rows {first} to {first + expected[0] - 1} differ")
    if to_the_end and fingerprint.rows != folder.rows_total:
        raise _changed(folder, f"it has {fingerprint.rows:,} rows now, and had {folder.rows_total:,}")
    rows_known = sum(rows for rows, _ in known.values())
    if fingerprint.rows < rows_known:
        raise _changed(folder, f"it has only {fingerprint.rows:,} rows now")
    if any(found[block] != expected for block, expected in known.items()):
        # Its last, partial block was journaled, and then the run was killed before it could journal the end.
        raise _changed(folder, f"it had {rows_known:,} rows, and has more now")


def _changed(folder: JobFolder, how: str) -> InputChanged:
    message = (
        f"the input is not the one that {folder.path} was made from: {how}; "
        f"give the old input, another output, or --overwrite"
    )
    return InputChanged(message)
