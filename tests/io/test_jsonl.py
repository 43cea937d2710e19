"""JSON lines in: which lines are rows, in which chunks, from which kinds of files, and what can be wrong."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotlight.core.errors import InputError, RequestError
from pilotlight.io.fingerprint import Fingerprint
from pilotlight.io.jsonl import JsonlSource, first_rows
from pilotlight.testing import sources
from pilotlight.wire import Chunk


def _lines(chunks: Sequence[Chunk]) -> list[tuple[str, int, bytes]]:
    return [
        (chunk.origin, chunk.line + at, line) for chunk in chunks for at, line in enumerate(chunk.blob.split(b"\n"))
    ]


def _read(*paths: Path, limit: int | None = None) -> list[tuple[str, int, bytes]]:
    return _lines(sources.read_all(JsonlSource([str(path) for path in paths], limit), 10_000))


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
def test_passes_the_kit(tmp_path: Path, form: str) -> None:
    count = 0

    def make(rows: Sequence[bytes]) -> JsonlSource:
        nonlocal count
        count += 1
        data = b"".join(row + b"\n" for row in rows)
        path = tmp_path / f"{count}.jsonl"
        if form == "gzip":
            data = gzip.compress(data, 1)
        elif form == "zstd":
            data = zstandard.ZstdCompressor().compress(data)
        path.write_bytes(data)
        return JsonlSource([str(path)])

    sources.check(make)


_LINE = st.sampled_from([b"{}", b'{"a":1}', b"", b"  ", b"\t", b" {} ", b"x" * 70_000, b'{"b":"\xc3\xa9"}', b"\x0b"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(_LINE, st.sampled_from([b"\n", b"\r\n"])), max_size=30), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_rows_are_the_lines_that_are_not_blank(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[tuple[bytes, bytes]]],
    bom: bool,
    cut_last_end: bool,
    repeat: int,
    rows_max: int,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    paths: list[str] = []
    want: list[tuple[str, int, bytes]] = []
    for number, lines in enumerate(files):
        path = folder / f"{number}.jsonl"
        repeated = lines * repeat
        data = b"".join(line + end for line, end in repeated)
        if cut_last_end and lines:
            data = data[: -len(lines[-1][1])]
        path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + data)
        paths.append(str(path))
        want += [(path.name, at, line) for at, (line, _) in enumerate(repeated, 1) if line.strip()]
    got = sources.read_all(JsonlSource(paths), 100 * rows_max + 1)
    assert _lines(got) == want
    assert [chunk.start for chunk in got] == [sum(c.count for c in got[:at]) for at in range(len(got))]


def test_several_files_and_members_and_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_bytes(b"1\n2")
    (tmp_path / "x.jsonl").write_bytes(gzip.compress(b"3\n4") + gzip.compress(b"5\n") + b"\0" * 512)
    frame = zstandard.ZstdCompressor().compress(b"6\n")
    (tmp_path / "y").write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + frame + frame)
    paths = [tmp_path / "a" / "x.jsonl", tmp_path / "x.jsonl", tmp_path / "y"]
    rows = _read(*paths)
    assert [row for _, _, row in rows] == [b"1", b"2", b"3", b"45", b"6", b"6"]
    assert [origin for origin, _, _ in rows] == [str(paths[0])] * 2 + [str(paths[1])] * 2 + ["y", "y"]
    assert _read(*paths, limit=3) == rows[:3]
    assert _read(*paths, limit=0) == []


def test_what_cannot_be_read_is_told_by_the_constructor(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_bytes(b"{}\n")
    cases = {
        "there is no file gone.jsonl": None,
        "Parquet": b"PAR1....",
        "UTF-16": "{}".encode("utf-16"),
        "not a text file": b"{}\n\0\0\0",
        "cut off": gzip.compress(b"{}\n" * 100)[:11],
        "damaged": gzip.compress(b"{}\n" * 100)[:10] + b"\xff" * 50,
    }
    for text, data in cases.items():
        path = tmp_path / "gone.jsonl"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=text):
            JsonlSource([str(good), str(path)])
        path.unlink(missing_ok=True)
    with pytest.raises(InputError, match="is a folder"):
        JsonlSource([str(tmp_path)])
    with pytest.raises(InputError):
        JsonlSource([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.touch(0o000)
    with pytest.raises(InputError, match=r"no permission to read x\.jsonl"):
        JsonlSource([str(path)])


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_cut_file_gives_its_rows_and_then_the_line(tmp_path: Path, form: str) -> None:
    data = b"".join(b'{"n":%d,"r":"%s"}\n' % (n, os.urandom(40).hex().encode()) for n in range(20_000))
    packed = gzip.compress(data) if form == "gzip" else zstandard.ZstdCompressor().compress(data)
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    source = JsonlSource([str(path)])
    got: list[Chunk] = []
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz is cut off: .* \(after line \d+\)"):
        got.extend(chunk for _ in range(100) for chunk in source.read(1000))
    assert 5000 < sum(chunk.count for chunk in got) < 20_000


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}, 'wb').write(b'1\\n2\\n')"]):
        source = JsonlSource([str(path)])
        assert source.fraction is None
        assert [line for _, _, line in _lines(sources.read_all(source, 10))] == [b"1", b"2"]


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_bytes((b'{"n":"%s"}\n' % (b"x" * 190)) * 150_000)
    source = JsonlSource([str(path)])
    tracemalloc.start()
    while source.read(2048):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a":1}\n\n[2]\nnot json\n{"b":2}\n')
    first, listed, wrong, last = first_rows([str(path)], 10)
    assert (first, last) == ({"a": 1}, {"b": 2})
    assert isinstance(listed, RequestError)
    assert str(listed) == "x.jsonl line 3: not a JSON object but a list"
    assert isinstance(wrong, RequestError)
    assert str(wrong).startswith("x.jsonl line 4: not valid JSON: ")
    assert len(first_rows([str(path)], 2)) == 2


def test_fingerprint_does_not_depend_on_chunks(tmp_path: Path) -> None:
    rows = sources.some_rows(9000)
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"\r\n".join(rows))
    b.write_bytes(b"\n\n".join(rows))
    want = [
        (at, len(part), zlib.crc32(b"".join(row + b"\n" for row in part)))
        for at in range(3)
        if (part := rows[at * 4096 : at * 4096 + 4096])
    ]
    for path, rows_max in ((a, 9000), (a, 100), (b, 5000)):
        fingerprint = Fingerprint()
        got = [
            block for chunk in sources.read_all(JsonlSource([str(path)]), rows_max) for block in fingerprint.feed(chunk)
        ]
        assert got + fingerprint.end() == want
