"""How fast devices were on which jobs, fitted to what a run measured.

The model: a row of a job takes `row_s` on a device of speed 1; another worker's devices take row_s / speed; replicas
share a device; where more of a host are busy than work abreast at full speed, all of them take longer in proportion.
Fitted by weighted least squares of logarithms: factors are what is compared, and a second of work counts the same
wherever it was done.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.sim.measured import Run, Worked

ROUNDS = 30
SETTLED = 1e-6
"""Row times that change by less from round to round, as a part of themselves, are found."""
STEPS_PER_REPLICA = 20
"""How finely `abreast` is tried."""
BETTER = 0.8
"""Sharing is believed where it leaves at most this part of the squared error that there is without."""
ALONE_S_MIN = 1.0
"""A job that had a replica to itself for so long is measured by that alone."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a worker's device did of a job while so many replicas of its host, and so many of its own, were busy."""

    worker_id: str
    job_id: str
    host: str
    busy: int
    here: int
    seconds: float
    rows: float


@dataclass(slots=True)
class Rates:
    """row_s: by job; speed: by worker, 1 on average; abreast: by host, 0 where more work does not slow it; seconds: of
    work that was measured, by worker."""

    row_s: dict[str, float] = field(default_factory=dict[str, float])
    speed: dict[str, float] = field(default_factory=dict[str, float])
    abreast: dict[str, float] = field(default_factory=dict[str, float])
    seconds: dict[str, float] = field(default_factory=dict[str, float])


def fit(run: Run) -> Rates:
    """Rates of a run; of no job where no row was written."""
    cells = measured_cells(run)
    abreast = dict.fromkeys([stay.host for stay in run.stays], 0.0)
    best = _fitted(cells, abreast)
    for host in abreast:
        most = max((cell.busy for cell in cells if cell.host == host), default=1)
        least_error, without = _error(cells, best), _error(cells, best)
        for step in range(STEPS_PER_REPLICA, most * STEPS_PER_REPLICA):
            tried = _fitted(cells, {**abreast, host: step / STEPS_PER_REPLICA})
            error = _error(cells, tried)
            if error < least_error and error <= BETTER * without:
                best, least_error = tried, error
        abreast = best.abreast
    return best


def _slowness(cell: Cell, abreast: dict[str, float]) -> float:
    limit = abreast.get(cell.host, 0.0)
    return max(float(cell.here), cell.busy / limit if limit else 1.0)


def _error(cells: list[Cell], rates: Rates) -> float:
    return sum(
        cell.seconds
        * math.log(
            cell.seconds
            / cell.rows
            / (rates.row_s[cell.job_id] / rates.speed[cell.worker_id] * _slowness(cell, rates.abreast))
        )
        ** 2
        for cell in cells
    )


def _fitted(cells: list[Cell], abreast: dict[str, float]) -> Rates:
    """Row times and speeds in turn, each the weighted mean of what the other leaves."""
    row_log: dict[str, float] = defaultdict(float)
    speed_log: dict[str, float] = defaultdict(float)
    plain = [
        (cell.worker_id, cell.job_id, cell.seconds, math.log(cell.seconds / cell.rows / _slowness(cell, abreast)))
        for cell in cells
    ]
    for _ in range(ROUNDS):
        before = dict(row_log)
        row_log.update(_means((job, seconds, log + speed_log[worker]) for worker, job, seconds, log in plain))
        speed_log.update(_means((worker, seconds, row_log[job] - log) for worker, job, seconds, log in plain))
        (mean,) = _means(("", seconds, speed_log[worker]) for worker, _, seconds, _ in plain).values() or (0.0,)
        for worker in speed_log:
            speed_log[worker] -= mean
        if before and all(abs(row_log[job] - log) < SETTLED for job, log in before.items()):
            break
    seconds: dict[str, float] = defaultdict(float)
    for cell in cells:
        seconds[cell.worker_id] += cell.seconds
    row_s = {job: math.exp(log) for job, log in row_log.items()}
    return Rates(row_s, {worker: math.exp(log) for worker, log in speed_log.items()}, dict(abreast), dict(seconds))


