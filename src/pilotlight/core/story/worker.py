"""The story of one worker, or of one device of it: joined, wanted, loaded, leased, died on, lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import span_count
from pilotlight.core.story.loads import change_text, charge_text, ended_text, fact_text, wants_text
from pilotlight.core.story.records import Line, Story
from pilotlight.core.story.scene import Moment, Moved, Scene, WantsChange
from pilotlight.core.story.words import because_text, bytes_text, count_text, duration_text, listed, rows_text

LEASES_MAX = 6
"""More leases of a lost worker are counted instead of named."""


@dataclass(slots=True)
class Tally:
    """What a worker did between two things worth a sentence."""

    from_s: float = -1.0
    to_s: float = 0.0
    leased: int = 0
    leases: list[str] = field(default_factory=list[str])
    answered: int = 0
    errors: int = 0
    returned: int = 0

    def text(self) -> str:
        """One sentence; empty where nothing was done."""
        parts: list[str] = []
        if self.leased:
            first, last, count = self.leases[0], self.leases[-1], len(self.leases)
            names = first if count == 1 else f"{count} leases ({first} to {last})"
            parts.append(f"was leased {count_text(self.leased, 'row')} in {names}")
        if self.answered:
            errors = f", {self.errors:,} of them with an error row" if self.errors else ""
            parts.append(f"answered {count_text(self.answered, 'row')}{errors}")
        if self.returned:
            parts.append(f"gave {count_text(self.returned, 'unstarted row')} back")
        if not parts:
            return ""
        within = f" within {duration_text(self.to_s - self.from_s)}" if self.to_s - self.from_s >= 0.1 else ""
        return listed(parts) + within


class WorkerTeller:
    """Tells of a worker; with `device_id`, only of what concerns that device."""

    def __init__(self, scene: Scene, worker_id: str, device_id: str = "") -> None:
        self._scene = scene
        self._worker_id = worker_id
        self._device_id = device_id
        self._lines: list[Line] = []
        self._tally = Tally()
        self._answered = 0
        self._deaths = 0
        self._loads = 0
        self._joined_at_s: float | None = None
        self._fate = ""

    def take(self, moment: Moment) -> None:
        """One more moment."""
        event = moment.step.event
        match event:
            case ev.WorkerJoined(worker_id=self._worker_id):
                self._joined(moment, event)
            case ev.WorkerLost(worker_id=self._worker_id):
                self._lost(moment, event.reason)
            case ev.WorkerLeaving(self._worker_id, reason):
                self._say(moment, f"drains ({reason}): it gets no new rows")
            case ev.ReplicaReported(self._worker_id, fact) if self._is_here(fact.device_id):
                if text := fact_text(self._scene, event, moment):
                    self._loads += fact.state.value == "live"
                    self._say(moment, text)
            case ev.CopyReported(self._worker_id, fact) if not self._device_id:
                self._say(moment, change_text(self._scene, event))
            case ev.CopyFailedAt(self._worker_id, variant_id, source) if source and not self._device_id:
                self._say(moment, f"could not fetch {self._scene.name_of(variant_id)} from {source}")
            case ev.ReplicaStopped(self._worker_id, device_id, variant_id) if self._is_here(device_id):
                self._say(moment, f"ended its replica of {self._scene.name_of(variant_id)} on {device_id}, as asked")
            case ev.LoadFailed(worker_id=self._worker_id) if self._is_here(event.device_id):
                what = "has no room now for" if event.crowded else "could not load"
                self._say(moment, f"{event.device_id} {what} {self._scene.name_of(event.variant_id)}: {event.reason}")
            case ev.ReplicaDied(worker_id=self._worker_id) if self._is_here(event.device_id):
                self._died(moment, event)
            case ev.RowsWritten(worker_id=self._worker_id) if self._is_here(event.device_id):
                count = span_count(event.spans)
                self._count(moment)
                self._answered += count
                self._tally.answered += count
                self._tally.errors += sum(map(len, event.errors.values()))
            case ev.RowsReturned(worker_id=self._worker_id) if not self._device_id:
                self._count(moment)
                self._tally.returned += sum(span_count(moved.spans) for moved in moment.moved)
            case _:
                pass
        self._decided(moment)

    def story(self) -> Story:
        """What there is to tell."""
        self._flush()
        name = f"{self._worker_id}/{self._device_id}" if self._device_id else self._worker_id
        lines = sorted(self._lines, key=lambda line: line.at_s)
        did = f"{count_text(self._answered, 'row')} answered, {count_text(self._loads, 'load')}"
        deaths = f", {count_text(self._deaths, 'replica')} died" if self._deaths else ""
        return Story(f"{name}: {did}{deaths}{self._fate or '; here when the log ends'}", lines)

    def _is_here(self, device_id: str) -> bool:
        return not self._device_id or device_id == self._device_id

    def _say(self, moment: Moment, text: str) -> None:
        self._flush()
        self._lines.append(Line(moment.step.at_s, text, moment.step.n))

    def _count(self, moment: Moment) -> None:
        if self._tally.from_s < 0:
            self._tally.from_s = moment.step.since_s or moment.step.at_s
        self._tally.to_s = moment.step.at_s

    def _flush(self) -> None:
        if text := self._tally.text():
            self._lines.append(Line(self._tally.from_s, text))
        self._tally = Tally()

    # --- what happened

    def _joined(self, moment: Moment, event: ev.WorkerJoined) -> None:
        again = "joined again" if self._joined_at_s is not None else "joined"
        if self._joined_at_s is None:
            self._joined_at_s = moment.step.at_s
        self._fate = ""
        devices = [f"{d.device_id} ({d.kind}, {bytes_text(d.memory_bytes)})" for d in event.devices]
        holding = [f"{self._scene.name_of(f.variant_id)} {f.state.value} on {f.device_id}" for f in event.inventory]
        holds = f"; it holds {listed(holding)} already" if holding else ""
        self._say(moment, f"{again} from {event.host} as process {event.pid} with {listed(devices)}{holds}")
        for text in () if self._device_id else event.about:
            self._say(moment, text)
        if moment.moved:
            self._say(moment, f"{_leases_text(moment.moved)} of its former connection: void")

    def _lost(self, moment: Moment, reason: str) -> None:
        since = moment.step.at_s - self._joined_at_s if self._joined_at_s is not None else 0.0
        if moment.left:
            self._say(moment, f"left ({reason})")
            self._fate = f"; left after {duration_text(since)}"
            return
        again = sum(d.again for d in moment.step.decisions if isinstance(d, do.Note))
        text = f"was lost ({reason})"
        if moment.moved:
            text += f": {_leases_text(moment.moved)} went back to the queue"
        runs = "runs" if again == 1 else "run"
        started = f"; {count_text(again, 'request')} had started and {runs} again elsewhere" if again else ""
        self._say(moment, text + started)
        self._fate = f"; lost after {duration_text(since)} ({reason})"

    def _died(self, moment: Moment, event: ev.ReplicaDied) -> None:
        self._deaths += 1
        name = self._scene.name_of(event.variant_id)
        held = f" with {_leases_text(moment.moved)}, of which about {event.started} had started" if moment.moved else ""
        self._say(moment, f"the replica of {name} on {event.device_id} {ended_text(event)} ({event.reason}){held}")
        for charge in moment.charges:
            self._say(moment, charge_text(charge, f"row {charge.index} of {charge.job_id}"))
        for decision in moment.step.decisions:
            match decision:
                case do.WriteFailure(job_id, index):
                    self._say(moment, f"row {index} of {job_id} had no attempt left and became an error row")
                case do.Note(text=text, rest_device=device_id) if device_id:
                    self._say(moment, text)
                case _:
                    pass

    # --- what was decided

    def _decided(self, moment: Moment) -> None:
        for change in moment.wants:
            if change.worker_id == self._worker_id:
                self._wanted(moment, change)
        for lease in moment.granted:
            if lease.worker_id != self._worker_id or self._device_id:
                continue
            if lease.isolated or lease.hedge:
                kind = "to run with nothing beside them" if lease.isolated else "which another worker has too"
                rows = f"{rows_text(lease.granted)} of {lease.job_id}"
                self._say(moment, f"was leased {rows} in {lease.lease_id}{because_text(lease.why or kind)}")
            else:
                self._count(moment)
                self._tally.leased += span_count(lease.granted)
                self._tally.leases.append(lease.lease_id)
        for decision in moment.step.decisions:
            if isinstance(decision, do.DropWorker) and decision.worker_id == self._worker_id:
                self._say(moment, f"its connection was closed: {decision.reason}")

    def _wanted(self, moment: Moment, change: WantsChange) -> None:
        texts: list[str] = []
        for verb, wants in (("hold", change.added), ("no longer to hold", change.dropped)):
            here = [want for want in wants if self._is_here(want[0])]
            if here:
                texts.append(f"{verb} {wants_text(self._scene, here)}")
        if texts:
            self._say(
                moment,
                f"was told {'to ' if texts[0].startswith('hold') else ''}{listed(texts)}{because_text(change.why)}",
            )


def _leases_text(moved: list[Moved]) -> str:
    if len(moved) > LEASES_MAX:
        rows = sum(span_count(each.spans) for each in moved)
        return f"{count_text(rows, 'row')} in {len(moved)} leases"
    return listed([f"{each.lease.lease_id} ({rows_text(each.spans)})" for each in moved])
