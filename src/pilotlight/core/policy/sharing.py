"""Weighted fair share among the jobs of one context, at the grain of leases.

Each job has a clock that advances by rows granted over its weight; the job whose clock is furthest behind is served
first (start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996). The clock of a context is where its last service
began: a job that comes, or comes back, starts there, so that it neither owes nor is owed a past.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from pilotlight.core.model import Job, JobId, Lease, Worker
from pilotlight.core.state import State
from pilotlight.core.transitions import LeaseState

PATIENCE_S = 0.5
"""A job that holds nothing waits so long for its turn before others give back what they have not started."""


def starting_clock(running: Iterable[Job]) -> float:
    """Where a new job's clock starts, until it is first served beside others (`divide`)."""
    return min((job.virtual_time for job in running), default=0.0)


def divide(
    jobs: list[Job], rows: int, clock: float = 0.0, most: dict[JobId, int] | None = None
) -> list[tuple[Job, int]]:
    """Who gets how many of `rows`, given jobs of one context that have pending rows, and the context's clock: the least
    of theirs when it was last divided. The furthest behind comes first. Advances their clocks.

    most: what some of these jobs may get at most (`last_rows`).
    """
    if len(jobs) == 1:
        count = min(rows, len(jobs[0].pending))
        jobs[0].virtual_time = max(jobs[0].virtual_time, clock) + count / jobs[0].weight
        return [(jobs[0], count)]
    for job in jobs:
        job.virtual_time = max(job.virtual_time, clock)
    grain = max(rows // 8, 1)
    shares: dict[JobId, int] = {}
    room = {job.job_id: len(job.pending) for job in jobs}
    room.update(most or {})
    while rows > 0:
        hungry = [job for job in jobs if room[job.job_id] > 0]
        if not hungry:
            break
        job = min(hungry, key=lambda job: (job.virtual_time, bool(job.leases)))
        count = min(grain, rows, room[job.job_id])
        shares[job.job_id] = shares.get(job.job_id, 0) + count
        room[job.job_id] -= count
        job.virtual_time += count / job.weight
        rows -= count
    by_id = {job.job_id: job for job in jobs}
    return [(by_id[job_id], count) for job_id, count in shares.items()]


def last_rows(state: State, jobs: list[Job], worker: Worker, part: float) -> dict[JobId, int]:
    """How many of the last rows of jobs that share a context a worker may get: all workers are to do them at once.

    part: of all rows that workers should hold, those of this worker. Jobs with more than that left are not limited.
    """
    most: dict[JobId, int] = {}
    for job in jobs:
        if job.exhausted and len(job.pending) <= job.appetite:
            held = [state.leases[lease_id] for lease_id in worker.leases]
            own = sum(len(lease.open) for lease in held if lease.job_id == job.job_id)
            left = len(job.pending) + job.leased
            most[job.job_id] = min(len(job.pending), max(0, ceil(left * part) - own))
    return most


def make_way(state: State, job: Job, now: float) -> list[Lease]:
    """Leases of other jobs to ask back, so that a job that holds nothing does not wait for slow replicas to work off
    what they were given before it came. Of no more workers than it has rows."""
    rivals = {other.job_id: other for other in state.jobs_of(job.variant_id) if other is not job and other.leases}
    if not rivals:
        return []
    workers = [worker for worker in state.live_workers() if worker.capacity(job.variant_id, now)]
    workers.sort(key=lambda worker: -worker.rate.get(job.variant_id, 0.0))
    found: list[Lease] = []
    for worker in workers[: len(job.pending)]:
        if _makes_wait(state, worker, job, now):
            leases = [state.leases[lease_id] for lease_id in worker.leases]
            found += [lease for lease in leases if lease.job_id in rivals and _may_ask(lease)]
    return found


def _makes_wait(state: State, worker: Worker, job: Job, now: float) -> bool:
    """Whether rows given to a worker now would wait for long behind rows that it has not begun."""
    waiting = worker.outstanding.get(job.variant_id, 0) - worker.capacity(job.variant_id, now)
    if waiting <= 0:
        return False
    rate = worker.rate.get(job.variant_id)
    if rate:
        return waiting / rate > PATIENCE_S
    return any(now - state.leases[lease_id].granted_at_s > PATIENCE_S for lease_id in worker.leases)


def _may_ask(lease: Lease) -> bool:
    return lease.state is LeaseState.OPEN and not (lease.isolated or lease.hedge or lease.all_started)
