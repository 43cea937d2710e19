"""Who is on stage while records are read: names, open leases, what each worker is wanted to hold.

`Scene.take` follows one step and returns a `Moment`: the step with what it did to leases and wants, which is what the
tellers of stories need and no single event says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Variant
from pilotlight.core.ranges import IndexSet, Span, span_count
from pilotlight.core.story.records import Step
from pilotlight.core.transitions import Level

Want = tuple[str, str, Level]


@dataclass(slots=True)
class LeaseSeen:
    """A lease, with what is still open of it. asked: when its rows were last asked back, at most how many (None: all),
    and why."""

    lease_id: str
    job_id: str
    worker_id: str
    granted: tuple[Span, ...]
    open: IndexSet
    granted_at_s: float
    isolated: bool
    why: str
    hedge: bool = False
    asked: tuple[float, int | None, str] | None = None


@dataclass(slots=True)
class JobSeen:
    """A job; `leased` holds rows that are in an open lease, `hedged` those that are in two. attempts: how many are
    charged to each row by now."""

    submitted: ev.JobSubmitted
    at_s: float
    leases: dict[str, LeaseSeen] = field(default_factory=dict[str, LeaseSeen])
    leased: IndexSet = field(default_factory=IndexSet)
    hedged: IndexSet = field(default_factory=IndexSet)
    attempts: dict[int, int] = field(default_factory=dict[int, int])
    ended: do.EndJob | None = None
    ended_at_s: float = 0.0


@dataclass(slots=True)
class WorkerSeen:
    """A worker, as it last joined. `wants` is what it was last told to hold; `drains`: it is about to leave."""

    joined: ev.WorkerJoined
    at_s: float
    drains: bool = False
    wants: tuple[Want, ...] = ()
    leases: dict[str, LeaseSeen] = field(default_factory=dict[str, LeaseSeen])
    lost_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows that left a lease; `kept` are those of them that another open lease has too."""

    lease: LeaseSeen
    spans: list[Span]
    kept: list[Span]

    def freed(self) -> IndexSet:
        """Rows that are in no lease now."""
        freed = IndexSet(self.spans)
        freed.discard(self.kept)
        return freed


@dataclass(frozen=True, slots=True)
class Charge:
    """So many attempts are charged to a row now; `back`: one fewer than before, instead of one more."""

    job_id: str
    index: int
    attempts: int
    back: bool


@dataclass(frozen=True, slots=True)
class WantsChange:
    """What a worker was newly told to hold, and no longer to hold."""

    worker_id: str
    added: list[Want]
    dropped: list[Want]
    why: str


@dataclass(frozen=True, slots=True)
class Moment:
    """A step, with what followed for leases and wants. why: the reason of the wants that it answers. changed: it is a
    report of a replica that is new or in another state. residents_lost: (device, variant) of replicas lost with their
    worker. left: a worker is gone that was to leave, and held no row."""

    step: Step
    moved: list[Moved]
    granted: list[LeaseSeen]
    wants: list[WantsChange]
    charges: list[Charge] = field(default_factory=list[Charge])
    why: str = ""
    changed: bool = False
    residents_lost: tuple[tuple[str, str], ...] = ()
    left: bool = False


