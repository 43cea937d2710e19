"""A job's output comes out exact whatever stops it: kills between any two steps, power cuts, full disks, torn files."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pilotlight.core.errors import OutputError
from pilotlight.io.files import Files
from pilotlight.io.segments import SegmentWriter, scan_segment
from pilotlight.io.workfolder import JobFolder
from pilotlight.testing import sinks
from pilotlight.wire import PathOutput, ResultChunk, Span

from .faulty import Crash, CrashingFiles, FullDisk, PowerCut, QuickFiles

ROWS = 50
# A life of a job is too slow to be shrunk step by step.
_NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
IDENTITY: dict[str, Any] = {"context": "abc"}


def _open(out: Path, files: Files | None = None, retry_errors: list[str] | None = None) -> JobFolder:
    output = PathOutput(path=str(out), retry_errors=retry_errors)
    return JobFolder.open(output, IDENTITY, files=files or Files(), range_rows=16, segment_bytes=2000)


def _die(job: JobFolder | None) -> None:
    """What the system does for a dead process: close its descriptors, nothing else."""
    opened = job._opened if job else None
    if job and opened:
        if job._lock._fd >= 0:
            os.close(job._lock._fd)
            job._lock._fd = -1
        job.close()


def _run(out: Path, files: Files, rng: random.Random, retry_errors: list[str] | None = None) -> None:
    """One life of a job: goes on, does what is missing in a random order, finishes."""
    job: JobFolder | None = None
    try:
        job = _open(out, files, retry_errors)
        if job.complete:
            return
        job.record_input(0, ROWS, 5)
        job.record_input_end(ROWS)
        missing = job.done.missing(0, ROWS)
        while missing:
            at = rng.randrange(len(missing))
            start, stop = missing.pop(at)
            cut = min(stop, start + rng.choice([1, 3, 20]))
            if cut < stop:
                missing.append((cut, stop))
            spans = [(start, cut)]
            if missing and rng.random() < 0.3:
                spans.append(missing.pop(rng.randrange(len(missing))))
            job.write(sinks.result_chunk(spans))
            if rng.random() < 0.2:
                job.sync()
        job.finish(ROWS)
    finally:
        _die(job)


def _check_output(out: Path) -> None:
    assert out.read_bytes().splitlines() == sinks.expected(ROWS)
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert (report["rows"], report["errors"]) == (ROWS, {"odd": ROWS // 10})
    left = set(os.listdir(out.parent)) - {"o.jsonl", "o.jsonl.report.json"}
    assert not left


def _steps(out: Path, act: Callable[[Files], None]) -> int:
    counting = CrashingFiles(1 << 30)
    act(counting)
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    return (1 << 30) - counting.left


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_before_any_step(tmp_path: Path, torn: bool) -> None:
    out = tmp_path / "job" / "o.jsonl"
    out.parent.mkdir()
    for crash_at in range(_steps(out, lambda files: _run(out, files, random.Random(1)))):
        with pytest.raises(Crash):
            _run(out, CrashingFiles(crash_at, torn=torn), random.Random(1))
        _run(out, QuickFiles(), random.Random(2))
        _check_output(out)
        out.unlink()
        os.unlink(f"{out}.report.json")


def test_a_kill_before_any_step_of_doing_errors_again(tmp_path: Path) -> None:
    out = tmp_path / "job" / "o.jsonl"
    out.parent.mkdir()
    before = tmp_path / "before"
    _run(out, QuickFiles(), random.Random(1))
    old = out.read_bytes()
    shutil.copytree(out.parent, before)

    def again(files: Files) -> None:
        _run(out, files, random.Random(3), [])

    for crash_at in range(_steps_after(out, before, again)):
        shutil.rmtree(out.parent)
        shutil.copytree(before, out.parent)
        with pytest.raises(Crash):
            again(CrashingFiles(crash_at))
        assert out.read_bytes() == old  # the answers are equal here, so it must never be anything else
        again(QuickFiles())
        _check_output(out)


def _steps_after(out: Path, before: Path, act: Callable[[Files], None]) -> int:
    counting = CrashingFiles(1 << 30)
    act(counting)
    shutil.rmtree(out.parent)
    shutil.copytree(before, out.parent)
    return (1 << 30) - counting.left


@settings(max_examples=40, deadline=None, phases=_NO_SHRINKING)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 100), max_size=6))
def test_many_lives(tmp_path_factory: pytest.TempPathFactory, rng: random.Random, crashes: list[int]) -> None:
    out = tmp_path_factory.mktemp("job") / "o.jsonl"
    for crash_at in crashes:
        try:
            _run(out, CrashingFiles(crash_at, torn=rng.random() < 0.5), rng)
            break
        except Crash:
            _damage(out, rng)
    _run(out, QuickFiles(), rng)
    _check_output(out)


def _damage(out: Path, rng: random.Random) -> None:
    """Repeat blocks and append rubbish to segments and journals, as torn writes and other epochs do."""
    folder = Path(f"{out}.pilotlight")
    for path in folder.glob("segment-*") if folder.exists() else ():
        data = path.read_bytes()
        if data and rng.random() < 0.3:
            path.write_bytes(
                data + rng.choice([data, data[: len(data) // 2], b"\0" * 40, b"\npl1 00000000 2 3 {}\n", b"pl1 "])
            )
    for path in folder.glob("journal-*") if folder.exists() else ():
        if rng.random() < 0.3:
            path.write_bytes(path.read_bytes() + rng.choice([b'["00', b"\0\0\n", b'["00000000",{}]\n']))


@settings(max_examples=40, deadline=None, phases=_NO_SHRINKING)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_power_cuts(tmp_path_factory: pytest.TempPathFactory, rng: random.Random, cuts: int) -> None:
    out = tmp_path_factory.mktemp("job") / "o.jsonl"

    class CrashingDisk(PowerCut):
        left = 0

        def write(self, fd: int, parts: Any) -> int:
            self.left -= 1
            if self.left < 0:
                raise Crash
            return super().write(fd, parts)

    disk = CrashingDisk()
    synced = 0
    for _ in range(cuts):
        disk.left = rng.randint(0, 60)
        job: JobFolder | None = None
        try:
            job = _open(out, disk)
            assert len(job.done) >= synced, "synced rows were lost"
            for start, stop in job.done.missing(0, ROWS):
                for index in range(start, stop):
                    if rng.random() < 0.7:
                        job.write(sinks.result_chunk([(index, index + 1)]))
                        if rng.random() < 0.1:
                            job.sync()
                            synced = max(synced, len(job.done))
        except Crash:
            pass
        finally:
            _die(job)
        if os.path.isdir(f"{out}.pilotlight") and rng.random() < 0.7:
            disk.cut(f"{out}.pilotlight", rng)
    _run(out, QuickFiles(), rng)
    _check_output(out)


def test_a_power_cut_right_after_a_sync_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    disk = PowerCut()
    done = 0
    for rows in range(2, 50, 7):
        job = _open(out, disk)
        assert job.done.spans() == ([(0, done)] if done else [])
        for index in range(done, rows):
            job.write(sinks.result_chunk([(index, index + 1)]))
        if rows % 2:
            job.sync()  # else: killed, and the next life has to sync what is here
            disk.cut(job.folder)
        _die(job)
        done = rows
        job = _open(out, disk)
        job.sync()
        disk.cut(job.folder)
        _die(job)


@pytest.mark.parametrize("seed", range(4))
def test_a_full_disk_loses_nothing(tmp_path: Path, seed: int) -> None:
    out = tmp_path / "o.jsonl"
    rng = random.Random(seed)
    disk = FullDisk(0)
    kept = 0
    refusals = 0
    while True:
        disk.room += rng.choice([40, 400, 4000])
        job: JobFolder | None = None
        try:
            job = _open(out, disk)
            assert len(job.done) >= kept
            for start, stop in job.done.missing(0, ROWS):
                for index in range(start, stop):
                    job.write(sinks.result_chunk([(index, index + 1)]))
                    kept = len(job.done)
                    if index % 5 == 0:
                        job.sync()
            job.finish(ROWS)
            break
        except OutputError as error:
            assert "no room left" in str(error)  # noqa: PT017
            refusals += 1
        finally:
            if job:
                job.close()
    assert refusals > 3
    _check_output(out)


def test_the_same_process_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    disk = FullDisk(1 << 20)
    job = _open(out, disk)
    chunks = sinks.random_chunks(ROWS, 5)
    for at, chunk in enumerate(chunks):
        disk.room = 10
        with pytest.raises(OutputError):
            job.write(chunk)
        disk.room = 1 << 20
        job.write(chunk)
        if at % 4 == 0:
            disk.room = 20
            try:
                job.sync()
            except OutputError:
                disk.room = 1 << 20
                job.sync()
        disk.room = 1 << 20
    disk.room = 100
    with pytest.raises(OutputError):
        job.finish(ROWS)
    disk.room = 1 << 20
    job.finish(ROWS)
    _check_output(out)


def test_a_failed_sync_is_final_for_this_opening(tmp_path: Path) -> None:
    class BadDisk(Files):
        bad = False

        def datasync(self, fd: int) -> None:
            if self.bad:
                raise OSError(5, "Input/output error")

    disk = BadDisk()
    job = _open(tmp_path / "o.jsonl", disk)
    job.write(sinks.result_chunk([(0, 2)]))
    disk.bad = True
    with pytest.raises(OutputError, match="Input/output error"):
        job.sync()
    disk.bad = False
    with pytest.raises(OutputError, match="Input/output error"):
        job.write(sinks.result_chunk([(2, 3)]))
    job.close()
    assert _open(tmp_path / "o.jsonl").done.spans() == [(0, 2)]


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    """EFBIG from the system, in the middle of a block."""
    path = str(tmp_path)
    code = (
        "import resource, sys\n"
        "from pilotlight.core.errors import OutputError\n"
        "from pilotlight.io.files import Files\n"
        "from pilotlight.io.segments import SegmentWriter\n"
        "from pilotlight.testing.sinks import result_chunk\n"
        f"writer = SegmentWriter({path!r}, 1, Files())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "failed = 0\n"
        "for index in range(200):\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            writer.write(result_chunk([(index, index + 1)]))\n"
        "            break\n"
        "        except OutputError as error:\n"
        "            assert 'no room left' in str(error)\n"
        "            failed += 1\n"
        "assert failed > 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000
    got = [
        span for name in sorted(os.listdir(path)) for _, chunk in scan_segment(f"{path}/{name}") for span in chunk.spans
    ]
    assert sorted(got) == [(index, index + 1) for index in range(200)]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_real_full_disk(tmp_path: Path) -> None:
    """A whole job on a file system of 64 KiB, which then grows."""
    code = (
        "import os, random, sys\n"
        "from pilotlight.core.errors import OutputError\n"
        "from pilotlight.io.workfolder import JobFolder\n"
        "from pilotlight.testing.sinks import random_chunks, expected\n"
        "from pilotlight.wire import PathOutput\n"
        "out = sys.argv[1] + '/o.jsonl'\n"
        "job = JobFolder.open(PathOutput(path=out), {}, range_rows=64)\n"
        "grown = 0\n"
        "def go(act):\n"
        "    global grown\n"
        "    while True:\n"
        "        try:\n"
        "            return act()\n"
        "        except OutputError as error:\n"
        "            assert 'No space left' in str(error), error\n"
        "            grown += 1\n"
        "            size = 64 + 64 * grown\n"
        "            assert not os.system(f'mount -o remount,size={size}k {sys.argv[1]}')\n"
        "for at, chunk in enumerate(random_chunks(3000, 1)):\n"
        "    go(lambda: job.write(chunk))\n"
        "    if at % 20 == 0: go(job.sync)\n"
        "go(lambda: job.finish(3000))\n"
        "assert grown > 1, grown\n"
        "assert open(out, 'rb').read().splitlines() == expected(3000)\n"
        "print('exact')\n"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size=64k none {disk} 2>/dev/null || exit 77; exec {sys.executable} -c "$0" {disk}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip("no private mounts here")
    assert (done.returncode, done.stdout) == (0, "exact\n"), done.stderr


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_segment_gives_up_only_the_damaged_blocks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("segments")
    writer = SegmentWriter(str(folder), 1, Files())
    blobs = data.draw(
        st.lists(st.sampled_from([b"{}", b"", b"pl1 ", b"pl1 00000000 2 3 {}", b"x\npl1 y", b"\n\n"]), max_size=8)
    )
    chunks: list[ResultChunk] = []
    starts: list[int] = []
    start = 0
    path = ""
    for blob in blobs:
        count = blob.count(b"\n") + 1
        chunk = ResultChunk([(start, start + count)], blob, {}, {"n": 1.0})
        path, place = writer.write(chunk)
        starts.append(place.header_at)
        chunks.append(chunk)
        start += count
    writer.close()
    if not chunks:
        return
    intact = Path(path).read_bytes()
    ends = [at - 4 for at in starts[1:]] + [len(intact)]
    assert [chunk for _, chunk in scan_segment(path)] == chunks
    for offset, _ in scan_segment(path):
        assert intact.startswith(b"pl1 ", offset)
    at = data.draw(st.integers(0, len(intact) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip", "insert", "repeat"]))
    if damage == "cut":
        Path(path).write_bytes(intact[:at])
    elif damage == "flip":
        Path(path).write_bytes(intact[:at] + bytes([intact[at] ^ 0x21]) + intact[at + 1 :])
    elif damage == "insert":
        Path(path).write_bytes(intact[:at] + b"\npl1 1" + intact[at:])
    else:
        Path(path).write_bytes(intact + intact)
    got = [chunk for _, chunk in scan_segment(path)]
    if damage == "repeat":
        assert got == chunks * 2
        return
    assert all(chunk in chunks for chunk in got)
    assert got[: sum(end < at for end in ends)] == chunks[: sum(end < at for end in ends)]
    if damage != "cut":
        assert len(got) >= len(chunks) - 2


def test_a_chunk_without_rows_is_nothing(tmp_path: Path) -> None:
    job = _open(tmp_path / "o.jsonl")
    empty: list[Span] = []
    job.write(ResultChunk(empty, b""))
    assert not job.done
    job.close()
