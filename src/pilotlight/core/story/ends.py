"""How workers ended, told where they were lost: a connection breaks a moment before or after its process is gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.story.records import Record, Step

LATE_S_MAX = 2.0
"""How long after its connection a process may be seen to have ended for the one to be why the other broke."""


def with_ends(records: Iterable[Record]) -> Iterator[Record]:
    """The same records; a worker that was lost is lost for how its process ended, unless we closed its connection."""
    ends: dict[str, str] = {}
    dropped: set[str] = set()
    held: deque[Record] = deque()
    for record in records:
        if isinstance(record, Step):
            _note(record, ends, dropped)
        held.append(record)
        while held and (record.at_s - held[0].at_s > LATE_S_MAX or not _waits(held[0], ends, dropped)):
            yield _mended(held.popleft(), ends, dropped)
    yield from (_mended(record, ends, dropped) for record in held)


def _note(step: Step, ends: dict[str, str], dropped: set[str]) -> None:
    match step.event:
        case ev.PilotEnded(worker_id, how):
            ends[worker_id] = how
        case ev.WorkerJoined(worker_id):
            dropped.discard(worker_id)
        case _:
            pass
    dropped.update(decision.worker_id for decision in step.decisions if isinstance(decision, do.DropWorker))


def _waits(record: Record, ends: dict[str, str], dropped: set[str]) -> bool:
    if not isinstance(record, Step) or not isinstance(record.event, ev.WorkerLost):
        return False
    return record.event.worker_id not in ends and record.event.worker_id not in dropped


def _mended(record: Record, ends: dict[str, str], dropped: set[str]) -> Record:
    if not isinstance(record, Step) or not isinstance(record.event, ev.WorkerLost):
        return record
    lost = record.event
    how = ends.get(lost.worker_id)
    if how is None or lost.worker_id in dropped:
        return record
    decisions = [
        replace(decision, text=decision.text.replace(f"({lost.reason})", f"({how})"))
        if isinstance(decision, do.Note)
        else decision
        for decision in record.decisions
    ]
    return replace(record, event=ev.WorkerLost(lost.worker_id, how), decisions=tuple(decisions))