class Scene:
    """Follows the records of a log. Leases and workers from before the log began are unknown to it."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobSeen] = {}
        self.workers: dict[str, WorkerSeen] = {}
        self.leases: dict[str, LeaseSeen] = {}
        self.names: dict[str, str] = {}
        """Variant -> what people call it."""
        self.proved: set[str] = set()
        """Variants that had a result."""
        self.sources: dict[tuple[str, str], str] = {}
        """By worker and variant, which other worker it was last told to stage the files from; "" is their origin."""
        self._whys: dict[tuple[int, str], str] = {}
        """Why a worker was told what to hold, by step and worker."""
        self._residents: dict[tuple[str, str, str], tuple[str, str]] = {}

    def name_of(self, variant_id: str) -> str:
        """What people call a variant."""
        return self.names.get(variant_id, variant_id)

    def began(self) -> None:
        """Another manager goes on: it knows no lease and no job that it is not told of."""
        for job in self.jobs.values():
            job.leases.clear()
            job.leased, job.hedged = IndexSet(), IndexSet()
        for worker in self.workers.values():
            worker.leases.clear()
            worker.wants = ()
        self.leases.clear()
        self._whys.clear()

    def learn(self, names: dict[str, str]) -> None:
        """What people call variants."""
        self.names.update(names)

    def take(self, step: Step) -> Moment:
        """Follow one step."""
        changed = isinstance(step.event, ev.ReplicaReported) and self._changes(step.event)
        residents_lost = self._gone(step.event)
        moved = self._happened(step)
        granted: list[LeaseSeen] = []
        wants: list[WantsChange] = []
        charges: list[Charge] = []
        for decision in step.decisions:
            match decision:
                case do.GrantRows():
                    granted.append(self._grant(decision, step.at_s))
                case do.RevokeRows(_, lease_id, rows, why):
                    if lease_id in self.leases:
                        self.leases[lease_id].asked = (step.at_s, rows, why)
                case do.SendWants():
                    wants.append(self._want(decision))
                    self._whys[step.n, decision.worker_id] = decision.why
                case do.NameSource(worker_id, variant_id, source):
                    self.sources[worker_id, variant_id] = source
                case do.RecordAttempts():
                    charges += self._charge(decision)
                case do.EndJob(job_id):
                    self._end(job_id, decision, step.at_s)
                case _:
                    pass
        left = isinstance(step.event, ev.WorkerLost) and not moved and self._drained(step.event.worker_id)
        return Moment(step, moved, granted, wants, charges, self._why(step), changed, residents_lost, left)

    def _why(self, step: Step) -> str:
        worker_id = getattr(step.event, "worker_id", "")
        return "" if step.because is None else self._whys.get((step.because, worker_id), "")

    def _drained(self, worker_id: str) -> bool:
        worker = self.workers.get(worker_id)
        return worker is not None and worker.drains

    # --- what happened

    def _changes(self, event: ev.ReplicaReported) -> bool:
        fact = event.fact
        key = (event.worker_id, fact.device_id, fact.variant_id)
        told = (fact.replica_id, fact.state.value)
        changed = self._residents.get(key) != told
        self._residents[key] = told
        return changed

    def _gone(self, event: ev.ManagerEvent) -> tuple[tuple[str, str], ...]:
        """Forget replicas that are no more; which went with their worker."""
        match event:
            case ev.ReplicaDied() | ev.ReplicaStopped() | ev.LoadFailed():
                self._residents.pop((event.worker_id, event.device_id, event.variant_id), None)
            case ev.WorkerLost(worker_id=worker_id) | ev.WorkerJoined(worker_id=worker_id):
                keys = [key for key in self._residents if key[0] == worker_id]
                for key in keys:
                    del self._residents[key]
                return tuple((device_id, variant_id) for _, device_id, variant_id in keys)
            case _:
                pass
        return ()

    def _happened(self, step: Step) -> list[Moved]:
        event = step.event
        match event:
            case ev.RowsWritten():
                return self._written(event)
            case ev.RowsReturned():
                return self._leave([(event.lease_id, list(event.spans))], event.worker_id)
            case ev.ReplicaDied():
                return self._leave([(lease_id, spans) for lease_id, spans in event.rows.items()], event.worker_id)
            case ev.WorkerLost(worker_id):
                return self._lose(worker_id, step.at_s)
            case ev.WorkerJoined():
                moved = self._lose(event.worker_id, None)
                self._learn(*event.variants)
                self.workers[event.worker_id] = WorkerSeen(event, step.at_s)
                for fact in event.inventory:
                    key = (event.worker_id, fact.device_id, fact.variant_id)
                    self._residents[key] = (fact.replica_id, fact.state.value)
                return moved
            case ev.JobSubmitted():
                self._learn(event.variant)
                self.jobs[event.job_id] = JobSeen(event, step.at_s, attempts=dict(event.attempts))
            case ev.WorkerLeaving(worker_id) if worker_id in self.workers:
                self.workers[worker_id].drains = True
            case ev.VariantPinned(variant):
                self._learn(variant)
            case _:
                pass
        return []

    def _learn(self, *variants: Variant) -> None:
        for variant in variants:
            self.names[variant.variant_id] = variant.name

    def _written(self, event: ev.RowsWritten) -> list[Moved]:
        job = self.jobs.get(event.job_id)
        if job is None:
            return []
        if event.worker_id:
            self.proved.add(job.submitted.variant.variant_id)
        lease, hedged = self.leases.get(event.lease_id), bool(job.hedged)
        moved = [] if lease is None or lease.job_id != event.job_id else self._take_out(lease, event.spans)
        if span_count(moved[0].spans if moved else []) < span_count(event.spans) or hedged:
            for other in list(job.leases.values()):
                if other is not lease:
                    moved += self._take_out(other, event.spans)
        return moved

    def _lose(self, worker_id: str, at_s: float | None) -> list[Moved]:
        worker = self.workers.get(worker_id)
        if worker is None:
            return []
        worker.lost_at_s = at_s
        moved: list[Moved] = []
        for lease in list(worker.leases.values()):
            moved += self._take_out(lease, lease.open.spans())
        return moved

    def _leave(self, rows: Iterable[tuple[str, list[Span]]], worker_id: str) -> list[Moved]:
        moved: list[Moved] = []
        for lease_id, spans in rows:
            lease = self.leases.get(lease_id)
            if lease is not None and lease.worker_id == worker_id:
                moved += self._take_out(lease, spans)
        return moved

    def _take_out(self, lease: LeaseSeen, spans: Iterable[Span]) -> list[Moved]:
        """Rows leave a lease; it closes with the last."""
        found = IndexSet()
        for start, stop in spans:
            found.update(lease.open.within(start, stop))
        if not found:
            return []
        lease.open.discard(found)
        job = self.jobs[lease.job_id]
        twice = IndexSet()
        for start, stop in found:
            twice.update(job.hedged.within(start, stop))
        job.hedged.discard(twice)
        once = found.copy()
        once.discard(twice)
        job.leased.discard(once)
        if not lease.open:
            self._close(lease)
        return [Moved(lease, found.spans(), twice.spans())]

    def _close(self, lease: LeaseSeen) -> None:
        self.leases.pop(lease.lease_id, None)
        self.jobs[lease.job_id].leases.pop(lease.lease_id, None)
        if lease.worker_id in self.workers:
            self.workers[lease.worker_id].leases.pop(lease.lease_id, None)

    # --- what was decided

    def _grant(self, grant: do.GrantRows, at_s: float) -> LeaseSeen:
        lease = LeaseSeen(
            grant.lease_id,
            grant.job_id,
            grant.worker_id,
            grant.spans,
            IndexSet(grant.spans),
            at_s,
            grant.isolated,
            grant.why,
        )
        job, worker = self.jobs.get(grant.job_id), self.workers.get(grant.worker_id)
        if job is None or worker is None:
            return lease  # from before the log began
        for start, stop in grant.spans:
            for again in job.leased.within(start, stop):
                lease.hedge = True
                job.hedged.add(*again)
        job.leased.update(grant.spans)
        self.leases[lease.lease_id] = job.leases[lease.lease_id] = worker.leases[lease.lease_id] = lease
        return lease

    def _want(self, sent: do.SendWants) -> WantsChange:
        worker = self.workers.get(sent.worker_id)
        before = worker.wants if worker is not None else ()
        if worker is not None:
            worker.wants = sent.wants
        added = [want for want in sent.wants if want not in before]
        dropped = [want for want in before if want not in sent.wants]
        return WantsChange(sent.worker_id, added, dropped, sent.why)

    def _charge(self, record: do.RecordAttempts) -> list[Charge]:
        job = self.jobs.get(record.job_id)
        if job is None:
            return []
        charges: list[Charge] = []
        for index, attempts in record.attempts:
            back = attempts < job.attempts.get(index, 0)
            job.attempts[index] = attempts
            charges.append(Charge(record.job_id, index, attempts, back))
        return charges

    def _end(self, job_id: str, decision: do.EndJob, at_s: float) -> None:
        job = self.jobs.get(job_id)
        if job is None:
            return
        job.ended, job.ended_at_s = decision, at_s
        for lease in list(job.leases.values()):
            self._close(lease)
