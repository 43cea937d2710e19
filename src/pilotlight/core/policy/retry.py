"""Who is to blame when a replica dies, and what its rows may do next.

A row is charged an attempt only when it ran alone, and its variant has had results somewhere. Rows that died together
for the first time, on a device that worked, run again at once like others: most replicas are killed from outside. When
one of them dies again they are split in halves, which run with nothing beside them, at the end of their job, so one
poison row among n is found in log2(n) more deaths. A
device whose replicas die twice in a row on different rows, with no result between and none of these rows dead
elsewhere, is the culprit itself: it rests, and what it charged is given back. One that never had a result is given up
after a few deaths.
"""

from __future__ import annotations

from pilotlight.core.model import DeviceBelief, DeviceId, Job, JobId, VariantId, WorkerId
from pilotlight.core.ranges import IndexSet

QUARANTINE_S_MIN = 1.0
QUARANTINE_S_MAX = 60.0
LOAD_RETRY_S = 1.0
CROWDED_S = 5.0
VAIN_DEATHS_MAX = 6
DOUBLINGS_MAX = 16
"""More would leave the range of a float some day."""

Place = tuple[WorkerId, DeviceId]
Held = list[tuple[Job, IndexSet]]
"""Rows that a replica held when it died, by job."""


def halves(rows: IndexSet) -> list[IndexSet]:
    """The groups to run apart: one for a single row, else two of nearly equal size; the last is to run first."""
    if len(rows) <= 1:
        return [rows]
    second = rows.copy()
    first = IndexSet(second.take(len(rows) // 2))
    return [second, first]


def remember(belief: DeviceBelief, place: Place, variant_id: VariantId, held: Held, *, proved: bool) -> None:
    """A replica died with these rows in it: note that against the rows, and against the device where it says something.

    It says nothing of the device if one of its rows died before, here or elsewhere: halves of a group, a row that runs
    alone again. But while the variant has not had a result anywhere (`proved` is False), a row that dies alone counts
    each time, or a context that kills all would never be given up.
    """
    elsewhere = before = False
    for job, rows in held:
        for index in rows.indices():
            places = job.died_on.setdefault(index, [])
            before |= bool(places)
            elsewhere |= any(other != place for other in places)
            places.append(place)
    alone = sum(len(rows) for _, rows in held) == 1
    if variant_id not in belief.worked_on and (not before or (alone and not proved)):
        belief.vain_deaths[variant_id] = belief.vain_deaths.get(variant_id, 0) + 1
    if not elsewhere:
        belief.deaths.append({job.job_id: rows.copy() for job, rows in held})


def _shares_rows(belief: DeviceBelief, held: Held) -> bool:
    """Whether a row of these was in the device's last death, with no result since."""
    if not belief.deaths:
        return False
    last = belief.deaths[-1]
    return any(last[job.job_id].within(*span) for job, rows in held if job.job_id in last for span in rows)


def _died_before(held: Held) -> bool:
    """Whether one of these rows was in a replica that died."""
    return any(index in job.died_on for job, rows in held for index in rows.indices())


def is_hopeless(belief: DeviceBelief, variant_id: VariantId) -> bool:
    """Whether enough of a variant's replicas died on a device that never had a result of it: then the device counts as
    one that can't load it."""
    return variant_id not in belief.worked_on and belief.vain_deaths.get(variant_id, 0) >= VAIN_DEATHS_MAX


def is_culprit(belief: DeviceBelief, held: Held) -> bool:
    """Whether a death, before it is remembered, tells against a device that worked: its last one, with no result since,
    was of other rows, and none of these died elsewhere."""
    if not belief.worked or not belief.deaths or _shares_rows(belief, held):
        return False
    return not _died_before(held)


def are_trusted(belief: DeviceBelief, held: Held) -> bool:
    """Whether rows of a replica that died, before that is remembered, may run again like others: their device worked
    since its last death, there were several, and none of them died before."""
    if not belief.worked or belief.deaths or sum(len(rows) for _, rows in held) < 2:
        return False
    return not _died_before(held)


def quarantine(belief: DeviceBelief, now: float) -> float:
    """Let a device rest, longer each time. Returns the rest in seconds.

    The caller gives its charges back the first time (`quarantines` is 1 then). If it dies on different rows again right
    after a rest, where it worked before, poison rows may be all that is left; then charges stand, or such a job would
    never end.
    """
    rest_s = min(QUARANTINE_S_MAX, QUARANTINE_S_MIN * 2.0 ** min(belief.quarantines, DOUBLINGS_MAX))
    belief.quarantines += 1
    belief.quarantined_until_s = now + rest_s
    belief.deaths.clear()
    return rest_s


def refund(belief: DeviceBelief, jobs: dict[JobId, Job]) -> list[tuple[JobId, int]]:
    """Give back the attempts that a device charged since its last result. Returns the rows."""
    refunded: list[tuple[JobId, int]] = []
    for job_id, index in belief.charges:
        job = jobs.get(job_id)
        if job is not None and job.attempts.get(index) and index not in job.failing:
            job.attempts[index] -= 1
            refunded.append((job_id, index))
    belief.charges.clear()
    return refunded


def absolve(belief: DeviceBelief) -> None:
    """A result came from this device: it works."""
    belief.worked = True
    if belief.deaths or belief.charges or belief.quarantines:
        belief.deaths.clear()
        belief.charges.clear()
        belief.quarantines = 0
        belief.quarantined_until_s = None


def load_retry_s(failures: int) -> float:
    """How long to wait before a device is asked again to load what it failed to load `failures` times."""
    return LOAD_RETRY_S * 2.0 ** min(failures - 1, DOUBLINGS_MAX)
