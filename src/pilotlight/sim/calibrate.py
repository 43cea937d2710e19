"""A scenario from a real run's event log, so that the simulator can be held against what happened.

`calibrated` makes a world of what `measured` saw: each worker comes and goes when it did, loads take what they took,
rows come as fast as they came (`rates`). Nothing is tuned until times agree; `nearness` says how far they are apart.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pilotlight.core.errors import ConfigError
from pilotlight.core.transitions import JobState, Level
from pilotlight.sim.measured import JobRun, LoadRun, Run, Stay
from pilotlight.sim.rates import Rates, fit
from pilotlight.sim.scenario import Scenario, Supply
from pilotlight.sim.spec import Kind, Model, Origin, Pace, Work

ALIKE = 1.25
"""Workers of like devices whose speeds differ by less are of one kind."""
SECONDS_MIN = 2.0
"""A worker that worked less has no speed of its own."""
TICK_S = 0.1
"""Of the manager and of workers, as they are."""
ROW_S_MIN = 1e-7


@dataclass(slots=True)
class Calibrated:
    """A scenario, which of its jobs stands for which of the run's, and what of the run it can't say."""

    scenario: Scenario
    jobs: tuple[JobRun, ...]
    began_s: float
    notes: list[str] = field(default_factory=list[str])
    comments: dict[str, str] = field(default_factory=dict[str, str])
    """Where figures of the scenario's file are from, by dotted key."""


@dataclass(slots=True)
class _Group:
    """Workers of one kind."""

    stays: list[Stay]
    speed: float
    seconds: float
    kind: Kind = field(default_factory=Kind)


def calibrated(run: Run, title: str) -> Calibrated:
    """The world in which a run's jobs meet a run's workers. Raises `ConfigError` where a run says too little."""
    if not run.managers:
        raise ConfigError("no line of it can be read" if run.lost_lines else "it is empty")
    jobs = tuple(job for job in run.jobs.values() if job.state is JobState.COMPLETED and job.rows > 0)
    if not jobs:
        raise ConfigError("no job of the run was completed, so that there is no time to compare with")
    rates = fit(run)
    jobs = tuple(job for job in jobs if job.job_id in rates.row_s)
    if not run.stays or not jobs:
        raise ConfigError("the log doesn't say which workers did the rows, so that nothing can be measured")
    began_s = min(*(job.at_s for job in jobs), *(stay.joined_s for stay in run.stays))
    ended_s = max(job.ended_s or 0.0 for job in jobs)
    stays = [stay for stay in run.stays if stay.joined_s < ended_s]
    groups = _groups(stays, rates)
    first = max(groups, key=lambda group: group.seconds * group.speed).speed
    variants = _names([job.variant.variant_id for job in jobs], [job.variant.name for job in jobs])
    kind_of = {stay.worker_id: group for group in groups for stay in group.stays}
    reads = _read_rates(run)
    for group in groups:
        group.kind = _kind(group, rates, group.speed / first, reads)
    for group, name in zip(groups, _kind_names(groups), strict=True):
        group.kind = _named(group.kind, name)
    scenario = Scenario(
        title,
        {
            name: _model(run, next(j for j in jobs if j.variant.variant_id == variant_id), name, kind_of)
            for variant_id, name in variants.items()
        },
        {group.kind.name: group.kind for group in groups},
        tuple(
            Work(
                job.rows,
                variants[job.variant.variant_id],
                _round(max(ROW_S_MIN, rates.row_s[job.job_id] / first)),
                weight=job.weight,
                at_s=_round(job.at_s - began_s),
                may_hedge=job.may_hedge,
            )
            for job in jobs
        ),
        tuple(_supply(run, stay, kind_of[stay.worker_id].kind.name, began_s, ended_s) for stay in stays),
        origin=_origin(run),
        pace=_pace(run, jobs, rates),
    )
    return Calibrated(scenario, jobs, began_s, _notes(run, jobs), _comments(run, groups, variants))


def _round(value: float) -> float:
    """Four figures: more are noise."""
    return float(f"{value:.4g}")


def _whole(size: int) -> int:
    """Whole megabytes, of what is larger."""
    return size // 1_000_000 * 1_000_000 or size


