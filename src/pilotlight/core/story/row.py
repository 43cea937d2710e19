"""The story of one row: read, leased, returned, hedged, caught in deaths, suspected, charged, answered."""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import Span, span_count
from pilotlight.core.story.loads import ended_text, run_again
from pilotlight.core.story.records import Line, Story
from pilotlight.core.story.scene import LeaseSeen, Moment, Scene
from pilotlight.core.story.words import because_text, count_text, duration_text, range_text, rows_text


def holds(spans: Iterable[Span], index: int) -> bool:
    """Whether a row is in spans."""
    return any(start <= index < stop for start, stop in spans)


def _since_text(moment: Moment, then_s: float) -> str:
    """How long after `then_s` a row was written: a step may sum up what was written for a while."""
    return range_text((moment.step.since_s or moment.step.at_s) - then_s, moment.step.at_s - then_s)


class RowTeller:
    """Tells of row `index` of a job."""

    def __init__(self, scene: Scene, job_id: str, index: int) -> None:
        self._scene = scene
        self._job_id = job_id
        self._index = index
        self._lines: list[Line] = []
        self._read_at_s: float | None = None
        self._granted_at_s: dict[str, float] = {}
        self._failure: do.WriteFailure | None = None
        self._deaths = 0
        self._attempts = 0
        self._over = False
        self._fate = "it was not answered"

    def take(self, moment: Moment) -> None:
        """One more moment."""
        event = moment.step.event
        match event:
            case ev.JobSubmitted(job_id=self._job_id):
                self._submitted(moment, event)
            case ev.RowsRead(job_id=self._job_id) if event.start <= self._index < event.stop:
                self._read_at_s = moment.step.at_s
                others = count_text(event.stop - event.start, "row")
                self._say(moment, f"was read from the input, in a step of {others}")
            case ev.RowsWritten(job_id=self._job_id) if holds(event.spans, self._index):
                self._written(moment, event)
            case ev.RowsReturned() | ev.ReplicaDied() | ev.WorkerLost() | ev.WorkerJoined():
                for moved in moment.moved:
                    if moved.lease.job_id == self._job_id and holds(moved.spans, self._index):
                        self._left(moment, moved.lease)
            case _:
                pass
        self._decided(moment)

    def story(self) -> Story:
        """What there is to tell."""
        job = self._scene.jobs.get(self._job_id)
        name = f" ({job.submitted.name})" if job is not None and job.submitted.name else ""
        if not self._lines:
            return Story(f"row {self._index} of {self._job_id}{name}: the log says nothing of it")
        leases = count_text(len(self._granted_at_s), "lease")
        deaths = f", {count_text(self._deaths, 'death')} of a replica around it" if self._deaths else ""
        charged = f", {count_text(self._attempts, 'attempt')} charged" if self._attempts else ""
        return Story(f"row {self._index} of {self._job_id}{name}: {self._fate}; {leases}{deaths}{charged}", self._lines)

    def _say(self, moment: Moment, text: str) -> None:
        self._lines.append(Line(moment.step.at_s, text, moment.step.n))

    # --- what happened

    def _submitted(self, moment: Moment, event: ev.JobSubmitted) -> None:
        attempts = event.attempts.get(self._index)
        if holds(event.done, self._index):
            self._over, self._fate = True, "it was answered in an earlier run"
            self._say(moment, "was in the output already when the job began: an earlier run had answered it")
        elif attempts:
            self._attempts = attempts
            self._say(moment, f"began with {count_text(attempts, 'attempt')} charged in an earlier run")

    def _written(self, moment: Moment, event: ev.RowsWritten) -> None:
        self._over = True
        kind = next((kind for kind, indices in event.errors.items() if self._index in indices), "")
        if not event.worker_id:
            kind = kind or (self._failure.kind if self._failure else "")
            message = f": {self._failure.message}" if self._failure else ""
            self._say(moment, f"got the error row {kind}{message}" if kind else "was written by the manager")
            self._fate = f"it became an error row ({kind})" if kind else "it was written by the manager"
            return
        place = f"{event.worker_id}/{event.device_id}"
        what = f"got the error row {kind}" if kind else "was answered"
        others = [m.lease for m in moment.moved if m.lease.lease_id != event.lease_id and holds(m.spans, self._index)]
        held = next((m for m in moment.moved if m.lease.lease_id == event.lease_id), None)
        late = "" if held is not None and holds(held.spans, self._index) else ", though that lease was void by then"
        first = "".join(f"; {lease.worker_id} had it too, in {lease.lease_id}, and was slower" for lease in others)
        granted_at_s = self._granted_at_s.get(event.lease_id)
        since = f", {_since_text(moment, granted_at_s)} after it was leased" if granted_at_s is not None else ""
        lease = f" in {event.lease_id}" if event.lease_id else ""
        self._say(moment, f"{what} by {place}{lease}{since}{late}{first}")
        fate = f"it became an error row ({kind})" if kind else "it was answered"
        took = f" {_since_text(moment, self._read_at_s)} after it was read" if self._read_at_s is not None else ""
        self._fate = f"{fate} by {place}{took}"

    def _left(self, moment: Moment, lease: LeaseSeen) -> None:
        event = moment.step.event
        others = [other for other in self._others(lease) if other not in moment.granted]
        kept = [other for other in others if holds(other.open.spans(), self._index)]
        after = "it went back to the queue"
        if kept:
            after = f"it stayed with {kept[0].worker_id} in {kept[0].lease_id}"
        elif lease.isolated:
            after = "it stays a suspect, to run apart from others again"
        match event:
            case ev.RowsReturned(worker_id):
                asked = ""
                if lease.asked is not None:
                    asked = f", asked for unstarted rows {duration_text(moment.step.at_s - lease.asked[0])} before"
                    asked += because_text(lease.asked[2])
                self._say(moment, f"was given back unstarted by {worker_id} from {lease.lease_id}{asked}: {after}")
            case ev.WorkerLost(worker_id, reason):
                self._say(moment, f"{worker_id} was lost ({reason}) with {lease.lease_id}: {after}")
            case ev.WorkerJoined(worker_id):
                self._say(moment, f"{worker_id} joined anew, so {lease.lease_id} was void: {after}")
            case ev.ReplicaDied():
                self._died(moment, event, kept)
            case _:
                pass

    def _others(self, lease: LeaseSeen) -> list[LeaseSeen]:
        job = self._scene.jobs.get(self._job_id)
        return [other for other in job.leases.values() if other is not lease] if job is not None else []

    def _died(self, moment: Moment, event: ev.ReplicaDied, kept: list[LeaseSeen]) -> None:
        self._deaths += 1
        total = sum(len(moved.freed()) for moved in moment.moved)
        place = f"{event.worker_id}/{event.device_id}"
        text = f"the replica on {place} {ended_text(event)} with it ({event.reason})"
        mine = [c for c in moment.charges if (c.job_id, c.index) == (self._job_id, self._index)]
        charged = [charge.attempts for charge in mine if not charge.back]
        if charged:
            self._attempts = charged[-1]
            text += f": attempt {charged[-1]} of {self._attempts_max()} charged, because it was alone in its replica"
        elif kept:
            text += f": {kept[0].worker_id} has it too, in {kept[0].lease_id}"
        elif total > 1:
            after = "run again like others" if run_again(moment) else "are suspects now, and run again in halves, apart"
            text += f" and {count_text(total - 1, 'other row')}: all {after}"
        else:
            text += f": no attempt charged, because {self._excuse(event)}"
        self._say(moment, text)
        for decision in moment.step.decisions:
            if isinstance(decision, do.Note) and decision.rest_device:
                self._say(moment, decision.text)

    def _excuse(self, event: ev.ReplicaDied) -> str:
        """Why a row that was alone is not to blame."""
        if event.kind == "out_of_memory" and event.variant_id in self._scene.proved:
            return "a larger device may have room for it"
        return "nothing yet shows that this context works there"

    def _attempts_max(self) -> int:
        job = self._scene.jobs.get(self._job_id)
        return job.submitted.attempts_max if job is not None else 0

    # --- what was decided

    def _decided(self, moment: Moment) -> None:
        for charge in moment.charges:
            if charge.back and (charge.job_id, charge.index) == (self._job_id, self._index):
                self._attempts = charge.attempts
                self._say(moment, "an attempt was given back: the device is to blame")
        for lease in moment.granted:
            if lease.job_id == self._job_id and holds(lease.granted, self._index):
                self._leased(moment, lease)
        for decision in moment.step.decisions:
            match decision:
                case do.WriteFailure(self._job_id, self._index):
                    self._failure = decision
                    self._say(moment, "had no attempt left: its error row was written")
                case do.EndJob(self._job_id, state, _, message) if self._lines and not self._over:
                    self._say(moment, f"the job ended {state.value}{because_text(message)} before it was answered")
                case _:
                    pass

    def _leased(self, moment: Moment, lease: LeaseSeen) -> None:
        again = "again " if self._granted_at_s else ""
        self._granted_at_s[lease.lease_id] = lease.granted_at_s
        count = span_count(lease.granted)
        if lease.isolated:
            how = "alone" if count == 1 else f"with {count_text(count - 1, 'other suspect')}"
            text = f"was leased {again}to {lease.worker_id} in {lease.lease_id}, to run {how}"
        elif lease.hedge:
            silent = [other for other in self._others(lease) if holds(other.open.spans(), self._index)]
            beside = f" beside {silent[0].worker_id}'s {silent[0].lease_id}" if silent else ""
            text = f"was leased a second time, to {lease.worker_id} in {lease.lease_id}{beside}"
        else:
            of = f", one of {rows_text(lease.granted)}" if count > 1 else ""
            text = f"was leased {again}to {lease.worker_id} in {lease.lease_id}{of}"
        self._say(moment, text + because_text(lease.why))
