"""What a pool's folder remembers, and what becomes of it on a disk that is full, torn or of another version."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pilotlight.core.errors import OutputError
from pilotlight.manager.journal import HISTORY_MAX, JobRecord, PoolJournal
from pilotlight.views import JobView
from pilotlight.wire import Context, JobRequest, Operation, PathInput, PathOutput

CONTEXT = Context(runtime="python", name="f", identity="f", load=b"\x80\x05\xff")


def record(job: str = "job-1-abc", **more: object) -> JobRecord:
    request = JobRequest(
        context=CONTEXT,
        operation=Operation(kind="map", function=b"\x00\xff"),
        input=PathInput(paths=["/in"]),
        output=PathOutput(path="/out"),
        arguments={"n": 1},
    )
    return msgspec.structs.replace(JobRecord(job=job, detached=True, began_s=1.5, request=request), **more)


def view(job: str) -> JobView:
    return JobView(job=job, name="", state="completed", rows_read=0, rows_done=0, rows_error=0, rows_leased=0)


class Notes(list[str]):
    def __call__(self, _level: str, text: str, _subject: str) -> None:
        self.append(text)


def opened(pool: Path, notes: Notes | None = None) -> PoolJournal:
    journal = PoolJournal(pool, notes if notes is not None else Notes(), keeps=True)
    journal.read()
    return journal


def test_the_next_manager_reads_what_this_one_wrote(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert [journal.next_number(), journal.next_number()] == [1, 2]
    journal.begin_job(record("job-2-b", began_s=2.0))
    journal.begin_job(record("job-1-a"))
    journal.keep_pilots({"worker-1": "12:34:0", "worker-2": ""})
    journal.keep_pins({"python-f": CONTEXT})
    journal.begin_job(record("job-3-c"))
    journal.end_job(view("job-3-c"))
    again = opened(tmp_path)
    assert list(again.jobs) == ["job-1-a", "job-2-b"]  # the older first
    assert again.jobs["job-1-a"] == record("job-1-a")
    assert again.pilots == {"worker-1": "12:34:0", "worker-2": ""}
    assert again.pins == {"python-f": CONTEXT}
    assert [ended.job for ended in again.history] == ["job-3-c"]
    assert again.next_number() == 4  # as the history knows of a third
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


def test_a_manager_that_has_a_successor_changes_nothing_any_more(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text("1\n")
    notes = Notes()
    older = PoolJournal(tmp_path, notes, keeps=True, epoch=1)
    older.read()
    older.begin_job(record("job-1-a"))
    older.keep_pilots({"worker-1": "12:34:0"})
    (tmp_path / "epoch").write_text("2\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    older.end_job(view("job-1-a"))
    older.keep_pilots({})
    for write in (lambda: older.begin_job(record("job-2-b")), lambda: older.keep_pins({}), older.next_number):
        with pytest.raises(OutputError, match="another manager serves the pool"):
            write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert all("this one writes nothing there" in note for note in notes)


def test_the_history_is_bounded_in_memory_and_on_disk(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for number in range(5 * HISTORY_MAX):
        journal.end_job(view(f"job-{number}"))
    assert [ended.job for ended in journal.history] == [f"job-{n}" for n in range(4 * HISTORY_MAX, 5 * HISTORY_MAX)]
    assert opened(tmp_path).history == journal.history
    assert len((tmp_path / "history.jsonl").read_bytes().splitlines()) <= 2 * HISTORY_MAX


def test_what_cant_be_read_is_told_and_passed_over(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.begin_job(record("job-1-a"))
    journal.end_job(view("job-9"))
    jobs = tmp_path / "jobs"
    (jobs / "job-2-torn.json").write_bytes(msgspec.json.encode(record("job-2-torn"))[:50])
    (jobs / "job-3-other.json").write_bytes(msgspec.json.encode(record("job-3-other", version=1)))
    (jobs / "job-4-moved.json").write_bytes(msgspec.json.encode(record("job-5")))
    (jobs / "notes.txt").write_text("mine")
    (tmp_path / "pins.json").write_bytes(b"\x00")
    (tmp_path / "numbers").write_text("many")
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'{"job":')
    notes = Notes()
    again = opened(tmp_path, notes)
    assert list(again.jobs) == ["job-1-a"]
    assert again.pins == {}
    assert again.next_number() == 10
    for name in ("job-2-torn", "job-3-other", "job-4-moved", "pins.json", "numbers", "history.jsonl"):
        assert sum(name in note for note in notes) == 1, name
    again.end_job(view("job-10"))  # after the line that was cut short
    assert [ended.job for ended in opened(tmp_path).history] == ["job-9", "job-10"]


@pytest.fixture
def no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool's folder on a disk that is full: no file there takes a byte."""
    (tmp_path / "jobs").mkdir()

    def full(fd: int, *_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("os.write", full)
    return tmp_path


def test_a_full_disk_is_an_error_where_it_matters_and_a_note_where_not(no_disk: Path) -> None:
    notes = Notes()
    journal = opened(no_disk, notes)
    for attempt in (journal.next_number, lambda: journal.begin_job(record()), lambda: journal.keep_pins({})):
        with pytest.raises(OutputError, match="No space left"):
            attempt()
    assert journal.jobs == {}
    journal.end_job(view("job-1"))
    assert len(journal.history) == 1
    assert any("No space left" in note for note in notes)
    assert not list(no_disk.rglob("*.new"))


def test_a_pool_that_ends_with_its_client_writes_nothing(tmp_path: Path) -> None:
    journal = PoolJournal(tmp_path, Notes(), keeps=False)
    journal.read()
    journal.begin_job(record())
    journal.end_job(view("job-1"))
    journal.keep_pilots({"worker-1": "1:2:3"})
    assert journal.next_number() == 1
    assert [ended.job for ended in journal.history] == ["job-1"]
    assert not list(tmp_path.iterdir())