def _names(keys: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """A name for each key, none twice."""
    given: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        if key not in given:
            taken, number, plain = set(given.values()), 1, name
            while name in taken:
                number += 1
                name = f"{plain}-{number}"  # noqa: PLW2901 - the next one that is free
            given[key] = name
    return given


# --- kinds


def _groups(stays: Sequence[Stay], rates: Rates) -> list[_Group]:
    """Workers with devices alike, and speeds alike where these were measured. What a host has free varies anyway."""
    alike: dict[tuple[object, ...], list[Stay]] = defaultdict(list)
    for stay in stays:
        alike[tuple((d.kind, d.is_host or f"{d.memory_bytes:.0e}") for d in stay.devices)].append(stay)
    return [group for members in alike.values() for group in _by_speed(members, rates)]


def _by_speed(stays: list[Stay], rates: Rates) -> list[_Group]:
    known = [stay for stay in stays if rates.seconds.get(stay.worker_id, 0.0) >= SECONDS_MIN]
    known = known or [stay for stay in stays if stay.worker_id in rates.speed]
    known.sort(key=lambda stay: rates.speed[stay.worker_id])
    groups: list[list[Stay]] = []
    for stay in known:
        if groups and rates.speed[stay.worker_id] < ALIKE * rates.speed[groups[-1][0].worker_id]:
            groups[-1].append(stay)
        else:
            groups.append([stay])
    made = [_Group(group, *_mean_speed(group, rates)) for group in groups] or [_Group([], 1.0, 0.0)]
    for stay in stays:
        if stay not in known:
            _nearest(made, rates.speed.get(stay.worker_id)).stays.append(stay)
    return made


def _nearest(groups: list[_Group], speed: float | None) -> _Group:
    """Whose speed is most like this one; of an unknown one: who worked most."""
    if speed is None:
        return max(groups, key=lambda group: group.seconds)
    return min(groups, key=lambda group: abs(math.log(group.speed / speed)))


def _mean_speed(stays: list[Stay], rates: Rates) -> tuple[float, float]:
    """The mean that keeps the time which the work took, and how long it took."""
    weights = [rates.seconds[stay.worker_id] for stay in stays]
    speed = sum(w * rates.speed[stay.worker_id] for w, stay in zip(weights, stays, strict=True)) / sum(weights)
    return speed, sum(weights)


@dataclass(frozen=True, slots=True)
class _Reads:
    """Bytes per second by worker; a worker that read nothing is not in it."""

    disk: dict[str, float]
    link: dict[str, float]
    memory: dict[str, float]
    device: dict[str, float]


def _read_rates(run: Run) -> _Reads:
    disk: dict[str, list[float]] = defaultdict(list)
    link: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, list[float]] = defaultdict(list)
    device: dict[str, list[float]] = defaultdict(list)
    sizes = _sizes(run)
    for copy in run.copies:
        if copy.level is Level.PARKED and copy.took_s > 0:
            disk[copy.worker_id].append(copy.bytes / copy.took_s)
        elif copy.source and copy.took_s > 0:
            link[copy.worker_id].append(copy.bytes / copy.took_s)
    for load in run.loads:
        size = sizes.get(load.variant_id, 0)
        if size and load.origin in {"parked", "staged"} and load.stages.get("read", 0.0) > 0:
            source = memory if load.origin == "parked" else disk
            source[load.worker_id].append(size / load.stages["read"])
        if size and load.stages.get("to_device", 0.0) > 0:
            device[load.worker_id].append(size / load.stages["to_device"])
    return _Reads(_best(disk), _best(link), _best(memory), _best(device))


def _best(rates: dict[str, list[float]]) -> dict[str, float]:
    """What a worker reached at best: small files take longer per byte, which is not the disk's doing."""
    return {worker: max(each) for worker, each in rates.items()}


def _sizes(run: Run) -> dict[str, int]:
    """Bytes of files by variant: of copies that were made."""
    sizes: dict[str, int] = {}
    for copy in run.copies:
        if copy.level is Level.STAGED or copy.variant_id not in sizes:
            sizes[copy.variant_id] = copy.bytes
    return sizes


