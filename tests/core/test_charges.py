"""Who is charged an attempt: a row whose replica died while it ran alone, whatever the manager knows of the others."""

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
