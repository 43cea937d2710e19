"""Weighted fair share among jobs, at the grain of leases.

Each job has a clock that advances by rows granted over its weight; the job whose clock is furthest behind is served
first (start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996). A new job starts at the clock of the furthest
behind, so that it neither owes nor is owed a past.
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.core.model import Job


def starting_clock(running: Iterable[Job]) -> float:
    """Where a new job's clock starts."""
    return min((job.virtual_time for job in running), default=0.0)


def divide(jobs: list[Job], rows: int) -> list[tuple[Job, int]]:
    """Who gets how many of `rows`, given jobs that have pending rows. Advances their clocks."""
    if len(jobs) == 1:
        count = min(rows, len(jobs[0].pending))
        jobs[0].virtual_time += count / jobs[0].weight
        return [(jobs[0], count)]
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
