"""The event log: what is written is read again, it is bounded, and no disk holds the manager up."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Device, Variant
from pilotlight.core.story.records import Began, Gap, Record, Step
from pilotlight.core.story.subjects import find
from pilotlight.core.story.telling import survey, tell
from pilotlight.core.transitions import JobState, Level, ReplicaState
from pilotlight.io import eventfile
from pilotlight.manager import eventlog
from pilotlight.manager.eventlog import EventLog, open_to_append
from tests.core.storm import storm

VARIANT = Variant("tiny-1a2b", "tiny")


class Clock:
    """Steps of a log at times that a test chooses."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.began_s = log._began_s

    def take(self, at_s: float, event: ev.ManagerEvent, *decisions: do.ManagerDecision) -> None:
        self.log.record(event, decisions, self.began_s + at_s)


def submitted(job_id: str = "job-1") -> ev.JobSubmitted:
    return ev.JobSubmitted(job_id, "out.jsonl", VARIANT, done=((0, 3),), attempts={7: 2})


def joined(worker_id: str = "worker-1") -> ev.WorkerJoined:
    return ev.WorkerJoined(worker_id, 17, "here", (Device("cpu", "cpu", 1 << 30),))


def live(replica_id: str = "worker-1.1", wanted: int = 4) -> ev.ReplicaReported:
    fact = ev.ReplicaFact("cpu", VARIANT.variant_id, replica_id, ReplicaState.LIVE, wanted, stages={"read": 0.5})
    return ev.ReplicaReported("worker-1", fact)


def written(start: int, stop: int, lease_id: str = "lease-1.1") -> ev.RowsWritten:
    return ev.RowsWritten("job-1", ((start, stop),), lease_id, "worker-1", "cpu")


def grant(start: int, stop: int, lease_id: str = "lease-1.1") -> do.GrantRows:
    return do.GrantRows("worker-1", lease_id, "job-1", ((start, stop),), isolated=False, why="it had room for 4 more")


def read(folder: Path) -> list[Record]:
    return list(eventfile.read(folder))


def steps(folder: Path) -> list[Step]:
    return [record for record in read(folder) if isinstance(record, Step)]


def told(folder: Path) -> list[ev.ManagerEvent]:
    return [step.event for step in steps(folder)]


# --- what is written is read


def test_steps_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=3, pool="mine")
    clock = Clock(log)
    died = ev.ReplicaDied("worker-1", "cpu", VARIANT.variant_id, {"lease-1.1": [(3, 5)]}, 1, "killed by SIGKILL")
    wants = do.SendWants("worker-1", 1, (("cpu", VARIANT.variant_id, Level.LIVE),), "job-1 needs it")
    clock.take(0.0, submitted(), do.ReadRows("job-1", 1024))
    clock.take(0.1, joined(), do.Note("info", "joined", "worker-1"), wants)
    clock.take(0.2, died, do.RecordAttempts("job-1", ((3, 1),)))
    clock.take(0.3, ev.Tick(), do.EndJob("job-1", JobState.COMPLETED, "", ""))
    log.close()
    began, *rest = read(tmp_path)
    assert isinstance(began, Began)
    assert (began.epoch, began.pool) == (3, "mine")
    assert [step.event for step in rest if isinstance(step, Step)] == [submitted(), joined(), died, ev.Tick()]
    assert [step.decisions for step in rest if isinstance(step, Step)] == [
        (do.ReadRows("job-1", 1024),),
        (do.Note("info", "joined", "worker-1"), wants),
        (do.RecordAttempts("job-1", ((3, 1),)),),
        (do.EndJob("job-1", JobState.COMPLETED, "", ""),),
    ]
    assert [round(record.at_s, 2) for record in rest] == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_machine_does_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    from pilotlight.core.scheduler import Scheduler

    log = EventLog(tmp_path, epoch=1)
    handle = Scheduler.handle
    decided: list[do.ManagerDecision] = []

    def recorded(scheduler: Scheduler, event: ev.ManagerEvent, now: float) -> list[do.ManagerDecision]:
        decisions = handle(scheduler, event, now)
        log.record(event, decisions, log._began_s + now)
        decided.extend(decisions)
        return decisions

    monkeypatch.setattr(Scheduler, "handle", recorded)
    storm(seed)
    log.close()
    assert not [record for record in read(tmp_path) if isinstance(record, Gap)]
    by_n = sorted(steps(tmp_path), key=lambda step: step.n)
    assert [step.n for step in by_n] == list(range(1, len(by_n) + 1))
    again = [decision for step in by_n for decision in step.decisions]
    assert sorted(map(repr, again)) == sorted(map(repr, decided))


