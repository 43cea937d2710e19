"""The story of one context: which jobs needed it, where it was wanted, loaded, copied, asleep, lost, and why."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import span_count
from pilotlight.core.story.loads import change_text, ended_text, fact_text, wants_text
from pilotlight.core.story.records import Line, Story
from pilotlight.core.story.scene import Moment, Scene
from pilotlight.core.story.words import because_text, count_text, duration_text
from pilotlight.core.transitions import ReplicaState


class ContextTeller:
    """Tells of one variant of a context."""

    def __init__(self, scene: Scene, variant_id: str) -> None:
        self._scene = scene
        self._variant_id = variant_id
        self._lines: list[Line] = []
        self._loads_s: list[float] = []
        self._answered: dict[str, int] = {}
        self._rows = 0
        self._deaths = 0

    def take(self, moment: Moment) -> None:
        """One more moment."""
        event = moment.step.event
        match event:
            case ev.JobSubmitted() if event.variant.variant_id == self._variant_id:
                self._say(moment, f"{event.job_id} ({event.name}) needs it")
            case ev.VariantPinned(variant, on) if variant.variant_id == self._variant_id:
                self._say(moment, "was pinned: it is kept live where there is room" if on else "is no longer pinned")
            case ev.VariantEvicted(self._variant_id):
                self._say(moment, "was evicted: it leaves all devices and memories")
            case ev.ReplicaReported(worker_id, fact) if fact.variant_id == self._variant_id:
                if text := fact_text(self._scene, event, moment):
                    self._say(moment, f"{worker_id}: {text}")
                    if fact.state is ReplicaState.LIVE:
                        self._loads_s.append(fact.load_s)
            case ev.CopyReported(worker_id, fact) if fact.variant_id == self._variant_id:
                self._say(moment, f"{worker_id}: {change_text(self._scene, event)}")
            case ev.ReplicaStopped(worker_id, device_id, self._variant_id):
                self._say(moment, f"{worker_id}: its replica on {device_id} ended as asked")
            case ev.ReplicaDied(worker_id, device_id, self._variant_id):
                self._deaths += 1
                rows = sum(span_count(moved.spans) for moved in moment.moved)
                held = f" with {count_text(rows, 'row')}" if rows else ""
                self._say(moment, f"{worker_id}: its replica on {device_id} {ended_text(event)}{held} ({event.reason})")
            case ev.LoadFailed(worker_id, device_id, self._variant_id):
                what = "there is no room for it now" if event.crowded else "it could not be loaded"
                again = " and will not be tried there again" if event.permanent and not event.crowded else ""
                self._say(moment, f"{worker_id}: {what} on {device_id}{again}: {event.reason}")
            case ev.WorkerLost(worker_id, reason):
                self._lost(moment, worker_id, reason)
            case ev.RowsWritten(job_id=job_id) if self._is_of(job_id):
                self._written(event)
            case _:
                pass
        self._decided(moment)

    def story(self) -> Story:
        """What there is to tell."""
        self._flush()
        loads = count_text(len(self._loads_s), "load")
        mean = f" of {duration_text(sum(self._loads_s) / len(self._loads_s))} on average" if self._loads_s else ""
        deaths = f", {count_text(self._deaths, 'replica')} died" if self._deaths else ""
        title = f"{self._scene.name_of(self._variant_id)} ({self._variant_id})"
        rows = count_text(self._rows, "row")
        return Story(
            f"{title}: {loads}{mean}, {rows} answered{deaths}", sorted(self._lines, key=lambda line: line.at_s)
        )

    def _say(self, moment: Moment, text: str) -> None:
        self._flush()
        self._lines.append(Line(moment.step.at_s, text, moment.step.n))

    def _is_of(self, job_id: str) -> bool:
        job = self._scene.jobs.get(job_id)
        return job is not None and job.submitted.variant.variant_id == self._variant_id

    def _written(self, event: ev.RowsWritten) -> None:
        rows = span_count(event.spans)
        self._rows += rows
        place = f"{event.worker_id}/{event.device_id}" if event.worker_id else "the manager"
        self._answered[place] = self._answered.get(place, 0) + rows

    def _flush(self) -> None:
        """Results come in many small steps; they are told as one, after what came before them."""
        if self._answered and self._lines:
            told = [f"{count_text(rows, 'row')} by {place}" for place, rows in self._answered.items()]
            self._lines.append(Line(self._lines[-1].at_s, f"then answered {', '.join(told)}"))
        self._answered = {}

    def _lost(self, moment: Moment, worker_id: str, reason: str) -> None:
        lost = [key for key in moment.residents_lost if key[1] == self._variant_id]
        if lost:
            where = ", ".join(device_id for device_id, _ in lost)
            self._say(moment, f"{worker_id} was lost ({reason}), and with it the replica on {where}")

    def _decided(self, moment: Moment) -> None:
        for change in moment.wants:
            added = [want for want in change.added if want[1] == self._variant_id]
            dropped = [want for want in change.dropped if want[1] == self._variant_id]
            if added:
                text = f"{change.worker_id} was told to hold {wants_text(self._scene, added)}"
                self._say(moment, text + because_text(change.why))
            if dropped:
                text = f"{change.worker_id} was told no longer to hold {wants_text(self._scene, dropped)}"
                self._say(moment, text + because_text(change.why))
        for decision in moment.step.decisions:
            if isinstance(decision, do.EndJob) and self._is_of(decision.job_id):
                self._say(moment, f"{decision.job_id} ended ({decision.state.value})")
