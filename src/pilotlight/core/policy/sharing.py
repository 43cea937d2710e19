"""Weighted fair share among the jobs of one context, at the grain of leases.

Each job has a clock that advances by rows granted over its weight; the job whose clock is furthest behind is served
first (start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996). The clock of a context is where its last service
began: a job that comes, or comes back, starts there, so that it neither owes nor is owed a past.
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.core.model import Job, Lease, Worker
from pilotlight.core.state import State
from pilotlight.core.transitions import LeaseState

PATIENCE_S = 0.5
"""A job that holds nothing waits so long for its turn before others give back what they have not started."""


def starting_clock(running: Iterable[Job]) -> float:
    """Where a new job's clock starts, until it is first served beside others (`divide`)."""
    return min((job.virtual_time for job in running), default=0.0)


def divide(jobs: list[Job], rows: int, clock: float = 0.0) -> list[tuple[Job, int]]:
    """Who gets how many of `rows`, given jobs of one context that have pending rows, and the context's clock: the least
    of theirs when it was last divided. The furthest behind comes first. Advances their clocks."""
    if len(jobs) == 1:
        count = min(rows, len(jobs[0].pending))
        jobs[0].virtual_time = max(jobs[0].virtual_time, clock) + count / jobs[0].weight
        return [(jobs[0], count)]
    for job in jobs:
        job.virtual_time = max(job.virtual_time, clock)
    grain = max(rows // 8, 1)
    shares: dict[str, int] = {}
    by_id = {job.job_id: job for job in jobs}
    while rows > 0:
        hungry = [job for job in jobs if len(job.pending) > shares.get(job.job_id, 0)]
        if not hungry:
            break
        job = min(hungry, key=lambda job: job.virtual_time)
        count = min(grain, rows, len(job.pending) - shares.get(job.job_id, 0))
        shares[job.job_id] = shares.get(job.job_id, 0) + count
        job.virtual_time += count / job.weight
        rows -= count
    return [(by_id[job_id], count) for job_id, count in shares.items()]


def make_way(state: State, job: Job, now: float) -> list[Lease]:
    """Leases of other jobs to ask back, so that a job that holds nothing does not wait for slow replicas to work off
    what they were given before it came. No more than it needs for its share."""
    rivals = {other.job_id: other for other in state.jobs_of(job.variant_id) if other is not job and other.leases}
    share = job.weight / (job.weight + sum(other.weight for other in rivals.values()))
    missing = float(len(job.pending))
    found: list[Lease] = []
    for worker in sorted(state.live_workers(), key=lambda worker: -worker.rate.get(job.variant_id, 0.0)):
        capacity = worker.capacity(job.variant_id, now)
        if missing <= 0.0:
            break
        if capacity:
            missing -= max(1.0, 2.0 * capacity * share)
            if _makes_wait(state, worker, job, capacity, now):
                leases = [state.leases[lease_id] for lease_id in worker.leases]
                found += [lease for lease in leases if lease.job_id in rivals and _may_ask(lease)]
    return found


def _makes_wait(state: State, worker: Worker, job: Job, capacity: int, now: float) -> bool:
    """Whether rows given to a worker now would wait for long behind rows that it has not begun."""
    waiting = worker.outstanding.get(job.variant_id, 0) - capacity
    if waiting <= 0:
        return False
    rate = worker.rate.get(job.variant_id)
    if rate:
        return waiting / rate > PATIENCE_S
    return any(now - state.leases[lease_id].granted_at_s > PATIENCE_S for lease_id in worker.leases)


def _may_ask(lease: Lease) -> bool:
    return lease.state is LeaseState.OPEN and not (lease.isolated or lease.hedge or lease.all_started)
