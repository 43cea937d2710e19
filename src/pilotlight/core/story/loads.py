"""How replicas and copies come and go, in words; used by the stories of workers and of contexts."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import span_count
from pilotlight.core.story.scene import Charge, Moment, Moved, Scene, Want
from pilotlight.core.story.words import be_text, because_text, bytes_text, duration_text, listed, rows_text
from pilotlight.core.transitions import Level, ReplicaState

_ORIGINS = {
    "cold": "from its files",
    "staged": "from the copy on disk",
    "parked": "from the copy in memory",
    "asleep": "by waking up",
}


def want_text(want: Want) -> str:
    """Where a variant is wanted."""
    device_id, _, level = want
    if level is Level.LIVE:
        return f"live on {device_id}"
    return "parked in memory" if level is Level.PARKED else "staged on disk"


def fact_text(scene: Scene, event: ev.ReplicaReported, moment: Moment) -> str:
    """A replica's change; empty for a report that only counts."""
    fact = event.fact
    name = scene.name_of(fact.variant_id)
    if not moment.changed:
        return ""
    if fact.state is ReplicaState.STARTING:
        return f"starts a replica of {name} on {fact.device_id}{because_text(moment.why)}"
    if fact.state is ReplicaState.ASLEEP:
        return f"the replica of {name} on {fact.device_id} fell asleep, holding {bytes_text(fact.memory_bytes)}"
    took = f" after {duration_text(fact.load_s)}" if fact.load_s else ""
    memory = f", holding {bytes_text(fact.memory_bytes)}" if fact.memory_bytes else ""
    return f"{name} is live on {fact.device_id}{took}, {origin_text(fact.origin)}{stages_text(fact.stages)}{memory}"


def origin_text(origin: str) -> str:
    """From where a replica was built."""
    return _ORIGINS.get(origin, f"from {origin}")


def stages_text(stages: dict[str, float]) -> str:
    """What a load was spent on, the longest first."""
    longest = sorted(stages.items(), key=lambda item: -item[1])
    told = [f"{stage.replace('_', ' ')} {duration_text(took_s)}" for stage, took_s in longest if took_s >= 0.001]
    return f" ({', '.join(told)})" if told else ""


def ended_text(event: ev.ReplicaDied) -> str:
    """How a replica ended that should not have."""
    return "hung and was ended" if event.kind == "timed_out" else "died"


def run_again(moment: Moment) -> bool:
    """Whether the rows of a replica that died run again like others."""
    return any(isinstance(decision, do.Note) and decision.again for decision in moment.step.decisions)


def suspects_text(moment: Moment, moved: Moved) -> str:
    """What a replica's death means for the rows that it held of one lease."""
    freed = moved.freed()
    if not freed:
        return f"another worker has {'it' if span_count(moved.spans) == 1 else 'them'} too"
    suspects = "a suspect now" if len(freed) == 1 else "suspects now"
    if run_again(moment):
        suspects = "back in the queue"
    if not moved.kept:
        return suspects
    return (
        f"{rows_text(freed)} {be_text(freed, 'is', 'are')} {suspects}; another worker has {rows_text(moved.kept)} too"
    )


def charge_text(charge: Charge, row: str) -> str:
    """An attempt that was charged, or given back."""
    if charge.back:
        return f"an attempt of {row} was given back: its device is to blame"
    return f"attempt {charge.attempts} was charged to {row}, which was alone in its replica"


def change_text(scene: Scene, event: ev.CopyReported) -> str:
    """A copy that was made, or is gone."""
    fact = event.fact
    where = "in memory" if fact.level is Level.PARKED else "on disk"
    name = scene.name_of(fact.variant_id)
    if not fact.bytes:
        return f"the copy of {name} {where} is gone"
    took = f" after {duration_text(fact.took_s)}" if fact.took_s else ""
    source = scene.sources.get((event.worker_id, fact.variant_id)) if fact.level is Level.STAGED else ""
    return f"a copy of {name} ({bytes_text(fact.bytes)}) is {where}{took}{f', from {source}' if source else ''}"


def wants_text(scene: Scene, wants: list[Want]) -> str:
    """`tiny live on cpu and small parked in memory`."""
    return listed([f"{scene.name_of(want[1])} {want_text(want)}" for want in wants])
