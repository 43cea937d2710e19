"""The story of one lease: granted, answered, asked back, caught in deaths, void, closed."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import IndexSet, Span, span_count
from pilotlight.core.story.loads import ended_text, suspects_text
from pilotlight.core.story.records import Line, Story
from pilotlight.core.story.scene import LeaseSeen, Moment, Moved, Scene
from pilotlight.core.story.words import be_text, because_text, count_text, duration_text, rows_text


class LeaseTeller:
    """Tells of one lease."""

    def __init__(self, scene: Scene, lease_id: str) -> None:
        self._scene = scene
        self._lease_id = lease_id
        self._lease: LeaseSeen | None = None
        self._lines: list[Line] = []
        self._answered = 0
        self._fresh: list[Span] = []
        self._fresh_from_s = 0.0
        self._last_at_s = 0.0
        self._fate = "open when the log ends"

    def take(self, moment: Moment) -> None:
        """One more moment."""
        for moved in moment.moved:
            if moved.lease.lease_id == self._lease_id:
                self._left(moment, moved)
        for lease in moment.granted:
            if lease.lease_id == self._lease_id:
                self._granted(moment, lease)
        for decision in moment.step.decisions:
            match decision:
                case do.RevokeRows(worker_id, self._lease_id, rows, why):
                    self._tell_answers()
                    most = "all unstarted rows" if rows is None else f"up to {count_text(rows, 'unstarted row')}"
                    self._say(moment, f"{worker_id} was asked to give {most} back{because_text(why)}")
                case do.EndJob(job_id, state) if self._lease is not None and job_id == self._lease.job_id:
                    if self._lease.open:
                        self._over(moment, f"the job ended {state.value} with {rows_text(self._lease.open)} open")
                case _:
                    pass

    def story(self) -> Story:
        """What there is to tell."""
        self._tell_answers()
        if self._lease is None:
            return Story(f"{self._lease_id}: granted before this log begins", self._lines)
        rows = count_text(span_count(self._lease.granted), "row")
        whose = f"{rows} of {self._lease.job_id} for {self._lease.worker_id}"
        return Story(f"{self._lease_id}: {whose}, {self._answered:,} answered; {self._fate}", self._lines)

    def _say(self, moment: Moment, text: str) -> None:
        self._lines.append(Line(moment.step.at_s, text, moment.step.n))

    def _over(self, moment: Moment, text: str) -> None:
        self._tell_answers()
        self._say(moment, text)
        self._fate = text

    def _granted(self, moment: Moment, lease: LeaseSeen) -> None:
        self._lease = lease
        kind = "to run apart from others" if lease.isolated else ""
        kind = "which another worker has too" if lease.hedge else kind
        text = f"{rows_text(lease.granted)} of {lease.job_id} {be_text(lease.granted)} leased to {lease.worker_id}"
        self._say(moment, text + because_text(lease.why or kind))

    def _left(self, moment: Moment, moved: Moved) -> None:
        event, spans = moment.step.event, moved.spans
        rows = rows_text(spans)
        match event:
            case ev.RowsWritten():
                self._wrote(moment, event, spans)
            case ev.RowsReturned(worker_id):
                self._tell_answers()
                self._say(moment, f"{worker_id} gave back {rows}, which had not started")
            case ev.ReplicaDied(reason=reason):
                self._tell_answers()
                self._say(
                    moment,
                    f"the replica that had {rows} {ended_text(event)} ({reason}): {suspects_text(moment, moved)}",
                )
            case ev.WorkerLost(worker_id, reason):
                self._over(moment, f"{worker_id} was lost ({reason}): {rows} {self._whither(spans)}")
            case ev.WorkerJoined(worker_id):
                self._over(moment, f"{worker_id} joined anew: {rows} {self._whither(spans)}")
            case _:
                pass
        if self._lease is not None and not self._lease.open and isinstance(event, ev.RowsWritten | ev.RowsReturned):
            took = duration_text(moment.step.at_s - self._lease.granted_at_s)
            self._over(moment, f"closed after {took}: every row came back")

    def _whither(self, spans: list[Span]) -> str:
        if self._lease is not None and self._lease.isolated:
            return be_text(spans, "stays a suspect", "stay suspects")
        return "went back to the queue"

    def _wrote(self, moment: Moment, event: ev.RowsWritten, spans: list[Span]) -> None:
        if event.lease_id != self._lease_id:
            self._tell_answers()
            self._say(moment, f"{rows_text(spans)} came from {event.worker_id or 'the manager'} first")
            return
        if not self._fresh:
            self._fresh_from_s = moment.step.since_s or moment.step.at_s
        self._fresh += spans
        self._last_at_s = moment.step.at_s
        self._answered += span_count(spans)

    def _tell_answers(self) -> None:
        """Results come in many small steps; they are told as one."""
        if not self._fresh or self._lease is None:
            return
        since = duration_text(self._last_at_s - self._lease.granted_at_s)
        rows = IndexSet(self._fresh)
        text = f"{rows_text(rows)} {be_text(rows)} answered, the last {since} after the grant"
        self._lines.append(Line(self._last_at_s, text))
        self._fresh = []
