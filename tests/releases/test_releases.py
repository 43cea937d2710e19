"""What earlier releases left in the middle of a run, this one finishes: same command, same pool, exact output.

`make.py` says how the folders were made. They are never made again: a change that can't read them breaks a promise.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pilotlight.io.report import read_report
from tests.faults.harness import Playground, playground
from tests.faults.lasting import LastingPool
from tests.releases.make import CASES, HERE, OPTIONS, PYTHON

EXTRACTION: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python 3.11 has filters since 3.11.4."""
FOLDERS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "plain.tar.zst").exists())


@pytest.fixture
def ground() -> Iterator[Playground]:
    with playground() as made:
        yield made


def unpack(kept: Path, ground: Playground) -> None:
    """Put back what was left, long ago and on another machine."""
    with tarfile.open(fileobj=io.BytesIO(zstandard.decompress(kept.read_bytes()))) as tar:
        tar.extractall(ground.folder, **EXTRACTION)
    for lock in ground.folder.glob("*.pilotlight/lock"):
        os.utime(lock, (0, 0))


def lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    return data.splitlines()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on(folder: Path, name: str, ground: Playground) -> None:
    case = CASES[name]
    unpack(folder / f"{name}.tar.zst", ground)
    code, said = ground.run("run", case.source, "-o", case.out, *OPTIONS)
    expected = lines(next(ground.folder.glob("expected.*")))
    assert code == (3 if any(b'"error"' in line for line in expected) else 0), said
    assert lines(ground.folder / case.out) == expected
    assert not (ground.folder / f"{case.out}.pilotlight").exists()
    report = read_report(str(ground.folder / case.out))
    assert report is not None
    assert case.done <= report["rows_resumed"] < len(expected)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_pool_goes_on(folder: Path, ground: Playground) -> None:
    unpack(folder / "pool.tar.zst", ground)
    left = ground.folder / "pool"
    for path in left.rglob("*"):
        if path.is_file():
            known = path.read_bytes().replace(HERE.encode(), str(ground.folder).encode())
            path.write_bytes(known.replace(PYTHON.encode(), sys.executable.encode()))
    described = (left / "pool.json").read_bytes()
    left.rename(ground.folder / "old")
    pool = LastingPool(ground)
    for path in (ground.folder / "old").iterdir():
        path.rename(pool.folder / path.name)
    assert (pool.folder / "pool.json").read_bytes() == described
    pool.up()
    try:
        with pool.client() as client:
            assert client.greeting.epoch == 2
            client.seen(lambda snapshot: not snapshot.jobs and (ground.folder / "out.jsonl").exists())
    finally:
        pool.down()
    assert lines(ground.folder / "out.jsonl") == lines(ground.folder / "expected.jsonl")


def test_there_is_a_folder_for_each_release_but_the_one_in_the_making() -> None:
    assert FOLDERS
    assert all(path.stat().st_size < 200_000 for folder in FOLDERS for path in folder.iterdir())
