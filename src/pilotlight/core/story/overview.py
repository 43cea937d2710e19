"""A whole run in a few sections: jobs, workers, contexts, what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import span_count
from pilotlight.core.story.loads import origin_text, stages_text
from pilotlight.core.story.records import Line, Story
from pilotlight.core.story.scene import Moment, Scene
from pilotlight.core.story.words import because_text, bytes_text, count_text, duration_text, listed
from pilotlight.core.transitions import ReplicaState

WARNINGS_MAX = 30
"""The first ones are told; a run with more has said enough by then."""


@dataclass(slots=True)
class _Job:
    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict[str, int])
    leases: int = 0
    hedges: int = 0
    isolations: int = 0
    attempts: int = 0
    returned: int = 0
    bereft: int = 0
    """Rows that were leased to a worker when it was lost."""


@dataclass(slots=True)
class _Worker:
    joined_at_s: float
    joins: int = 0
    rows: int = 0
    deaths: int = 0
    fate: str = ""


@dataclass(slots=True)
class _Loads:
    """Loads of one variant from one kind of place."""

    took_s: list[float] = field(default_factory=list[float])
    stages: dict[str, float] = field(default_factory=dict[str, float])


class Overview:
    """Tells of everything, briefly."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._jobs: dict[str, _Job] = {}
        self._workers: dict[str, _Worker] = {}
        self._loads: dict[tuple[str, str], _Loads] = {}
        self._copies: dict[tuple[str, str], list[ev.CopyFact]] = {}
        self._troubles: list[Line] = []
        self._more_troubles = 0

    def take(self, moment: Moment) -> None:
        """One more moment."""
        self._happened(moment)
        for lease in moment.granted:
            job = self._job(lease.job_id)
            job.leases += 1
            job.hedges += lease.hedge
            job.isolations += lease.isolated
        for charge in moment.charges:
            self._job(charge.job_id).attempts += -1 if charge.back else 1
        for decision in moment.step.decisions:
            match decision:
                case do.WriteFailure(job_id, _, kind):
                    errors = self._job(job_id).errors
                    errors[kind] = errors.get(kind, 0) + 1
                case do.Note("warning" | "error", text):
                    self.trouble(Line(moment.step.at_s, text, moment.step.n))
                case _:
                    pass

    def trouble(self, line: Line) -> None:
        """Something that went wrong."""
        if len(self._troubles) < WARNINGS_MAX:
            self._troubles.append(line)
        else:
            self._more_troubles += 1

    def stories(self) -> list[Story]:
        """One for each kind of thing."""
        told = [
            Story("jobs", [self._job_line(job_id) for job_id in self._scene.jobs]),
            Story("workers", [self._worker_line(worker_id) for worker_id in self._workers]),
            Story("contexts", [self._context_line(variant_id) for variant_id in self._scene.names]),
        ]
        if self._troubles:
            more = [Line(self._troubles[-1].at_s, f"and {self._more_troubles:,} more")] if self._more_troubles else []
            told.append(Story("what went wrong", self._troubles + more))
        return told

    def _job(self, job_id: str) -> _Job:
        return self._jobs.setdefault(job_id, _Job())

    # --- what happened

    def _happened(self, moment: Moment) -> None:
        event = moment.step.event
        match event:
            case ev.WorkerJoined(worker_id):
                worker = self._workers.setdefault(worker_id, _Worker(moment.step.at_s))
                worker.joins += 1
                worker.fate = ""
                self._bereave(moment)
            case ev.WorkerLost(worker_id, reason) if worker_id in self._workers:
                worker = self._workers[worker_id]
                after = duration_text(moment.step.at_s - worker.joined_at_s)
                worker.fate = f"{'left' if moment.left else 'lost'} after {after} ({reason})"
                self._bereave(moment)
            case ev.ReplicaDied(worker_id) if worker_id in self._workers:
                self._workers[worker_id].deaths += 1
            case ev.RowsWritten():
                rows, job = span_count(event.spans), self._job(event.job_id)
                job.rows += rows
                for kind, indices in event.errors.items():
                    if event.worker_id:  # those of the manager are counted when it decides to write them
                        job.errors[kind] = job.errors.get(kind, 0) + len(indices)
                if event.worker_id in self._workers:
                    self._workers[event.worker_id].rows += rows
            case ev.RowsReturned():
                for moved in moment.moved:
                    self._job(moved.lease.job_id).returned += span_count(moved.spans)
            case ev.ReplicaReported(_, fact) if moment.changed and fact.state is ReplicaState.LIVE:
                loads = self._loads.setdefault((fact.variant_id, fact.origin), _Loads())
                loads.took_s.append(fact.load_s)
                for stage, took_s in fact.stages.items():
                    loads.stages[stage] = loads.stages.get(stage, 0.0) + took_s
            case ev.CopyReported(_, fact) if fact.bytes:
                self._copies.setdefault((fact.variant_id, fact.level.value), []).append(fact)
            case _:
                pass

    def _bereave(self, moment: Moment) -> None:
        for moved in moment.moved:
            self._job(moved.lease.job_id).bereft += span_count(moved.spans)

    # --- lines

    def _job_line(self, job_id: str) -> Line:
        seen, counts = self._scene.jobs[job_id], self._job(job_id)
        state = "running when the log ends"
        if seen.ended is not None:
            took = duration_text(seen.ended_at_s - seen.at_s)
            state = f"{seen.ended.state.value} after {took}{because_text(seen.ended.message)}"
        name = f" ({seen.submitted.name})" if seen.submitted.name else ""
        text = f"{job_id}{name} on {seen.submitted.variant.name}: {state}; {count_text(counts.rows, 'row')} written"
        text += f" in {count_text(counts.leases, 'lease')}"
        extra = [
            count_text(counts.bereft, "row") + " back in the queue from lost workers" if counts.bereft else "",
            count_text(counts.returned, "row") + " taken back unstarted" if counts.returned else "",
            count_text(counts.hedges, "lease") + " to repeat silent rows" if counts.hedges else "",
            count_text(counts.isolations, "lease") + " to run suspects apart" if counts.isolations else "",
            count_text(counts.attempts, "attempt") + " charged" if counts.attempts else "",
            "error rows: " + listed([f"{count:,} {kind}" for kind, count in counts.errors.items()])
            if counts.errors
            else "",
        ]
        return Line(seen.at_s, "; ".join([text, *filter(None, extra)]))

    def _worker_line(self, worker_id: str) -> Line:
        counts, seen = self._workers[worker_id], self._scene.workers[worker_id]
        kinds = [f"{d.device_id} ({d.kind})" if d.kind != d.device_id else d.kind for d in seen.joined.devices]
        again = f", {counts.joins} times" if counts.joins > 1 else ""
        deaths = f"; {count_text(counts.deaths, 'replica')} died" if counts.deaths else ""
        fate = counts.fate or "here when the log ends"
        text = (
            f"{worker_id} joined{again} with {listed(kinds)}; {count_text(counts.rows, 'row')} answered{deaths}; {fate}"
        )
        return Line(counts.joined_at_s, text)

    def _context_line(self, variant_id: str) -> Line:
        jobs = [job for job in self._scene.jobs.values() if job.submitted.variant.variant_id == variant_id]
        parts: list[str] = []
        for (variant, level), copies in self._copies.items():
            if variant == variant_id:
                took_s = sum(copy.took_s for copy in copies) / len(copies)
                where = f"{level} {bytes_text(copies[-1].bytes)}, {len(copies)} x"
                parts.append(f"{where}{f', {duration_text(took_s)} on average' if took_s else ''}")
        for (variant, origin), loads in self._loads.items():
            if variant == variant_id:
                count = len(loads.took_s)
                mean = duration_text(sum(loads.took_s) / count)
                stages = stages_text({stage: took_s / count for stage, took_s in loads.stages.items()})
                parts.append(f"{count_text(count, 'load')} {origin_text(origin)}, {mean} on average{stages}")
        text = "; ".join(parts) or "never loaded"
        began_s = min((job.at_s for job in jobs), default=0.0)
        return Line(began_s, f"{self._scene.name_of(variant_id)} ({variant_id}): {text}")
