"""Who is to blame when a replica dies, and what its rows may do next.

A row is charged an attempt only when it ran alone. Rows that died together are split in halves, which run again with
nothing beside them, so one poison row among n is found in log2(n) deaths. A device whose replicas die twice in a row on
different rows, with no result between, is the culprit itself: it rests, and what it charged is given back.
"""

from __future__ import annotations

from pilotlight.core.model import DeviceBelief, Job, JobId
from pilotlight.core.ranges import IndexSet, span_count

QUARANTINE_S_MIN = 1.0
QUARANTINE_S_MAX = 60.0
LOAD_RETRY_S = 1.0


def halves(rows: IndexSet) -> list[IndexSet]:
    """The groups to run apart: one for a single row, else two of nearly equal size; the last is to run first."""
    if len(rows) <= 1:
        return [rows]
    second = rows.copy()
    first = IndexSet(second.take(len(rows) // 2))
    return [second, first]


def is_culprit(belief: DeviceBelief) -> bool:
    """Whether a device's last two deaths, with no result between them, had no row in common."""
    if len(belief.deaths) < 2:
        return False
    before, last = belief.deaths[-2:]
    shared = (
        span_count(before[job_id].within(*span)) for job_id, rows in last.items() if job_id in before for span in rows
    )
    return not any(shared)


def quarantine(belief: DeviceBelief, jobs: dict[JobId, Job], now: float) -> float:
    """Let a device rest, longer each time, and give back the attempts that it charged. Returns the rest in seconds."""
    rest_s = min(QUARANTINE_S_MAX, QUARANTINE_S_MIN * 2.0**belief.quarantines)
    belief.quarantines += 1
    belief.quarantined_until_s = now + rest_s
    for job_id, index in belief.charges:
        job = jobs.get(job_id)
        if job is not None and index in job.attempts and index not in job.failing and index not in job.done:
            job.attempts[index] -= 1
    belief.charges.clear()
    belief.deaths.clear()
    return rest_s


def absolve(belief: DeviceBelief) -> None:
    """A result came from this device: it works."""
    if belief.deaths or belief.charges or belief.quarantines:
        belief.deaths.clear()
        belief.charges.clear()
        belief.quarantines = 0
        belief.quarantined_until_s = None


def load_retry_s(failures: int) -> float:
    """How long to wait before a device is asked again to load what it failed to load `failures` times."""
    return LOAD_RETRY_S * 2.0 ** (failures - 1)
