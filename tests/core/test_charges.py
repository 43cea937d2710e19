"""Who is charged an attempt: a row whose replica died while it ran alone, whatever the manager knows of the others.
Rows that died together for the first time, where others worked, just run again."""

from __future__ import annotations

import pytest

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Device, Variant
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import ReplicaState

GPU = Device("gpu0", "kind", 10)
VARIANT = Variant("v", "v", 5)


def one_row_leased() -> tuple[Scheduler, str]:
    """A manager whose device is proved, and that has leased one row to it, by that lease's id."""
    scheduler = Scheduler()
    live = ev.ReplicaFact("gpu0", "v", "w.1", ReplicaState.LIVE, wanted=4, memory_bytes=5)
    scheduler.handle(ev.WorkerJoined("w", 1, "host", (GPU,), (live,), (), (VARIANT,)), 0.0)
    scheduler.handle(ev.JobSubmitted("job", "job", VARIANT), 0.0)
    scheduler.handle(ev.RowsRead("job", 0, 2, exhausted=True), 0.0)
    (lease_id,) = scheduler.state.leases
    scheduler.handle(ev.RowsWritten("job", ((0, 1),), lease_id, "w", "gpu0"), 0.1)
    return scheduler, lease_id


def charges(scheduler: Scheduler, rows: dict[str, list[tuple[int, int]]], kind: str = "killed_replica") -> list[object]:
    died = ev.ReplicaDied("w", "gpu0", "v", rows, 1, "it was killed", kind)
    decisions = scheduler.handle(died, 0.2)
    scheduler.state.check()
    return [decision for decision in decisions if isinstance(decision, do.RecordAttempts)]


def test_a_row_that_ran_alone_is_charged() -> None:
    scheduler, lease_id = one_row_leased()
    assert charges(scheduler, {lease_id: [(1, 2)]}) == [do.RecordAttempts("job", ((1, 1),))]


@pytest.mark.parametrize("other", ["lease-0.7", "of-a-job-that-is-over"])
def test_a_row_beside_rows_of_leases_that_are_not_known_is_not(other: str) -> None:
    scheduler, lease_id = one_row_leased()
    assert charges(scheduler, {other: [(40, 43)], lease_id: [(1, 2)]}) == []


def test_nor_does_it_count_as_too_large_for_the_device() -> None:
    scheduler, lease_id = one_row_leased()
    assert charges(scheduler, {"lease-0.7": [(40, 43)], lease_id: [(1, 2)]}, "out_of_memory") == []
    assert scheduler.state.jobs["job"].outgrown_bytes == {}


def several_leased(*, proved: bool) -> tuple[Scheduler, str]:
    """A manager that has leased eight rows to the only device, of which one was answered where it is proved."""
    scheduler = Scheduler()
    live = ev.ReplicaFact("gpu0", "v", "w.1", ReplicaState.LIVE, wanted=8, memory_bytes=5)
    scheduler.handle(ev.WorkerJoined("w", 1, "host", (GPU,), (live,), (), (VARIANT,)), 0.0)
    scheduler.handle(ev.JobSubmitted("job", "job", VARIANT), 0.0)
    scheduler.handle(ev.RowsRead("job", 0, 100, exhausted=True), 0.0)
    lease_id = next(iter(scheduler.state.leases))
    if proved:
        scheduler.handle(ev.RowsWritten("job", ((0, 1),), lease_id, "w", "gpu0"), 0.1)
    return scheduler, lease_id


def died(scheduler: Scheduler, lease_id: str, span: tuple[int, int], kind: str = "killed_replica") -> None:
    scheduler.handle(ev.ReplicaDied("w", "gpu0", "v", {lease_id: [span]}, 1, "it was killed", kind), 0.2)
    scheduler.state.check()


def test_rows_that_died_together_for_the_first_time_run_again_before_all_others() -> None:
    scheduler, lease_id = several_leased(proved=True)
    died(scheduler, lease_id, (1, 5))
    job = scheduler.state.jobs["job"]
    assert not job.suspects
    assert next(iter(job.pending)) == (1, 5)
    assert not job.attempts


def test_they_are_suspects_when_one_of_them_dies_again() -> None:
    scheduler, lease_id = several_leased(proved=True)
    died(scheduler, lease_id, (1, 3))
    live = ev.ReplicaFact("gpu0", "v", "w.2", ReplicaState.LIVE, wanted=8, memory_bytes=5)
    for event in (ev.ReplicaReported("w", live), ev.RowsWritten("job", ((3, 4),), lease_id, "w", "gpu0")):
        scheduler.handle(event, 0.2)
    again = next(lease for lease in scheduler.state.leases.values() if lease.open.within(1, 3))
    died(scheduler, again.lease_id, (1, 3))
    assert [list(group) for group in scheduler.state.jobs["job"].suspects] == [[(2, 3)], [(1, 2)]]


@pytest.mark.parametrize(("proved", "kind"), [(False, "killed_replica"), (True, "timed_out"), (True, "out_of_memory")])
def test_rows_that_hung_or_need_too_much_or_whose_context_never_worked_are_suspects_at_once(
    kind: str, *, proved: bool
) -> None:
    scheduler, lease_id = several_leased(proved=proved)
    died(scheduler, lease_id, (1, 5), kind)
    assert len(scheduler.state.jobs["job"].suspects) == 2
