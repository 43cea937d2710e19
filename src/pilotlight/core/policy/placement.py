"""Which variants each device should hold live.

Work goes where contexts are: what a device holds and a job needs stays. Other variants that jobs need are added while
memory lasts. Where they do not fit, a device changes over when it has served its present ones for a slice of time that
makes the loads cheap beside the work. Idle variants stay as long as nothing needs their room (`retention`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core.model import DeviceBelief, VariantId
from pilotlight.core.policy.retention import fill, retained
from pilotlight.core.state import State
from pilotlight.core.transitions import ReplicaState

LOAD_TRIES_MAX = 2
SLICE_LOADS = 10.0
"""A device serves what it holds for at least this many load times before it changes over."""
SLICE_S_MIN = 5.0


@dataclass(frozen=True, slots=True)
class Placement:
    """What a device should hold, most wanted first, and whether it changed over to serve another job."""

    wants: tuple[VariantId, ...]
    rotated: bool


def place(state: State, belief: DeviceBelief, now: float, keep_alive_s: float) -> Placement:
    """The wants of one device."""
    if belief.quarantined_until_s is not None and belief.quarantined_until_s > now:
        return Placement((), rotated=False)
    allowed = [v for v in state.active_variants() if may_load(belief, v, now)]
    present = [v for v in belief.wants if v in allowed]
    fresh = [v for v in allowed if v not in present]
    known = [v for v in belief.wants if v not in allowed and v in belief.was_live and v not in belief.load_failures]
    idle = retained(known, state.used_at_s, now, keep_alive_s)

    def need(variant_id: VariantId) -> int:
        return max(state.variants[variant_id].memory_bytes, state.measured_bytes.get(variant_id, 0))

    inside, outside = fill([*present, *fresh, *idle], belief.device.memory_bytes, need)
    waiting = [v for v in outside if v in fresh]
    if waiting and present and now - belief.wants_since_s >= slice_s(belief, present):
        inside, _ = fill([*waiting, *present, *idle], belief.device.memory_bytes, need)
        return Placement(tuple(inside), rotated=True)
    return Placement(tuple(inside), rotated=False)


def may_load(belief: DeviceBelief, variant_id: VariantId, now: float) -> bool:
    """Whether a device may be asked to load a variant: it did not fail too often, and the wait after that is over."""
    if belief.load_failures.get(variant_id, 0) >= LOAD_TRIES_MAX:
        return False
    return belief.retry_at_s.get(variant_id, 0.0) <= now


def slice_s(belief: DeviceBelief, present: list[VariantId]) -> float:
    """How long a device serves what it holds before another variant's turn, in seconds."""
    loads = [r.load_s for v, r in belief.replicas.items() if v in present and r.state is ReplicaState.LIVE]
    return max(SLICE_S_MIN, SLICE_LOADS * max(loads, default=0.0))


def failed_everywhere(state: State, variant_id: VariantId) -> bool:
    """Whether every device of every worker present has refused the variant for good."""
    beliefs = [belief for worker in state.live_workers() for belief in worker.devices.values()]
    return bool(beliefs) and all(b.load_failures.get(variant_id, 0) >= LOAD_TRIES_MAX for b in beliefs)
