"""The end of a job: idle workers take back what slower ones have not started, then repeat what these would finish last.

Both take as much as lets thief and victim end together, by their measured rates, from the worker that would end last.
What reports no progress, or has no rate yet, is repeated once it has been silent for a while, the oldest rows first.
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.core.model import Job, Lease, Worker
from pilotlight.core.ranges import IndexSet, Span
from pilotlight.core.state import State
from pilotlight.core.transitions import LeaseState

MUCH_LATER = 1.5
"""Rows are repeated where the idle worker would have them this many times sooner."""
HEDGED_MIN = 64
HEDGED_PART = 20
"""Repeated rows that still report are at most so few, or one in twenty of those read."""

Victims = list[tuple[Worker, list[Lease]]]


def victims(state: State, variant_id: str) -> Victims:
    """Workers that may have rows of a variant that they have not started, and in which leases, the newest first.

    Where an answer about unstarted rows is still to come there is nothing more to ask for.
    """
    found: Victims = []
    for worker in state.workers.values():
        if worker.outstanding.get(variant_id, 0) <= 1:
            continue
        leases = [state.leases[lease_id] for lease_id in worker.leases]
        ours = [lease for lease in leases if state.jobs[lease.job_id].variant_id == variant_id and not lease.isolated]
        if any(lease.state is LeaseState.REVOKING for lease in ours):
            continue
        ours = [lease for lease in ours if not lease.all_started and not lease.hedge]
        if ours:
            found.append((worker, ours[::-1]))
    return found


def steal_from(thief: Worker, variant_id: str, found: Victims) -> list[tuple[Lease, int]]:
    """The leases to ask for unstarted rows, and for how many: of the worker that would end last."""
    others = [(worker, leases) for worker, leases in found if worker is not thief and _untouched(leases)]
    if not others:
        return []
    victim, leases = max(others, key=lambda other: _end_s(other[0], variant_id))
    rows = _balance(thief, victim, variant_id)
    asked: list[tuple[Lease, int]] = []
    for lease in leases:
        if rows <= 0:
            break
        asked.append((lease, min(rows, len(lease.open))))
        rows -= len(lease.open)
    return asked


def hedge_from(
    state: State, idle: Worker, variant_id: str, capacity: int, now: float, hedge_after_s: float
) -> tuple[Lease, list[Span]] | None:
    """Rows elsewhere to run a second time here: the last of a slow worker, else the oldest that are silent."""
    return _slow_rows(state, idle, variant_id, capacity) or _silent_rows(
        state, idle, variant_id, capacity, now, hedge_after_s
    )


def _untouched(leases: list[Lease]) -> bool:
    return all(lease.state is LeaseState.OPEN for lease in leases)


def _end_s(worker: Worker, variant_id: str) -> tuple[float, int]:
    """When a worker would end; those without a rate last, by rows."""
    rows = worker.outstanding.get(variant_id, 0)
    rate = worker.rate.get(variant_id)
    return (rows / rate if rate else float("inf")), rows


def _balance(thief: Worker, victim: Worker, variant_id: str) -> int:
    """Rows to move so that both end together; half of them if a rate is unknown; one if that ends sooner here."""
    theirs, ours = victim.outstanding.get(variant_id, 0), thief.outstanding.get(variant_id, 0)
    slow, fast = victim.rate.get(variant_id), thief.rate.get(variant_id)
    if not slow or not fast:
        return (theirs - ours) // 2
    rows = int((theirs * fast - ours * slow) / (slow + fast))
    return rows or int((ours + 1) / fast < theirs / slow)


def _hedgeable(state: State, idle: Worker, variant_id: str) -> Iterable[tuple[Job, Lease]]:
    for job in state.jobs_of(variant_id):
        if job.may_hedge:
            for lease_id in job.leases:
                lease = state.leases[lease_id]
                if lease.worker_id != idle.worker_id and not lease.isolated and not lease.hedge:
                    yield job, lease


def _once(job: Job, lease: Lease) -> IndexSet:
    """Rows of a lease that no other lease holds."""
    once = lease.open.copy()
    if job.hedged:
        once.discard(job.hedged.spans())
    return once


def _slow_rows(state: State, idle: Worker, variant_id: str, capacity: int) -> tuple[Lease, list[Span]] | None:
    """The last rows of the worker that would end last, so many that both end together."""
    fast = idle.rate.get(variant_id)
    if not fast or not all(job.exhausted for job in state.jobs_of(variant_id)):
        return None
    best: tuple[float, Job, Lease, IndexSet] | None = None
    for job, lease in _hedgeable(state, idle, variant_id):
        victim = state.workers[lease.worker_id]
        slow = victim.rate.get(variant_id)
        if not slow or len(job.hedged) >= max(HEDGED_MIN, job.read_upto // HEDGED_PART):
            continue
        end_s = victim.outstanding[variant_id] / slow
        if best is None or end_s >= best[0]:
            once = _once(job, lease)
            if once:
                best = end_s, job, lease, once
    if best is None:
        return None
    end_s, _, lease, once = best
    rows = min(_repeats(idle, state.workers[lease.worker_id], variant_id, capacity), capacity, len(once))
    return (lease, once.take(rows, last=True)) if rows > 0 else None


def _repeats(idle: Worker, victim: Worker, variant_id: str, capacity: int) -> int:
    """How many of a slow worker's rows an idle one would have much sooner.

    Rows that were not begun take here what their number says. Begun ones may be nearly done, and a replica that runs
    many at once takes as long for one as for all: then this worker must be much faster itself.
    """
    theirs = victim.outstanding[variant_id]
    slow, fast = victim.rate[variant_id], idle.rate[variant_id]
    end_s = theirs / slow
    rows = max(1, int(theirs * fast / (slow + fast)))
    if end_s >= MUCH_LATER * max(rows, capacity) / fast:
        return rows
    rows = min(rows, theirs - min(victim.started, theirs))
    return rows if rows and end_s >= MUCH_LATER * rows / fast else 0


def _silent_rows(
    state: State, idle: Worker, variant_id: str, capacity: int, now: float, hedge_after_s: float
) -> tuple[Lease, list[Span]] | None:
    """The oldest rows that have been silent for `hedge_after_s`."""
    best: tuple[Lease, IndexSet] | None = None
    for job, lease in _hedgeable(state, idle, variant_id):
        if now - max(lease.granted_at_s, lease.last_result_at_s) < hedge_after_s:
            continue
        if best is None or lease.granted_at_s < best[0].granted_at_s:
            once = _once(job, lease)
            if once:
                best = lease, once
    return (best[0], best[1].take(capacity)) if best else None