def _means(values: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    sums: dict[str, tuple[float, float]] = {}
    for key, weight, value in values:
        total, weights = sums.get(key, (0.0, 0.0))
        sums[key] = (total + weight * value, weights + weight)
    return {key: total / weights for key, (total, weights) in sums.items()}


# --- cells


@dataclass(slots=True)
class _Both:
    """What a replica did that had rows of several jobs: rows by job, and how long all of them took together."""

    seconds: float = 0.0
    rows: dict[str, float] = field(default_factory=lambda: defaultdict(float))


_Busy = tuple[int, int]
"""Replicas of the host, and of the device."""
_Key = tuple[str, str, str, _Busy]
"""Worker, job, host, busy replicas."""


@dataclass(slots=True)
class _Sums:
    """Seconds and rows where a job had its replica to itself, and where it had not."""

    alone: dict[_Key, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    both: dict[tuple[str, str, _Busy, tuple[str, ...]], _Both] = field(default_factory=lambda: defaultdict(_Both))


def measured_cells(run: Run) -> list[Cell]:
    """Seconds and rows by worker, job and how much its host had to do."""
    hosts = {stay.worker_id: stay.host for stay in run.stays}
    works: dict[str, list[Worked]] = defaultdict(list)
    loads: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for worked in run.worked:
        if (worker_id := worked.place[0]) in hosts:
            works[hosts[worker_id]].append(worked)
    for worker_id, since_s, until_s in run.loading:
        if worker_id in hosts:
            loads[hosts[worker_id]] += [(since_s, 1), (until_s, -1)]
    sums = _Sums()
    for host, worked in works.items():
        _sweep(run, host, worked, loads[host], sums)
    return _divided(sums)


def _cells(sums: dict[_Key, list[float]]) -> list[Cell]:
    return [
        Cell(worker_id, job_id, host, *busy, seconds, rows)
        for (worker_id, job_id, host, busy), (seconds, rows) in sums.items()
        if seconds > 0 and rows > 0
    ]


def _divided(sums: _Sums) -> list[Cell]:
    """A job that never had a replica to itself took what the others, by what they took alone, leave of the time.

    Where none had, a row of each counts the same.
    """
    alone_s: dict[str, float] = defaultdict(float)
    for (_, job_id, _, _), (seconds, _) in sums.alone.items():
        alone_s[job_id] += seconds
    cells = [cell for cell in _cells(sums.alone) if alone_s[cell.job_id] >= ALONE_S_MIN]
    known = _fitted(cells, {})
    cost = dict(known.row_s)
    middle = sum(cost.values()) / len(cost) if cost else 1.0
    divided: dict[_Key, list[float]] = {}
    for _ in range(ROUNDS):
        divided = defaultdict(lambda: [0.0, 0.0])
        took: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for (worker_id, host, busy, _), both in sums.both.items():
            whole = sum(rows * cost.get(job_id, middle) for job_id, rows in both.rows.items())
            for job_id, rows in both.rows.items():
                if job_id in known.row_s or not whole:
                    continue
                seconds = both.seconds * rows * cost.get(job_id, middle) / whole
                cell = divided[worker_id, job_id, host, busy]
                cell[0] += seconds
                cell[1] += rows
                took[job_id][0] += seconds * known.speed.get(worker_id, 1.0)
                took[job_id][1] += rows
        if cost and known.row_s:
            cost |= {job_id: seconds / rows for job_id, (seconds, rows) in took.items() if rows}
    return cells + _cells(divided)


def _sweep(run: Run, host: str, worked: list[Worked], loads: list[tuple[float, int]], sums: _Sums) -> None:
    """Go through a host's time from change to change. Jobs of one variant share a replica."""
    changes: list[tuple[float, str, str, str, int, float]] = [(at_s, "", "", "", n, 0.0) for at_s, n in loads]
    for work in worked:
        worker_id, device_id, job_id = work.place
        density = work.rows / (work.until_s - work.since_s)
        changes.append((work.since_s, worker_id, device_id, job_id, 1, density))
        changes.append((work.until_s, worker_id, device_id, job_id, -1, -density))
    changes.sort()
    loading = 0
    last_s = 0.0
    active: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for at_s, worker_id, device_id, job_id, count, density in changes:
        if at_s > last_s:
            here = Counter((worker, device) for worker, device, _ in active)
            for (worker, device, _), jobs in active.items():
                _add(sums, worker, host, (loading + len(active), here[worker, device]), at_s - last_s, jobs)
            last_s = at_s
        if not worker_id:
            loading += count
            continue
        replica = (worker_id, device_id, run.jobs[job_id].variant.variant_id)
        lines = active.setdefault(replica, {}).setdefault(job_id, [0, 0.0])
        lines[0] += count
        lines[1] += density
        if lines[0] <= 0:
            del active[replica][job_id]
            if not active[replica]:
                del active[replica]


def _add(sums: _Sums, worker: str, host: str, busy: _Busy, seconds: float, jobs: dict[str, list[float]]) -> None:
    """A replica's time between two changes. jobs: (lines, rows per second) of each."""
    if len(jobs) == 1:
        ((job, (_, per_s)),) = jobs.items()
        cell = sums.alone[worker, job, host, busy]
        cell[0] += seconds
        cell[1] += seconds * per_s
        return
    both = sums.both[worker, host, busy, tuple(sorted(jobs))]
    both.seconds += seconds
    for job, (_, per_s) in jobs.items():
        both.rows[job] += seconds * per_s
