"""What a real run did, measured from the records of its event log: who was there, what loaded how, how fast rows came.

Nothing is assumed here; what a simulated world is made of all this is said in `calibrate`. All times are seconds since
the first manager of the log began, on its clock.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Device, Variant
from pilotlight.core.ranges import span_count
from pilotlight.core.story.records import Began, Gap, Record, Step
from pilotlight.core.story.scene import Scene
from pilotlight.core.transitions import JobState, Level, ReplicaState

SAME_REPORT_S = 0.02
"""Lines of one device that are nearer are of one report: a report has rows of several leases."""

Place = tuple[str, str, str]
"""Worker, device, and the job whose rows it works on."""


@dataclass(slots=True)
class JobRun:
    """A job. rows: how many were read, without those that an earlier run had done; ended_s: None where it goes on."""

    job_id: str
    name: str
    variant: Variant
    weight: float
    may_hedge: bool
    at_s: float
    read_upto: int = 0
    done_before: int = 0
    ended_s: float | None = None
    state: JobState | None = None

    @property
    def rows(self) -> int:
        """How many the run did or was to do."""
        return self.read_upto - self.done_before


@dataclass(slots=True)
class Stay:
    """A worker, from where it joined to where it was lost (None: it stayed). leaving_s: when it said that it would go,
    within grace_s; silent: it was given up since nothing was heard of it."""

    worker_id: str
    host: str
    devices: tuple[Device, ...]
    memory_bytes: int
    pid: int
    joined_s: float
    staged: frozenset[str] = frozenset()
    leaving_s: float | None = None
    grace_s: float = 0.0
    lost_s: float | None = None
    reason: str = ""
    silent: bool = False


@dataclass(frozen=True, slots=True)
class LoadRun:
    """A replica that went live. stages: seconds by what they were spent on."""

    worker_id: str
    device_id: str
    variant_id: str
    origin: str
    load_s: float
    stages: dict[str, float]
    memory_bytes: int
    at_s: float


@dataclass(frozen=True, slots=True)
class CopyRun:
    """A copy that was made. source: the worker that it was fetched from, if from one."""

    worker_id: str
    variant_id: str
    level: Level
    bytes: int
    took_s: float
    at_s: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Death:
    """A replica that ended by itself."""

    worker_id: str
    device_id: str
    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Worked:
    """Rows of one job that one device worked on over a time that it was busy."""

    place: Place
    since_s: float
    until_s: float
    rows: int


@dataclass(slots=True)
class Run:
    """All that was measured of a run."""

    version: str = ""
    managers: int = 0
    lost_lines: int = 0
    cut: bool = False
    """The log's beginning is gone."""
    jobs: dict[str, JobRun] = field(default_factory=dict[str, JobRun])
    stays: list[Stay] = field(default_factory=list[Stay])
    loads: list[LoadRun] = field(default_factory=list[LoadRun])
    copies: list[CopyRun] = field(default_factory=list[CopyRun])
    deaths: list[Death] = field(default_factory=list[Death])
    worked: list[Worked] = field(default_factory=list[Worked])
    loading: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    """(worker, from, until) of loads that ended, or were lost, by then."""
    wanted: dict[tuple[str, str, str], list[int]] = field(default_factory=dict[tuple[str, str, str], list[int]])
    """What a replica said it wants, by worker, device and variant, as it changed."""
    report_gaps_s: list[float] = field(default_factory=list[float])
    """Between reports of rows of one busy device."""
    ways_s: list[float] = field(default_factory=list[float])
    """From a wish for rows back to its answer: a message each way."""
    reads_s: list[float] = field(default_factory=list[float])
    """From a wish to read input to the rows."""
    until_s: float = 0.0
    """When the last record was."""


def measure(records: Iterable[Record]) -> Run:
    """Follow a log from its beginning to its end."""
    meter = _Meter()
    for record in records:
        meter.take(record)
    return meter.finish()


@dataclass(slots=True)
class _Line:
    """A record of rows: written from since_s to at_s; idle_until_s: when the device last was given rows after it had
    none."""

    since_s: float
    at_s: float
    rows: int
    busy_from_s: float


