"""Which devices may be asked to hold a variant: those that it fits, and that have not refused it.

What a variant needs is a hint until it has been live, and a device has the last word: where it fits nowhere by the
hint, the largest devices are asked all the same. A device that failed twice is given up for the variant, and so is a
kind of device once two workers gave up, or all that have one. A new job or a new pin lifts that (`state.refusals`).
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.core.model import DeviceBelief, VariantId, Worker, WorkerId
from pilotlight.core.state import State
from pilotlight.core.transitions import ReplicaState, WorkerState

LOAD_TRIES_MAX = 2
REFUSING_WORKERS = 2
"""Workers that must have given up before their kind of device counts as unable: one may be broken."""


def may_load(belief: DeviceBelief, variant_id: VariantId, now: float) -> bool:
    """Whether a device may be asked to load a variant: it did not fail too often, and the wait after that is over."""
    if belief.load_failures.get(variant_id, 0) >= LOAD_TRIES_MAX:
        return False
    return belief.retry_at_s.get(variant_id, 0.0) <= now


def largest_bytes(workers: Iterable[Worker], variant_id: VariantId, now: float) -> int:
    """The memory of the largest device that takes rows of a variant; 0 where none does."""
    beliefs = (belief for worker in workers for belief in worker.devices.values())
    return max((b.device.memory_bytes for b in beliefs if b.serves(variant_id, now)), default=0)


def was_crowded(belief: DeviceBelief, variant_id: VariantId) -> bool:
    """Whether a variant found no room here beside others, whatever the hints say; until it has been live here."""
    return variant_id in belief.retry_at_s and variant_id not in belief.load_failures


def fits_alone(state: State, memory_bytes: int, variant_id: VariantId) -> bool:
    """Whether a variant fits an empty device of so much memory. The smaller of hint and measurement counts: a runtime
    that fills whatever device it gets measures large, and the device has the last word anyway."""
    hint = state.variants[variant_id].memory_bytes
    measured = state.measured_bytes.get(variant_id, 0)
    return min(hint or measured, measured or hint) <= memory_bytes


def refusing_kinds(state: State, variant_id: VariantId) -> set[str]:
    """Kinds of device that are not asked for a variant any more."""
    told = {kind: why for (v, kind), why in state.refusals.items() if v == variant_id and why}
    return {kind for kind, why in told.items() if _kind_refuses(state, variant_id, kind, why)}


def _kind_refuses(state: State, variant_id: VariantId, kind: str, refused: Iterable[WorkerId]) -> bool:
    """A worker counts when none of its devices of that kind is left to try."""
    refusing, undecided = 0, state.census.workers_with.get(kind, 0)
    for worker_id in refused:
        worker = state.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.LIVE:
            refusing += 1
            continue
        devices = [belief for belief in worker.devices.values() if belief.device.kind == kind]
        if devices and all(belief.load_failures.get(variant_id, 0) >= LOAD_TRIES_MAX for belief in devices):
            undecided -= 1
            refusing += 1
        elif not devices:
            refusing += 1
    return refusing >= REFUSING_WORKERS or (refusing > 0 and not undecided)


class Fitness:
    """Which devices may hold which variants, as of one moment; looks at each variant's kinds of device once."""

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._now = now
        self._bad_kinds: dict[VariantId, set[str]] = {}
        self._least: dict[VariantId, int] = {}

    def may_hold(self, belief: DeviceBelief, variant_id: VariantId) -> bool:
        """Whether a device may be asked for a variant now, if it were empty. What it holds, it can hold."""
        if _holds(belief, variant_id):
            return True
        if belief.device.lacks and belief.device.why_not(self._state.variants[variant_id]):
            return False
        if variant_id not in self._least:
            self._look(variant_id)
        if belief.device.memory_bytes < self._least[variant_id] or belief.device.kind in self._bad_kinds[variant_id]:
            return False
        return may_load(belief, variant_id, self._now)

    def need_bytes(self, belief: DeviceBelief, variant_id: VariantId) -> int:
        """Room to count for a variant on a device: more than there is where others crowded it out before."""
        if was_crowded(belief, variant_id):
            return max(belief.device.memory_bytes + 1, self._state.need_bytes(variant_id))
        return self._state.need_bytes(variant_id)

    def _look(self, variant_id: VariantId) -> None:
        kinds = refusing_kinds(self._state, variant_id) if self._state.refusals else set[str]()
        self._bad_kinds[variant_id] = kinds
        sizes = [size for _, size in self._state.census.shapes]
        fitting = [size for size in sizes if fits_alone(self._state, size, variant_id)]
        self._least[variant_id] = min(fitting) if fitting else max(sizes, default=0)


def failed_everywhere(state: State, variant_id: VariantId) -> bool:
    """Whether no device present is left to try: each refused, is of a kind that refuses, or is too small where a larger
    one had a say."""
    kinds = refusing_kinds(state, variant_id)
    refused = False
    for worker in state.workers.values():  # as a rule the first that is asked is one to try
        for belief in worker.devices.values() if worker.state is WorkerState.LIVE else ():
            if _refuses(belief, variant_id, kinds) or belief.device.why_not(state.variants[variant_id]):
                refused = True
            elif fits_alone(state, belief.device.memory_bytes, variant_id):
                return False
    return refused


def lacking(state: State, variant_id: VariantId) -> list[str]:
    """Why the variant's runtime can't run on devices that are here, each reason once."""
    devices = (belief.device for worker_id in state.lacking for belief in state.workers[worker_id].devices.values())
    reasons = (device.why_not(state.variants[variant_id]) for device in devices)
    return [why for why in dict.fromkeys(reasons) if why]


def _holds(belief: DeviceBelief, variant_id: VariantId) -> bool:
    replica = belief.replicas.get(variant_id)
    return replica is not None and replica.state in {ReplicaState.LIVE, ReplicaState.ASLEEP}


def _refuses(belief: DeviceBelief, variant_id: VariantId, kinds: set[str]) -> bool:
    if _holds(belief, variant_id):
        return False
    return belief.device.kind in kinds or belief.load_failures.get(variant_id, 0) >= LOAD_TRIES_MAX


def explain_no_fit(state: State, variant_id: VariantId) -> str:
    """One sentence: what a variant needs, and what each kind of device present has. "" where one has enough."""
    shapes = state.census.shapes
    if not shapes or any(fits_alone(state, size, variant_id) for _, size in shapes):
        return ""
    most: dict[str, int] = {}
    for kind, size in shapes:
        most[kind] = max(most.get(kind, 0), size)
    has = ", ".join(f"{kind} has {size / 1e9:.1f} GB" for kind, size in sorted(most.items()))
    return f"{state.name_of(variant_id)} needs about {state.need_bytes(variant_id) / 1e9:.1f} GB and {has}"
