"""The conformance kit of `ports.Source`: whoever writes one hands `check` a function that makes it over given rows.

Each check raises AssertionError with a sentence. Rows are compact JSON objects, so any format can carry them; a source
that encodes rows itself must give these bytes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pilotlight.ports import Source
from pilotlight.wire import Chunk

MakeSource = Callable[[Sequence[bytes]], Source]
"""A new source over exactly these rows, in this order."""

CHUNK_ROWS_MAX = 1024
CHUNK_BYTES_MAX = 256 << 10
BLOCK_ROWS = 4096


def check(make: MakeSource) -> None:
    """Run every check."""
    for rows in ([], some_rows(1), some_rows(10_000), _long_rows()):
        for rows_max in (1_000_000, 1024, 7) if len(rows) < 1000 else (1_000_000, 1000):
            check_rows(make, rows, rows_max)
    check_fraction(make)
    check_close(make)


def some_rows(count: int) -> list[bytes]:
    """Distinct small rows."""
    return [b'{"n":%d,"text":"row %d"}' % (n, n) for n in range(count)]


def read_all(source: Source, rows_max: int) -> list[Chunk]:
    """Every chunk; checks that no read gives more than asked for, and that the end stays the end."""
    chunks: list[Chunk] = []
    while some := source.read(rows_max):
        assert sum(chunk.count for chunk in some) <= rows_max, "a read gave more rows than were asked for"
        chunks += some
    assert source.read(rows_max) == [], "there were rows after the end"
    return chunks


def check_rows(make: MakeSource, rows: Sequence[bytes], rows_max: int) -> None:
    """All rows come, once, in order, in chunks as the port wants them."""
    source = make(rows)
    try:
        chunks = read_all(source, rows_max)
    finally:
        source.close()
    got: list[bytes] = []
    for chunk in chunks:
        lines = chunk.blob.split(b"\n")
        assert chunk.start == len(got), f"a chunk starts at {chunk.start} where row {len(got)} was due"
        assert len(lines) == chunk.count > 0, f"a chunk of {chunk.count} rows has {len(lines)} lines"
        assert chunk.count <= CHUNK_ROWS_MAX, f"a chunk has {chunk.count} rows"
        assert chunk.count == 1 or len(chunk.blob) <= CHUNK_BYTES_MAX, f"a chunk has {len(chunk.blob)} bytes"
        assert chunk.start // BLOCK_ROWS == (chunk.stop - 1) // BLOCK_ROWS, "a chunk crosses a multiple of 4,096 rows"
        assert chunk.line >= 1, "line numbers start at 1"
        assert chunk.origin, "a chunk does not say where it is from"
        got += lines
    assert got == list(rows), "the rows are not those of the input"


def check_fraction(make: MakeSource) -> None:
    """What was read never shrinks, stays in 0 to 1, and is all at the end (if it can be told)."""
    source = make(some_rows(20_000))
    try:
        seen = [source.fraction]
        while source.read(1000):
            seen.append(source.fraction)
        seen.append(source.fraction)
    finally:
        source.close()
    told = [fraction for fraction in seen if fraction is not None]
    assert told == sorted(told), "the fraction read went back"
    assert all(0 <= fraction <= 1 for fraction in told), "the fraction read is not in 0 to 1"
    assert seen[-1] in (None, 1.0), "at the end not all was read"


def check_close(make: MakeSource) -> None:
    """Closing twice, early or before any read, does no harm."""
    source = make(some_rows(5000))
    source.close()
    source.close()
    source = make(some_rows(5000))
    source.read(10)
    source.close()
    source.close()


def _long_rows() -> list[bytes]:
    sizes = [10, 300_000, 10, 10, 150_000, 150_000, 0, 262_144]
    return [b'{"n":%d,"text":"%s"}' % (n, b"x" * size) for n, size in enumerate(sizes)]
