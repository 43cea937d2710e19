"""An output answers its own input only, whether it is finished or was left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilotlight.core.errors import InputChanged
from pilotlight.io.fingerprint import Fingerprint
from pilotlight.io.journaled import JournaledSource, verify
from pilotlight.io.jsonl import JsonlSource
from pilotlight.io.workfolder import JobFolder
from pilotlight.wire import PathOutput, ResultChunk

IDENTITY: dict[str, Any] = {"context": "abc"}


def write(path: Path, rows: int, *, odd: int = -1) -> None:
    path.write_text("".join(f'{{"row":{"true" if row == odd else row}}}\n' for row in range(rows)))


def make(folder: Path, rows: int, limit: int | None, *, finish: bool) -> None:
    write(folder / "in.jsonl", rows)
    job = JobFolder.open(PathOutput(path=str(folder / "out.jsonl")), IDENTITY)
    source = JournaledSource(JsonlSource([str(folder / "in.jsonl")], limit), job)
    while chunks := source.read(1024):
        for chunk in chunks:
            lines = (b'{"index":%d,"result":0}' % index for index in range(chunk.start, chunk.stop))
            job.write(ResultChunk([(chunk.start, chunk.stop)], b"\n".join(lines)))
    if finish:
        job.finish(rows if limit is None else min(rows, limit))
    job.close()
    source.close()


def again(folder: Path, limit: int | None = None) -> None:
    job = JobFolder.open(PathOutput(path=str(folder / "out.jsonl")), IDENTITY)
    source = JsonlSource([str(folder / "in.jsonl")], limit)
    try:
        verify(source, job)
    finally:
        source.close()
        job.close()


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("rows", [0, 5, 4096, 5000])
def test_its_own_input_is_known_again(tmp_path: Path, rows: int, finish: bool) -> None:
    make(tmp_path, rows, None, finish=finish)
    again(tmp_path)
    again(tmp_path, rows)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(
    ("rows", "odd", "message"),
    [
        (5000, 17, "rows 1 to 4096 differ"),
        (5000, 4999, "rows 4097 to 5000 differ"),
        (5001, -1, "5,001 rows now, and had 5,000"),
        (4999, -1, "4,999 rows now, and had 5,000"),
        (4096, -1, "4,096 rows now, and had 5,000"),
        (0, -1, "0 rows now, and had 5,000"),
    ],
)
def test_another_input_is_refused(tmp_path: Path, rows: int, odd: int, message: str, finish: bool) -> None:
    make(tmp_path, 5000, None, finish=finish)
    write(tmp_path / "in.jsonl", rows, odd=odd)
    with pytest.raises(InputChanged, match=message):
        again(tmp_path)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(("limit", "then", "message"), [(4096, None, "5,000 rows now"), (None, 4096, "4,096 rows now")])
def test_another_limit_is_another_input(
    tmp_path: Path, limit: int | None, then: int | None, message: str, finish: bool
) -> None:
    make(tmp_path, 5000, limit, finish=finish)
    with pytest.raises(InputChanged, match=message):
        again(tmp_path, then)


def test_of_an_input_that_was_not_read_to_its_end_the_rest_may_be_anything(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 9000)
    job = JobFolder.open(PathOutput(path=str(tmp_path / "out.jsonl")), IDENTITY)
    source = JournaledSource(JsonlSource([str(tmp_path / "in.jsonl")]), job)
    source.read(1000)
    source.close()
    job.close()
    write(tmp_path / "in.jsonl", 9000, odd=5000)
    again(tmp_path)
    write(tmp_path / "in.jsonl", 4000)
    with pytest.raises(InputChanged, match="only 4,000 rows now"):
        again(tmp_path)


def test_rows_added_to_an_input_whose_end_was_not_journaled(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 100)
    job = JobFolder.open(PathOutput(path=str(tmp_path / "out.jsonl")), IDENTITY)
    (chunk,) = JsonlSource([str(tmp_path / "in.jsonl")]).read(1000)
    fingerprint = Fingerprint()
    fingerprint.feed(chunk)
    job.record_input(*fingerprint.end()[0])
    job.close()
    again(tmp_path)
    write(tmp_path / "in.jsonl", 101)
    with pytest.raises(InputChanged, match="it had 100 rows, and has more now"):
        again(tmp_path)