class _Meter:
    def __init__(self) -> None:
        self._run = Run()
        self._scene = Scene()
        self._here: dict[str, Stay] = {}
        self._starting: dict[tuple[str, str, str], float] = {}
        self._live: dict[tuple[str, str, str], float] = {}
        self._known: set[tuple[str, str]] = set()
        self._asked: dict[str, float] = {}
        self._reading: dict[tuple[int, str], float] = {}
        self._sources: dict[tuple[str, str], str] = {}
        self._busy_from: dict[tuple[str, str], float] = {}
        self._lines: dict[Place, list[_Line]] = {}

    def take(self, record: Record) -> None:
        run = self._run
        match record:
            case Began():
                run.managers += 1
                run.version = run.version or record.version
                run.cut |= record.again and run.managers == 1
                if run.managers > 1:
                    self._scene.began()
            case Gap():
                run.lost_lines += record.lost
            case Step():
                run.until_s = max(run.until_s, record.at_s)
                self._step(record)
            case _:
                pass

    def finish(self) -> Run:
        for place, lines in self._lines.items():
            self._works(place, lines)
        self._gaps()
        for (worker_id, _, _), since_s in self._starting.items():
            self._run.loading.append((worker_id, since_s, self._run.until_s))
        return self._run

    # --- one step

    def _step(self, step: Step) -> None:
        self._event(step)
        moment = self._scene.take(step)
        for lease in moment.granted:
            self._busy_from.setdefault((lease.worker_id, lease.job_id), step.at_s)
        for moved in moment.moved:
            worker = self._scene.workers.get(moved.lease.worker_id)
            left = worker is not None and any(lease.job_id == moved.lease.job_id for lease in worker.leases.values())
            if not left:
                self._busy_from.pop((moved.lease.worker_id, moved.lease.job_id), None)
        for decision in step.decisions:
            match decision:
                case do.RevokeRows(_, lease_id):
                    self._asked[lease_id] = step.at_s
                case do.ReadRows(job_id):
                    self._reading[step.n, job_id] = step.at_s
                case do.EndJob(job_id, state) if job_id in self._run.jobs:
                    job = self._run.jobs[job_id]
                    job.ended_s, job.state = step.at_s, state
                case do.NameSource(worker_id, variant_id, source):
                    self._sources[worker_id, variant_id] = source
                case do.DropWorker(worker_id) if worker_id in self._here:
                    self._here[worker_id].silent = True
                case _:
                    pass

    def _event(self, step: Step) -> None:
        run, event = self._run, step.event
        match event:
            case ev.JobSubmitted():
                self._submitted(event, step.at_s)
            case ev.RowsRead(job_id, _, stop) if job_id in run.jobs:
                run.jobs[job_id].read_upto = max(run.jobs[job_id].read_upto, stop)
                if (
                    step.because is not None
                    and (asked_s := self._reading.pop((step.because, job_id), None)) is not None
                ):
                    run.reads_s.append(step.at_s - asked_s)
            case ev.RowsReturned(_, lease_id):
                if (asked_s := self._asked.pop(lease_id, None)) is not None:
                    run.ways_s.append(step.at_s - asked_s)
            case ev.RowsWritten() if event.worker_id:
                self._written(step, event)
            case _:
                self._worker_event(step)

    def _submitted(self, event: ev.JobSubmitted, at_s: float) -> None:
        known = self._run.jobs.get(event.job_id)
        if known is None:
            self._run.jobs[event.job_id] = JobRun(
                event.job_id,
                event.name,
                event.variant,
                event.weight,
                event.may_hedge,
                at_s,
                done_before=span_count(event.done),
            )

    def _worker_event(self, step: Step) -> None:
        run, event, at_s = self._run, step.event, step.at_s
        match event:
            case ev.WorkerJoined(worker_id=worker_id):
                self._joined(event, at_s)
                for fact in event.inventory:
                    self._fact(worker_id, fact, at_s)
            case ev.WorkerLeaving(worker_id, _, grace_s) if worker_id in self._here:
                stay = self._here[worker_id]
                stay.leaving_s = at_s if stay.leaving_s is None else stay.leaving_s
                stay.grace_s = stay.grace_s or grace_s
            case ev.WorkerLost(worker_id, reason):
                self._lost(worker_id, at_s, reason)
            case ev.ReplicaReported(worker_id, fact):
                self._fact(worker_id, fact, at_s)
            case ev.CopyReported(worker_id, fact) if fact.bytes:
                source = self._sources.get((worker_id, fact.variant_id), "") if fact.level is Level.STAGED else ""
                copy = CopyRun(worker_id, fact.variant_id, fact.level, fact.bytes, fact.took_s, at_s, source)
                run.copies.append(copy)
            case ev.ReplicaDied(worker_id, device_id, variant_id, reason=reason):
                run.deaths.append(Death(worker_id, device_id, at_s, reason))
                self._gone((worker_id, device_id, variant_id), at_s)
            case ev.ReplicaStopped(worker_id, device_id, variant_id) | ev.LoadFailed(worker_id, device_id, variant_id):
                self._gone((worker_id, device_id, variant_id), at_s)
            case _:
                pass

    def _joined(self, event: ev.WorkerJoined, at_s: float) -> None:
        """A process that was here before only lost its connection meanwhile."""
        before = self._here.get(event.worker_id)
        if before is not None and before.pid == event.pid:
            before.lost_s, before.reason, before.silent = None, "", False
            return
        if before is not None:
            self._lost(event.worker_id, at_s, "another took its name")
        staged = frozenset(copy.variant_id for copy in event.copies if copy.level is Level.STAGED)
        stay = Stay(event.worker_id, event.host, event.devices, event.memory_bytes, event.pid, at_s, staged)
        self._here[event.worker_id] = stay
        self._run.stays.append(stay)

    def _fact(self, worker_id: str, fact: ev.ReplicaFact, at_s: float) -> None:
        key = (worker_id, fact.device_id, fact.variant_id)
        if fact.state is ReplicaState.STARTING:
            self._starting.setdefault(key, at_s)
            return
        if fact.state is not ReplicaState.LIVE:
            self._gone(key, at_s)
            return
        if (worker_id, fact.replica_id) not in self._known or key in self._starting:
            self._known.add((worker_id, fact.replica_id))
            since_s = self._starting.pop(key, at_s - fact.load_s)
            self._run.loading.append((worker_id, since_s, at_s))
            self._live[key] = at_s
            self._run.loads.append(
                LoadRun(
                    worker_id,
                    fact.device_id,
                    fact.variant_id,
                    fact.origin,
                    fact.load_s,
                    dict(fact.stages),
                    fact.memory_bytes,
                    at_s,
                )
            )
        self._run.wanted.setdefault(key, []).append(fact.wanted)

    def _gone(self, key: tuple[str, str, str], at_s: float) -> None:
        self._live.pop(key, None)
        since_s = self._starting.pop(key, None)
        if since_s is not None:
            self._run.loading.append((key[0], since_s, at_s))

    def _lost(self, worker_id: str, at_s: float, reason: str) -> None:
        stay = self._here.get(worker_id)
        if stay is not None and stay.lost_s is None:
            stay.lost_s, stay.reason = at_s, reason
        for key in [key for key in (*self._starting, *self._live) if key[0] == worker_id]:
            self._gone(key, at_s)

    # --- rows

    def _written(self, step: Step, event: ev.RowsWritten) -> None:
        """Its device was busy since the worker first had rows, or since the replica was live where that came later."""
        job = self._run.jobs.get(event.job_id)
        if job is None:
            return
        since_s = self._busy_from.get((event.worker_id, event.job_id), step.since_s)
        live_s = self._live.get((event.worker_id, event.device_id, job.variant.variant_id), since_s)
        line = _Line(min(step.since_s, step.at_s), step.at_s, span_count(event.spans), max(since_s, live_s))
        self._lines.setdefault((event.worker_id, event.device_id, event.job_id), []).append(line)

    def _works(self, place: Place, lines: list[_Line]) -> None:
        """Rows of a line were worked on since the report before its first, or since the device had any."""
        reports = _reports(lines)
        for line in lines:
            report = bisect_right(reports, line.since_s) - 1
            since_s = max(reports[report - 1], line.busy_from_s) if report else line.busy_from_s
            since_s = min(since_s, line.since_s)
            if line.at_s > since_s:
                self._run.worked.append(Worked(place, since_s, line.at_s, line.rows))

    def _gaps(self) -> None:
        """Between reports of a device that had rows all the while."""
        lines: dict[tuple[str, str], list[_Line]] = {}
        for (worker_id, device_id, _), each in self._lines.items():
            lines.setdefault((worker_id, device_id), []).extend(each)
        for each in lines.values():
            starts = sorted({line.busy_from_s for line in each})
            for earlier, later in itertools.pairwise(_reports(each)):
                if bisect_right(starts, earlier) == bisect_right(starts, later):
                    self._run.report_gaps_s.append(later - earlier)


def _reports(lines: list[_Line]) -> list[float]:
    """When lines were reported: those that are near each other at once."""
    times = sorted({time for line in lines for time in (line.since_s, line.at_s)})
    return [time for n, time in enumerate(times) if not n or time - times[n - 1] > SAME_REPORT_S]
