"""The working folder as its users meet it: refusing, going on, doing errors again, locks and finished outputs."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pilotlight.core.errors import ConfigError, InputChanged, OutputBusy, OutputError, OutputExists, Superseded
from pilotlight.core.ranges import IndexSet
from pilotlight.io.files import Files
from pilotlight.io.journal import InputEnd
from pilotlight.io.report import read_report, report_path
from pilotlight.io.rows import encode_error, encode_result
from pilotlight.io.workfolder import JobFolder
from pilotlight.testing import sinks
from pilotlight.wire import PathOutput, ResultChunk

IDENTITY: dict[str, Any] = {"context": "abc", "seed": 0, "labels": ["a", "b"]}


def _open(out: Path, identity: dict[str, Any] | None = None, **options: Any) -> JobFolder:
    wish = {name: options.pop(name) for name in ("overwrite", "retry_errors") if name in options}
    return JobFolder.open(PathOutput(path=str(out), **wish), identity or IDENTITY, range_rows=16, **options)


def _chunk(start: int, stop: int, errors: dict[str, list[int]] | None = None, text: str = "") -> ResultChunk:
    kinds = {index: kind for kind, indices in (errors or {}).items() for index in indices}
    lines = [
        encode_error(index, kinds[index], text) if index in kinds else encode_result(index, text)
        for index in range(start, stop)
    ]
    return ResultChunk([(start, stop)], b"\n".join(lines), errors or {}, {"prompt_tokens": float(stop - start)})


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return rows


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_passes_the_kit(tmp_path: Path, ending: str) -> None:
    def read(place: str) -> Sequence[bytes]:
        data = (tmp_path / f"{place}.{ending}").read_bytes()
        assert not (tmp_path / f"{place}.{ending}.pilotlight").exists()
        if ending == "jsonl.gz":
            data = gzip.decompress(data)
        elif ending == "jsonl.zst":
            with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
                data = reader.read()
        return data.splitlines()

    def done(sink: Any) -> IndexSet:
        return sink.done.copy()

    sinks.check(
        sinks.SinkCase(
            lambda place: JobFolder.open(
                PathOutput(path=str(tmp_path / f"{place}.{ending}")), IDENTITY, range_rows=128
            ),
            read,
            done,
        )
    )


def test_a_finished_output_is_known_again(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    job = _open(out)
    assert (job.epoch, job.resumed, job.complete) == (1, False, False)
    job.record_input(0, 40, 77)
    job.record_input_end(40)
    job.write(_chunk(0, 40, {"odd": [3]}))
    job.report = {"elapsed_s": 1.5, "rows": "not ours to say"}
    job.finish(40)
    job.close()
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "o.jsonl.report.json"]
    report = read_report(str(out))
    assert report
    assert (report["rows"], report["errors"], report["elapsed_s"]) == (40, {"odd": 1}, 1.5)

    again = _open(out)
    assert again.complete
    assert (again.done.spans(), again.errors, again.counters) == ([(0, 40)], {"odd": 1}, {"prompt_tokens": 40.0})
    again.close()
    with pytest.raises(OutputExists, match=r'seed: 0 -> 1; labels: \["a","b"\] -> none; n: none -> 2.*--overwrite'):
        _open(out, {"context": "abc", "seed": 1, "n": 2})
    assert _open(out, retry_errors=["other"]).complete
    with out.open("ab") as file:
        file.write(b"more\n")
    with pytest.raises(OutputExists, match="was changed"):
        _open(out)
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "o.jsonl.report.json"]


def test_a_foreign_output_is_kept_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text("precious\n")
    with pytest.raises(OutputExists, match="no report"):
        _open(out)
    job = _open(out, overwrite=True)
    job.write(_chunk(0, 20))
    job.sync()
    job.close()
    assert out.read_text() == "precious\n"
    job = _open(out, overwrite=True)  # the same command goes on
    assert job.done.spans() == [(0, 20)]
    job.write(_chunk(20, 30))
    job.finish(30)
    assert len(_rows(out)) == 30


def test_an_unfinished_folder_of_another_request(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    job = _open(out)
    job.write(_chunk(0, 40, text="old"))
    job.sync()
    job.close()
    with pytest.raises(OutputExists, match="was begun by another request"):
        _open(out, {"context": "xyz"})
    job = _open(out, {"context": "xyz"}, overwrite=True)
    assert not job.done
    assert not job.resumed
    job.write(_chunk(0, 30, text="new"))
    job.finish(30)
    assert [row["result"] for row in _rows(out)] == ["new"] * 30


def test_overwrite_said_for_the_first_time_starts_afresh(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    job = _open(out)
    job.write(_chunk(0, 4))
    job.close()
    job = _open(out, overwrite=True)
    assert not job.done
    job.write(_chunk(0, 3))
    job.close()
    assert _open(out, overwrite=True).done.spans() == [(0, 3)]


def test_an_output_that_appeared_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    _open(out).close()
    out.write_text("someone else's\n")
    with pytest.raises(OutputExists, match="has appeared"):
        _open(out)


def test_places_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        _open(tmp_path / "gone" / "o.jsonl")
    with pytest.raises(ConfigError, match="not a regular file"):
        _open(tmp_path)


def test_another_input_is_refused_by_rows(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    job = _open(out)
    job.record_input(0, 4096, 1)
    job.record_input(1, 4096, 2)
    job.record_input(2, 10, 3)
    job.record_input_end(8202)
    job.record_attempts({5: 1, 9000: 2})
    job.record_attempts({5: 2})
    job.write(_chunk(5000, 5001))
    job.close()
    job = _open(out)
    assert job.resumed
    assert job.input_blocks == [(0, 4096, 1), (1, 4096, 2), (2, 10, 3)]
    assert (job.rows_total, job.attempts) == (8202, {5: 2, 9000: 2})
    job.record_input(0, 4096, 1)
    with pytest.raises(InputChanged, match="rows 4096 to 8191 "):
        job.record_input(1, 4096, 9)
    with pytest.raises(InputChanged, match="8203 rows"):
        job.record_input_end(8203)
    job.close()
    assert not _open(out, overwrite=True).done


def test_a_second_command_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    job = _open(out)
    with pytest.raises(OutputBusy, match=f"process {os.getpid()} on .*last sign of life 0 s ago"):
        _open(out)
    job.close()
    second = _open(out)
    assert second.epoch == 2
    second.close()


def test_a_paused_manager_is_superseded_and_harms_nothing(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    old = _open(out)
    old.write(_chunk(0, 20))
    old.sync()
    old.write(_chunk(20, 24))
    lock = f"{out}.pilotlight/lock"
    os.utime(lock, (0, os.stat(lock).st_mtime - 31))
    with pytest.raises(OutputBusy):
        _open(out, stale_after_s=60)
    new = _open(out)
    assert new.done.spans() == [(0, 24)]
    before = {name: (tmp_path / "o.jsonl.pilotlight" / name).read_bytes() for name in os.listdir(new.folder)}
    for act in (
        lambda: old.write(_chunk(24, 25)),
        old.sync,
        old.beat,
        lambda: old.finish(24),
        lambda: old.record_input_end(1),
    ):
        with pytest.raises(Superseded):
            act()
    old.close()
    assert before == {name: (tmp_path / "o.jsonl.pilotlight" / name).read_bytes() for name in os.listdir(new.folder)}
    new.beat()
    new.write(_chunk(24, 40))
    new.finish(40)
    assert len(_rows(out)) == 40
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "o.jsonl.report.json"]


def test_a_killed_manager_frees_its_lock_at_once(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    code = (
        "import sys, signal, os; from pilotlight.io.workfolder import JobFolder; from pilotlight.wire import *\n"
        f"job = JobFolder.open(PathOutput(path={str(out)!r}), {IDENTITY!r})\n"
        'job.write(ResultChunk([(0, 2)], b\'{"index":0}\\n{"index":1}\'))\n'
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    job = _open(out)
    assert (job.epoch, job.done.spans()) == (2, [(0, 2)])
    job.close()


def test_what_a_paused_manager_had_already_checked_harms_nothing(tmp_path: Path) -> None:
    """It may wake up between its check and the system call that the check was for."""
    out = tmp_path / "o.jsonl"
    old = _open(out)
    old.write(_chunk(0, 20))
    old.sync()
    lock = f"{old.folder}/lock"
    os.utime(lock, (0, os.stat(lock).st_mtime - 31))
    new = _open(out)
    old._file.append(b"late\n")
    old._file.cut()
    old._file.append(b"late\n")
    old._journal.append([InputEnd(3)])
    old._writer.write(_chunk(20, 30, text="late"))
    new.write(_chunk(20, 40, text="new"))
    new.sync()
    new.close()
    new = _open(out)
    assert new.rows_total is None
    new.finish(40)
    rows = _rows(out)
    assert [row["result"] for row in rows[20:]] == ["new"] * 20


class _NoLocks(Files):
    """A file system without flock, as Lustre is where nobody mounted it with."""

    def lock(self, fd: int) -> bool | None:
        del fd


def test_without_flock_the_sign_of_life_decides(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    old = _open(out, files=_NoLocks())
    with pytest.raises(OutputBusy):
        _open(out, files=_NoLocks())
    os.utime(f"{old.folder}/lock", (0, os.stat(f"{old.folder}/lock").st_mtime - 31))
    new = _open(out, files=_NoLocks())
    with pytest.raises(Superseded):
        old.beat()
    old.close()
    new.close()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    holder = {"pid": int(dead.stdout), "host": socket.gethostname()}
    Path(f"{old.folder}/lock").write_text(json.dumps(holder))
    job = _open(out, files=_NoLocks())
    assert job.epoch == 3
    job.finish(0)
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "o.jsonl.report.json"]


class _UnseenLocks(Files):
    """A file system whose locks hold on the machine that takes them only, as Lustre has with localflock."""

    def lock(self, fd: int) -> bool | None:
        del fd
        return True


def test_a_manager_on_another_machine_that_sees_no_locks_is_superseded(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    old = _open(out, files=_UnseenLocks())
    old.write(_chunk(0, 20))
    old.sync()
    old._order(20)
    lock = Path(f"{old.folder}/lock")
    lock.write_text(json.dumps({"pid": 1, "host": "another", "epoch": 1}))
    new = _open(out, files=_UnseenLocks())
    assert new._ordered.rows == old._ordered.rows == 20
    assert new._ordered.file != old._ordered.file, "both would write to it"
    for act in (lambda: old.write(_chunk(20, 25)), old.sync, old.beat, lambda: old.finish(20)):
        with pytest.raises(Superseded):
            act()
    old.close()
    new.beat()
    new.write(_chunk(20, 40))
    new.finish(40)
    assert len(_rows(out)) == 40


def test_the_folder_may_be_gone(tmp_path: Path) -> None:
    job = _open(tmp_path / "o.jsonl")
    for name in os.listdir(job.folder):
        os.unlink(os.path.join(job.folder, name))
    os.rmdir(job.folder)
    with pytest.raises(OutputError, match="was removed"):
        job.write(_chunk(0, 1))


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("finished", [True, False])
def test_error_rows_are_done_again(tmp_path: Path, ending: str, finished: bool) -> None:
    out = tmp_path / f"o.{ending}"
    job = _open(out)
    for block in range(2):
        job.record_input(block, 4096 if block == 0 else 4, block)
    errors = {"odd": [0, 7, 60, 101], "slow": [8, 100]}
    job.write(_chunk(0, 40, {kind: [i for i in rows if i < 40] for kind, rows in errors.items()}))
    job.write(_chunk(40, 110, {kind: [i for i in rows if i >= 40] for kind, rows in errors.items()}))
    job.record_input_end(4100 if not finished else 110)
    old = b""
    if finished:
        job.finish(110)
        old = out.read_bytes()
    else:
        job.sync()
        job.record_attempts({7: 3, 200: 1})
    job.close()

    def check_open() -> JobFolder:
        job = _open(out, retry_errors=["odd"])
        assert (job.resumed, job.complete) == (True, False)
        assert job.done.missing(0, 110) == [(0, 1), (7, 8), (60, 61), (101, 102)]
        assert job.errors == {"slow": 2}
        return job

    job = check_open()
    assert job.attempts == ({} if finished else {200: 1})
    if finished:
        assert job.rows_total == 110
        assert out.read_bytes() == old
    job.close()
    job = check_open()
    job.write(_chunk(7, 8, text="second"))
    job.write(_chunk(0, 1, {"odd": [0]}, text="second"))
    job.sync()
    job.close()
    job = _open(out, retry_errors=["odd"])  # goes on, does not begin again
    assert job.done.missing(0, 110) == [(60, 61), (101, 102)]
    assert job.errors == {"slow": 2, "odd": 1}
    job.close()
    job = _open(out, retry_errors=[])  # widens it
    assert job.done.missing(0, 110) == [(0, 1), (8, 9), (60, 61), (100, 102)]
    for index in (0, 8, 60, 100, 101):
        job.write(_chunk(index, index + 1, text="third"))
        job.sync()
    assert job.errors == {}
    job.rows_total = 110
    job.finish(110)
    assert job.counters["prompt_tokens"] >= 110
    plain = tmp_path / "plain"
    plain.write_bytes(gzip.decompress(out.read_bytes()) if ending.endswith("gz") else out.read_bytes())
    texts = {row["index"]: row["result"] for row in _rows(plain)}
    assert {index: text for index, text in texts.items() if text} == {
        0: "third", 7: "second", 8: "third", 60: "third", 100: "third", 101: "third"
    }  # fmt: skip
    report = json.loads(Path(report_path(str(out))).read_text())
    assert (report["errors"], report["rows"]) == ({}, 110)
    assert sorted(set(os.listdir(tmp_path)) - {"plain"}) == [f"o.{ending}", f"o.{ending}.report.json"]


def test_a_base_that_was_changed_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    job = _open(out)
    job.write(_chunk(0, 20, {"odd": [3]}))
    job.finish(20)
    _open(out, retry_errors=[]).close()
    out.write_bytes(out.read_bytes()[:100])
    with pytest.raises(OutputError, match="is not what it was"):
        _open(out, retry_errors=[])


def test_rows_without_a_line_each_are_our_own_mistake(tmp_path: Path) -> None:
    job = _open(tmp_path / "o.jsonl")
    with pytest.raises(AssertionError):
        job.write(ResultChunk([(0, 2)], b"{}"))
    with pytest.raises(AssertionError):
        job.finish(1)
    job.close()


def test_modes_follow_the_umask_that_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with contextlib.closing(JobFolder.open(PathOutput(path=str(out), umask=0o077), {"model": "m"})) as folder:
        folder.write(ResultChunk([(0, 1)], b"{}"))
        modes = {path.stat().st_mode & 0o777 for path in Path(f"{out}.pilotlight").iterdir()}
        assert modes == {0o600}
        assert Path(f"{out}.pilotlight").stat().st_mode & 0o777 == 0o700
        folder.finish(1)
    assert out.stat().st_mode & 0o777 == 0o600