def _kind(group: _Group, rates: Rates, speed: float, reads: _Reads) -> Kind:
    plain = Kind()
    if not group.stays:
        return plain
    devices = group.stays[0].devices

    def middle(measured: dict[str, float], otherwise: float) -> float:
        known = [measured[stay.worker_id] for stay in group.stays if stay.worker_id in measured]
        return _round(statistics.median(known or list(measured.values()) or [otherwise]))

    return Kind(
        devices[0].kind if devices else plain.name,
        _round(speed),
        max(1, len(devices)),
        _whole(min((d.memory_bytes for stay in group.stays for d in stay.devices), default=plain.memory_bytes)),
        _whole(min((stay.memory_bytes for stay in group.stays if stay.memory_bytes), default=plain.host_bytes)),
        middle(reads.disk, plain.disk_bytes_per_s),
        middle(reads.link, plain.link_bytes_per_s),
        middle(reads.device, plain.to_device_bytes_per_s),
        middle(reads.memory, plain.memory_bytes_per_s),
        is_host=any(device.is_host for device in devices),
        abreast=_round(max(rates.abreast.get(stay.host, 0.0) for stay in group.stays)),
    )


def _kind_names(groups: list[_Group]) -> list[str]:
    keys = [str(number) for number, _ in enumerate(groups)]
    plain = [group.kind.name.lower().replace(" ", "-") for group in groups]
    return list(_names(keys, plain).values())


def _named(kind: Kind, name: str) -> Kind:
    return dataclasses.replace(kind, name=name)


# --- loads


def _model(run: Run, job: JobRun, name: str, kind_of: dict[str, _Group]) -> Model:
    """What is left of a load beside what is told apart is in `start_s`, so that the sum is what was measured."""
    variant = job.variant
    size = _sizes(run).get(variant.variant_id, variant.memory_bytes if variant.has_files else 0)
    loads = [load for load in run.loads if load.variant_id == variant.variant_id and load.worker_id in kind_of]
    built = [load for load in loads if load.origin != "asleep" and load.load_s > 0]
    imports = [
        load.stages["import"] + _copying_s(run, load) for load in built if load.stages.get("import", 0.0) > 0.001
    ]
    held = [load.memory_bytes for load in loads if load.memory_bytes]
    memory = int(statistics.median(held)) if held else variant.memory_bytes
    return Model(
        name,
        memory,
        size,
        _round(_mean(imports)),
        _round(_mean([_rest_s(load, size, kind_of[load.worker_id].kind) for load in built])),
        _round(_mean([load.stages.get("warm", 0.0) * kind_of[load.worker_id].kind.speed for load in built])),
        sleeps=any(load.origin == "asleep" for load in loads),
        declared_bytes=variant.memory_bytes or None,
    )


def _copying_s(run: Run, load: LoadRun) -> float:
    """How long copies were made before a load. Libraries are imported meanwhile: `import` is what was left of that."""
    return sum(
        copy.took_s
        for copy in run.copies
        if (copy.worker_id, copy.variant_id) == (load.worker_id, load.variant_id) and copy.at_s <= load.at_s
    )


def _rest_s(load: LoadRun, size: int, kind: Kind) -> float:
    told = sum(load.stages.get(stage, 0.0) for stage in ("stage", "park", "import", "warm"))
    read_s = size / (kind.memory_bytes_per_s if load.origin == "parked" else kind.disk_bytes_per_s)
    return max(0.0, load.load_s - told - read_s - size / kind.to_device_bytes_per_s)


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0


def _origin(run: Run) -> Origin:
    """What one reader got, and what all who read at once got together; copies that the machine had are none."""
    hosts = {stay.worker_id: stay.host for stay in run.stays}
    had: dict[tuple[str, str], float] = {}
    moved: list[tuple[float, float, float]] = []
    for copy in run.copies:
        if copy.level is not Level.STAGED or copy.took_s <= 0 or copy.source:
            continue
        made_s = had.setdefault((hosts.get(copy.worker_id, ""), copy.variant_id), copy.at_s)
        if copy.at_s - copy.took_s <= made_s:
            moved.append((copy.at_s - copy.took_s, copy.at_s, copy.bytes / copy.took_s))
    if not moved:
        return Origin()
    together = max(sum(rate for since, until, rate in moved if since <= at_s < until) for at_s, _, _ in moved)
    one = statistics.median(rate for _, _, rate in moved)
    return Origin(_round(max(one, together)), _round(one), latency_s=0.0)


