"""The story of one job: handed in, read, first and last answers, what its rows lived through, its end."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import span_count
from pilotlight.core.story.loads import charge_text, ended_text, suspects_text
from pilotlight.core.story.records import Line, Story
from pilotlight.core.story.scene import LeaseSeen, Moment, Moved, Scene
from pilotlight.core.story.words import be_text, because_text, count_text, duration_text, listed, rows_text
from pilotlight.core.transitions import JobState

BRIEF_S = 0.1
"""What took less took no time worth telling."""


class JobTeller:
    """Tells of one job."""

    def __init__(self, scene: Scene, job_id: str) -> None:
        self._scene = scene
        self._job_id = job_id
        self._lines: list[Line] = []
        self._began_s = 0.0
        self._done = 0
        self._errors: dict[str, int] = {}
        self._leases = 0
        self._hedges = 0
        self._taken: dict[tuple[str, str], int] = {}
        self._fresh = 0
        self._fresh_from_s = 0.0
        self._fresh_to_s = 0.0
        self._by_worker: dict[str, int] = {}
        self._fate = "it runs when the log ends"

    def take(self, moment: Moment) -> None:
        """One more moment."""
        event = moment.step.event
        match event:
            case ev.JobSubmitted(job_id=self._job_id):
                self._submitted(moment, event)
            case ev.RowsRead(self._job_id, _, stop, exhausted) if exhausted:
                self._say(moment, f"the whole input is read: {count_text(stop, 'row')}")
            case ev.RowsWritten(job_id=self._job_id):
                self._written(moment, event)
            case ev.WorkerLost(worker_id, reason):
                if rows := self._rows(moment):
                    self._say(moment, f"{worker_id} was lost ({reason}): {rows} went back to the queue")
            case ev.WorkerJoined(worker_id):
                if rows := self._rows(moment):
                    self._say(moment, f"{worker_id} joined anew: {rows} went back to the queue")
            case ev.ReplicaDied():
                self._died(moment, event)
            case ev.RowsReturned(worker_id):
                for moved in moment.moved:
                    if moved.lease.job_id == self._job_id:
                        key = (worker_id, moved.lease.asked[2] if moved.lease.asked is not None else "")
                        self._taken[key] = self._taken.get(key, 0) + span_count(moved.spans)
            case ev.JobCancelled(self._job_id, drain):
                self._say(
                    moment, "was asked to stop" + (" once replicas finish what they hold" if drain else " at once")
                )
            case ev.JobBroken(self._job_id, _, kind, reason):
                self._say(moment, f"could not go on ({kind}): {reason}")
            case _:
                pass
        self._decided(moment)

    def story(self) -> Story:
        """What there is to tell."""
        self._flush()
        if self._taken:
            for (worker_id, why), rows in self._taken.items():
                text = f"in all, {worker_id} gave {count_text(rows, 'unstarted row')} back{because_text(why)}"
                self._lines.append(Line(self._fresh_to_s, text))
        job = self._scene.jobs.get(self._job_id)
        name = f" ({job.submitted.name})" if job is not None and job.submitted.name else ""
        errors = listed([f"{count:,} {kind}" for kind, count in self._errors.items()])
        errors = f", error rows: {errors}" if errors else ""
        hedges = f", {self._hedges:,} of them to repeat silent rows" if self._hedges else ""
        did = f"{count_text(self._done, 'row')} written in {count_text(self._leases, 'lease')}{hedges}{errors}"
        return Story(f"{self._job_id}{name}: {did}; {self._fate}", sorted(self._lines, key=lambda line: line.at_s))

    def _say(self, moment: Moment, text: str) -> None:
        self._flush()
        self._lines.append(Line(moment.step.at_s, text, moment.step.n))

    def _flush(self) -> None:
        """Results come in many small steps; they are told as one."""
        if self._fresh:
            took_s = self._fresh_to_s - self._fresh_from_s
            within = f" within {duration_text(took_s)}" if took_s >= BRIEF_S else ""
            by = [f"{worker_id} {rows:,}" for worker_id, rows in self._by_worker.items() if worker_id]
            text = f"{count_text(self._fresh, 'row')} answered{within} (by {listed(by)})"
            self._lines.append(Line(self._fresh_from_s, text))
            self._fresh = 0
            self._by_worker = {}

    def _rows(self, moment: Moment) -> str:
        spans = [span for moved in moment.moved if moved.lease.job_id == self._job_id for span in moved.spans]
        return rows_text(spans) if spans else ""

    def _moved(self, moment: Moment) -> list[Moved]:
        """What left leases of this job, as if it had been one lease."""
        moved = [moved for moved in moment.moved if moved.lease.job_id == self._job_id]
        spans = [span for each in moved for span in each.spans]
        return [Moved(moved[0].lease, spans, [span for each in moved for span in each.kept])] if moved else []

    # --- what happened

    def _submitted(self, moment: Moment, event: ev.JobSubmitted) -> None:
        self._began_s = moment.step.at_s
        name = event.variant.name
        resumed = (
            f"; {count_text(span_count(event.done), 'row')} of an earlier run are in the output" if event.done else ""
        )
        weight = f", weight {event.weight:g}" if event.weight != 1 else ""
        self._say(moment, f"was handed in, for {name} ({event.variant.variant_id}){weight}{resumed}")

    def _written(self, moment: Moment, event: ev.RowsWritten) -> None:
        count = span_count(event.spans)
        first = not self._done
        self._done += count
        told = event.errors if event.worker_id else {}  # those of the manager are counted as they are decided
        for kind, indices in told.items():
            self._errors[kind] = self._errors.get(kind, 0) + len(indices)
        if first:
            took = duration_text((moment.step.since_s or moment.step.at_s) - self._began_s)
            self._say(moment, f"the first rows are in the output, {took} after it was handed in")
        if not self._fresh:
            self._fresh_from_s = moment.step.since_s or moment.step.at_s
        self._fresh += count
        self._fresh_to_s = moment.step.at_s
        self._by_worker[event.worker_id] = self._by_worker.get(event.worker_id, 0) + count

    def _died(self, moment: Moment, event: ev.ReplicaDied) -> None:
        for moved in self._moved(moment):
            place = f"{event.worker_id}/{event.device_id}"
            ended = f"{ended_text(event)} ({event.reason})"
            rows = rows_text(moved.spans)
            self._say(moment, f"the replica on {place} {ended} with {rows}: {suspects_text(moment, moved)}")

    # --- what was decided

    def _decided(self, moment: Moment) -> None:
        for charge in moment.charges:
            if charge.job_id == self._job_id:
                self._say(moment, charge_text(charge, f"row {charge.index}"))
        for lease in moment.granted:
            if lease.job_id == self._job_id:
                self._leased(moment, lease)
        for decision in moment.step.decisions:
            match decision:
                case do.WriteFailure(self._job_id, index, kind, message):
                    self._errors[kind] = self._errors.get(kind, 0) + 1
                    self._say(moment, f"row {index} became an error row ({kind}): {message}")
                case do.EndJob(self._job_id, state, _, message):
                    self._ended(moment, state, message)
                case _:
                    pass

    def _leased(self, moment: Moment, lease: LeaseSeen) -> None:
        self._leases += 1
        where = f"{lease.worker_id} in {lease.lease_id}"
        if lease.hedge:
            self._hedges += 1
            rows = rows_text(lease.granted)
            self._say(
                moment, f"{rows} {be_text(lease.granted)} leased a second time, to {where}{because_text(lease.why)}"
            )
        elif lease.isolated:
            rows = rows_text(lease.granted)
            self._say(moment, f"{rows} went to {where}{because_text(lease.why or 'to run apart from others')}")

    def _ended(self, moment: Moment, state: JobState, message: str) -> None:
        took = duration_text(moment.step.at_s - self._began_s)
        self._fate = f"{state.value} after {took}{because_text(message)}"
        self._say(moment, f"ended: {self._fate}")