def test_what_says_nothing_new_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    clock = Clock(log)
    clock.take(0.0, ev.Tick())
    clock.take(0.1, ev.WorkerHeard("worker-1", 3))
    clock.take(0.2, live())
    clock.take(0.3, live(wanted=5))
    clock.take(0.4, live(wanted=6), grant(0, 4))
    log.close()
    assert told(tmp_path) == [live(), live(wanted=6)]


def test_rows_that_come_one_by_one_are_summed_up(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    clock = Clock(log)
    for index in range(6):
        clock.take(index / 10, written(index, index + 1))
        clock.take(index / 10, written(100 + index, 101 + index, "lease-1.2"))
    clock.take(0.6, written(6, 7), grant(7, 9, "lease-1.3"))
    clock.take(0.7, ev.WorkerLost("worker-1", "killed"))
    log.close()
    first, second, third = steps(tmp_path)
    assert first.event == written(0, 7)
    assert (round(first.since_s, 2), round(first.at_s, 2)) == (0.0, 0.6)
    assert first.decisions == (grant(7, 9, "lease-1.3"),)
    assert second.event == written(100, 106, "lease-1.2"), "what came before a loss must be told before it"
    assert third.event == ev.WorkerLost("worker-1", "killed")


def test_error_rows_are_summed_up_too(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    clock = Clock(log)
    for index in (1, 2):
        clock.take(0.0, ev.RowsWritten("job-1", ((index, index + 1),), "l", "w", "d", {"bad_row": [index]}))
    log.close()
    (event,) = told(tmp_path)
    assert isinstance(event, ev.RowsWritten)
    assert event.errors == {"bad_row": [1, 2]}


def test_text_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    Clock(log).take(0.0, ev.WorkerLost("worker-1", "said \udcff"))
    log.close()
    assert told(tmp_path) == [ev.WorkerLost("worker-1", "said ?")]


# --- causes


def test_an_event_names_the_step_that_led_to_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    clock = Clock(log)
    wanted = (("cpu", VARIANT.variant_id, Level.LIVE), ("", VARIANT.variant_id, Level.PARKED))
    clock.take(0.0, submitted(), do.ReadRows("job-1", 10))
    clock.take(0.1, ev.RowsRead("job-1", 0, 10, exhausted=False))
    clock.take(0.2, joined(), do.SendWants("worker-1", 1, wanted, "job-1 needs it"))
    clock.take(0.3, live())
    clock.take(0.4, written(0, 1), do.RevokeRows("worker-1", "lease-1.2", None, "worker-2 is idle"))
    clock.take(0.5, written(1, 2))
    clock.take(0.6, ev.RowsReturned("worker-1", "lease-1.2", ((5, 6),)))
    clock.take(0.7, ev.LoadFailed("worker-1", "cpu", VARIANT.variant_id, permanent=False, reason="no"))
    clock.take(0.8, ev.Tick(), do.SendWants("worker-1", 2, wanted[1:], "it is not needed"))
    clock.take(0.9, ev.ReplicaStopped("worker-1", "cpu", VARIANT.variant_id))
    clock.take(1.0, ev.Tick(), do.WriteFailure("job-1", 3, "killed_replica", "it died"))
    clock.take(1.1, ev.RowsWritten("job-1", ((3, 4),)))
    log.close()
    found = {type(step.event).__name__: step for step in steps(tmp_path)}
    by_n = {step.n: step for step in steps(tmp_path)}

    def cause(name: str) -> Any:
        because = found[name].because
        return by_n[because].event if because is not None else None

    assert cause("RowsRead") == submitted()
    assert cause("ReplicaReported") == joined()
    assert cause("RowsReturned") == written(0, 1)
    assert cause("LoadFailed") == joined()
    (failure,) = [s for s in by_n.values() if isinstance(s.event, ev.RowsWritten) and not s.event.worker_id]
    (stopped,) = [s for s in by_n.values() if isinstance(s.event, ev.ReplicaStopped)]
    assert isinstance(by_n[failure.because or 0].decisions[0], do.WriteFailure)
    assert by_n[stopped.because or 0].decisions == (do.SendWants("worker-1", 2, wanted[1:], "it is not needed"),)


# --- bounds


def test_a_long_log_keeps_two_files_and_what_still_stands(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1, file_bytes_max=20_000)
    clock = Clock(log)
    clock.take(0.0, submitted("job-0"))
    clock.take(0.0, ev.Tick(), do.EndJob("job-0", JobState.COMPLETED, "", ""))
    clock.take(0.0, submitted())
    clock.take(0.0, joined("worker-0"))
    clock.take(0.0, ev.WorkerLost("worker-0", "killed"))
    clock.take(0.0, joined())
    clock.take(0.0, live())
    for n in range(2000):
        clock.take(1.1 + n / 10, written(n, n + 1, f"lease-1.{n}"), grant(n, n + 1))
    log.close()
    assert sum(path.stat().st_size for path in eventfile.files(tmp_path)) < 2 * 40_000
    began = read(tmp_path)[0]
    assert isinstance(began, Began)
    assert began.again
    assert told(tmp_path)[:3] == [submitted(), joined(), live()]
    rest = steps(tmp_path)[3:]
    assert [step.event for step in rest] == [
        written(n, n + 1, f"lease-1.{n}") for n in range(2000 - len(rest), 2000)
    ], "the end is all there, each step once"


def turn_twice(clock: Clock, at_s: float) -> None:
    """So much happens that nothing of before is left but what still stands."""
    for n in range(400):
        clock.take(at_s + n / 10, written(n, n + 1, f"lease-1.{n}"), grant(n, n + 1))


def test_what_still_stands_can_be_told_with_its_name(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1, file_bytes_max=8_000)
    clock = Clock(log)
    pinned, gone, held = Variant("lamp-1", "lamp"), Variant("fan-1", "fan"), Variant("held-1", "held")
    parked = ev.CopyReported("worker-1", ev.CopyFact("lamp-1", Level.PARKED, 10))
    lost = ev.CopyReported("worker-1", ev.CopyFact("lamp-1", Level.STAGED, 10))
    asleep = ev.ReplicaReported("worker-1", ev.ReplicaFact("cpu", "held-1", "worker-1.2", ReplicaState.ASLEEP))
    wants = do.SendWants("worker-1", 1, (("cpu", "lamp-1", Level.LIVE),), "it is pinned")
    others = do.SendWants("worker-2", 1, (("cpu", "lamp-1", Level.LIVE),), "it is pinned as well")
    leaving = ev.WorkerLeaving("worker-2", "a signal", 20.0)
    clock.take(0.0, joined())
    clock.take(0.0, joined("worker-2"))
    clock.take(0.1, ev.VariantPinned(pinned, on=True), wants, others)
    clock.take(0.1, ev.VariantPinned(gone, on=True))
    clock.take(0.1, ev.VariantPinned(gone, on=False))
    clock.take(0.2, ev.JobSubmitted("job-0", "out.jsonl", held))
    clock.take(0.3, parked)
    clock.take(0.3, lost)
    clock.take(0.3, asleep)
    clock.take(0.3, leaving)
    clock.take(0.4, ev.CopyReported("worker-1", ev.CopyFact("lamp-1", Level.STAGED, 0)))
    clock.take(0.5, ev.Tick(), do.EndJob("job-0", JobState.COMPLETED, "", ""))
    turn_twice(clock, 1.6)
    log.close()
    rest = [step for step in steps(tmp_path) if not isinstance(step.event, ev.RowsWritten)]
    events = [step.event for step in rest if step.event != ev.Tick()]
    assert events == [
        ev.VariantPinned(pinned, on=True),
        joined(),
        joined("worker-2"),
        parked,
        asleep,
        leaving,
    ]
    assert [step.decisions for step in rest if step.event == ev.Tick()] == [(wants,), (others,)]
    for name in ("lamp", "held"):
        (subject,) = find(survey(read(tmp_path)), name)
        story = tell(read(tmp_path), subject)
        assert story.title.startswith(f"{name} ({name}-1)")
        assert story.lines


def test_two_whole_files_repeat_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1, file_bytes_max=4000)
    clock = Clock(log)
    clock.take(0.0, submitted())
    clock.take(0.0, joined())
    for n in range(20):
        clock.take(0.1 + n / 10, written(n, n + 1, f"lease-1.{n}"), grant(n, n + 1))
    log.close()
    assert len(eventfile.files(tmp_path)) == 2
    assert [step.n for step in steps(tmp_path)] == list(range(1, 23))
    assert sum(isinstance(record, Began) for record in read(tmp_path)) == 1


def test_managers_that_restart_keep_two_files(tmp_path: Path) -> None:
    for epoch in range(1, 20):
        log = EventLog(tmp_path, epoch=epoch, file_bytes_max=4000)
        clock = Clock(log)
        for n in range(10):
            clock.take(0.1 + n / 10, written(n, n + 1, f"lease-{epoch}.{n}"), grant(n, n + 1))
        log.close()
    assert sum(path.stat().st_size for path in eventfile.files(tmp_path)) < 2 * 8_000


# --- disks


class Disk:
    """Files that fail, or hang, as a test says. `room`: bytes that still fit (None: enough)."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.hangs = threading.Event()
        self.hangs.set()
        self.tried = threading.Semaphore(0)

    def open(self, path: Path) -> Any:
        return _File(self, open_to_append(path))


class _File:
    def __init__(self, disk: Disk, file: eventlog.File) -> None:
        self._disk = disk
        self._file = file

    def write(self, data: memoryview) -> int | None:
        self._disk.hangs.wait()
        try:
            if self._disk.room is None:
                return self._file.write(data)
            if not self._disk.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            part = data[: self._disk.room]
            self._disk.room -= len(part)
            return self._file.write(part)
        finally:
            self._disk.tried.release()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def test_a_full_disk_is_counted_and_told_once_there_is_room(tmp_path: Path) -> None:
    disk = Disk()
    log = EventLog(tmp_path, epoch=1, open_file=disk.open)
    clock = Clock(log)
    clock.take(0.0, submitted())
    log.flush(clock.began_s)
    assert disk.tried.acquire(timeout=10)
    disk.room = 25  # a line is torn
    for n in range(3):
        clock.take(0.1, joined(f"worker-{n}"))
    log.flush(clock.began_s)
    for _ in range(2):
        assert disk.tried.acquire(timeout=10)
    disk.room = None
    clock.take(0.2, ev.WorkerLost("worker-0", "killed"))
    log.close()
    records = read(tmp_path)
    assert told(tmp_path) == [submitted(), ev.WorkerLost("worker-0", "killed")]
    gaps = [record for record in records if isinstance(record, Gap)]
    assert [(gap.lost, gap.reason) for gap in gaps] == [
        (1, "a line of the log can't be read"),
        (3, "the log could not be written: No space left on device"),
    ]


def test_a_disk_that_is_full_from_the_start_costs_nothing_but_the_log(tmp_path: Path) -> None:
    disk = Disk()
    disk.room = 0
    log = EventLog(tmp_path, epoch=1, open_file=disk.open)
    clock = Clock(log)
    clock.take(0.0, submitted())
    log.flush(clock.began_s)
    assert disk.tried.acquire(timeout=10)
    disk.room = None
    clock.take(0.5, joined())
    log.close()
    began, gap, step = read(tmp_path)
    assert isinstance(began, Began)
    assert isinstance(gap, Gap)
    assert gap.lost == 2, "the header, and the job"
    assert isinstance(step, Step)
    assert step.event == joined()


def test_a_folder_that_is_gone_raises_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "gone", epoch=1)
    Clock(log).take(0.0, submitted())
    log.close()
    assert not eventfile.files(tmp_path / "gone")


def test_a_hanging_disk_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "QUEUED_BYTES_MAX", 2000)
    disk = Disk()
    disk.hangs.clear()
    log = EventLog(tmp_path, epoch=1, open_file=disk.open)
    clock = Clock(log)
    for n in range(50):  # each goes to the writer, which hangs on the first
        clock.take(n * 2.0, joined(f"worker-{n}"))
    disk.hangs.set()
    log.close()
    gaps = [record for record in read(tmp_path) if isinstance(record, Gap)]
    kept = steps(tmp_path)
    assert 0 < len(kept) < 50
    assert sum(gap.lost for gap in gaps) + len(kept) == 50
    assert {gap.reason for gap in gaps} == {"the disk was too slow"}


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    Clock(log).take(0.0, submitted())
    log.close()
    with (tmp_path / eventfile.NAME).open("ab") as file:
        file.write(b'{"n":2,"t":0.3,"event":{"WorkerLo')
    assert told(tmp_path) == [submitted()]


def test_a_new_manager_goes_on_in_the_file_of_one_that_was_killed(tmp_path: Path) -> None:
    log = EventLog(tmp_path, epoch=1)
    Clock(log).take(0.0, submitted())
    log.close()
    with (tmp_path / eventfile.NAME).open("ab") as file:
        file.write(b'{"n":2,"t":0.3,"event":{"WorkerLo')
    log = EventLog(tmp_path, epoch=2)
    Clock(log).take(0.0, joined())
    log.close()
    assert [type(record) for record in read(tmp_path)] == [Began, Step, Gap, Began, Step]
    assert told(tmp_path) == [submitted(), joined()]
    times = [record.at_s for record in read(tmp_path)]
    assert times == sorted(times)


def test_a_clock_that_was_set_back_moves_nothing_into_the_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, epoch=1, file_bytes_max=20_000)
    Clock(log).take(50.0, submitted())
    log.close()
    wall_s = eventlog.time.time() - 3600
    monkeypatch.setattr(eventlog.time, "time", lambda: wall_s)
    log = EventLog(tmp_path, epoch=2, file_bytes_max=4_000)
    clock = Clock(log)
    for n in range(20):
        clock.take(0.1 + n / 10, written(n, n + 1, f"lease-1.{n}"), grant(n, n + 1))
    log.close()
    assert len(eventfile.files(tmp_path)) == 2
    times = [record.at_s for record in read(tmp_path)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(52.0)


def test_a_line_of_another_version_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / eventfile.NAME).write_bytes(
        msgspec.json.encode({"log": 1, "epoch": 1, "began": 5.0}) + b'\n{"n":1,"t":0.1,"event":{"Unheard":{"of":1}}}\n'
    )
    began, gap = read(tmp_path)
    assert isinstance(began, Began)
    assert gap == Gap(0.0, 1, "a line of the log can't be read")