# --- pace and presence


def _pace(run: Run, jobs: Sequence[JobRun], rates: Rates) -> Pace:
    plain = Pace()
    work_s: dict[str, float] = defaultdict(float)
    rows: dict[str, int] = defaultdict(int)
    for job in jobs:
        work_s[job.variant.variant_id] += job.rows * rates.row_s[job.job_id]
        rows[job.variant.variant_id] += job.rows
    step_s = _middle(run.report_gaps_s) or plain.step_s
    wishes = [
        statistics.median(wanted[len(wanted) // 2 :]) * work_s[variant_id] / rows[variant_id] / rates.speed[worker_id]
        for (worker_id, _, variant_id), wanted in run.wanted.items()
        if variant_id in rows and worker_id in rates.speed
    ]
    least = [min(wanted) for wanted in run.wanted.values()]
    return Pace(
        step_s=_round(step_s),
        tick_s=TICK_S,
        message_s=_round(statistics.median(run.ways_s) / 2) if run.ways_s else plain.message_s,
        read_s=_round(statistics.median(run.reads_s)) if run.reads_s else plain.read_s,
        slots=max(1, min(least, default=plain.slots)),
        wanted_steps=_round(max(1.0, statistics.median(wishes) / step_s)) if wishes else plain.wanted_steps,
    )


def _middle(durations: Sequence[float]) -> float:
    """The duration that half of the time is spent in shorter ones than: many short ones count little. 0 of none."""
    left = sum(durations) / 2
    for duration in sorted(durations):
        left -= duration
        if left <= 0:
            return duration
    return 0.0


def _supply(run: Run, stay: Stay, kind: str, began_s: float, ended_s: float) -> Supply:
    """One worker. One that said that it would go has until the end of its notice; it may be done before."""
    gone_s, notice_s = stay.lost_s, 0.0
    if stay.leaving_s is not None and stay.grace_s > 0:
        gone_s, notice_s = stay.leaving_s + stay.grace_s, stay.grace_s
    until_s = None if gone_s is None or gone_s - notice_s >= ended_s else _since(gone_s, began_s)
    deaths_s = tuple(_since(d.at_s, began_s) for d in run.deaths if d.worker_id == stay.worker_id and d.at_s < ended_s)
    return Supply(
        kind,
        1,
        from_s=_since(stay.joined_s, began_s),
        until_s=until_s,
        notice_s=_round(notice_s),
        host=stay.host,
        deaths_s=deaths_s,
    )


def _since(at_s: float, began_s: float) -> float:
    return round(at_s - began_s, 3)


def _notes(run: Run, jobs: Sequence[JobRun]) -> list[str]:
    """What the scenario leaves out or can't know."""
    said = [
        (len(run.jobs) - len(jobs), "of the run's jobs did not complete, and are left out"),
        (sum(stay.silent for stay in run.stays), "workers fell silent, and are lost at once when that was noticed"),
        (run.managers - 1, "times another manager went on, which is left out"),
        (run.lost_lines, "lines of the log are missing"),
        (int(run.cut), "beginning of the log is gone: what was held before loads again"),
    ]
    return [f"{count} {text}" for count, text in said if count > 0]


def _comments(run: Run, groups: Sequence[_Group], variants: dict[str, str]) -> dict[str, str]:
    said = {"pace.step_s": f"of {len(run.report_gaps_s)} reports", "pace.tick_s": "as it is, not measured"}
    for group in groups:
        workers = f"{len(group.stays)} {'worker' if len(group.stays) == 1 else 'workers'}"
        said[f"kinds.{group.kind.name}.speed"] = f"over {group.seconds:.0f} s of work by {workers}"
    for variant_id, name in variants.items():
        loads = sum(load.variant_id == variant_id for load in run.loads)
        said[f"models.{name}.import_s"] = f"mean of {loads} {'load' if loads == 1 else 'loads'}"
    return said
