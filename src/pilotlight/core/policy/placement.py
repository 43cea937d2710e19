"""Which variants each device should hold live, and which each worker should hold in memory: one plan over all devices.

First what jobs need, divided among devices (`partition`); then what is pinned, where there is room beside that; then
what was used lately (`retention`). What a device can't keep is parked in its worker's memory as long as it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pilotlight.core.model import DeviceBelief, DeviceId, VariantId, Worker
from pilotlight.core.policy.estimate import Estimates
from pilotlight.core.policy.fit import LOAD_TRIES_MAX, Fitness, explain_no_fit, failed_everywhere
from pilotlight.core.policy.partition import Claim, Partition, Slot, job_claims, pin_claims
from pilotlight.core.policy.retention import fill, stays, value
from pilotlight.core.state import State
from pilotlight.core.transitions import ReplicaState

__all__ = ["LOAD_TRIES_MAX", "DevicePlan", "WorkerPlan", "explain_no_fit", "failed_everywhere", "plan"]

CLAUSES_MAX = 3
"""So many changes of a worker are told; the rest follows from the same cause."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What a device should hold, most wanted first, and whether it changed over from one variant to another."""

    wants: tuple[VariantId, ...]
    moved: bool = False


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker's devices and its memory should hold, and why that is something else than before."""

    devices: dict[DeviceId, DevicePlan]
    parks: tuple[VariantId, ...]
    why: str


def plan(
    state: State, now: float, keep_alive_s: float, some: list[Worker] | None = None
) -> list[tuple[Worker, WorkerPlan]]:
    """A plan for every worker that may get work; or for `some` of these, while the others stay as they are: then who
    holds something keeps it, and room is given away, but nobody takes a device from anybody."""
    return _Plan(state, now, keep_alive_s).make(some)


class _Plan:
    """One plan in the making."""

    def __init__(self, state: State, now: float, keep_alive_s: float) -> None:
        self._state = state
        self._now = now
        self._keep_alive_s = keep_alive_s
        self._estimates = Estimates(state, now)
        self._fitness = Fitness(state, now)

    def make(self, some: list[Worker] | None) -> list[tuple[Worker, WorkerPlan]]:
        workers = self._state.live_workers() if some is None else some
        slots: dict[tuple[str, DeviceId], Slot] = {}
        for worker in workers:
            for device_id, belief in worker.devices.items():
                if not belief.rests(self._now):
                    slots[worker.worker_id, device_id] = Slot(worker, belief)
        claims, pins = job_claims(self._state, self._estimates), pin_claims(self._state)
        if some is not None:
            for claim in (*claims, *pins):
                others = self._estimates.elsewhere(claim.variant_id, some)
                claim.elsewhere, claim.replicas_elsewhere = others
        self._needed = {claim.variant_id for claim in claims}
        self._divide(list(slots.values()), claims, take=some is None, take_turns=True)
        needed = {key: [claim.variant_id for claim in slot.claims] for key, slot in slots.items()}
        if pins:
            for key, slot in slots.items():
                slot.fixed = len(slot.claims)
                slot.fixed_bytes = self._bytes(slot.belief, needed[key])
                slot.claims = []
            self._divide(list(slots.values()), pins, take=some is None, take_turns=False)
        plans: list[tuple[Worker, WorkerPlan]] = []
        for worker in workers:
            devices: dict[DeviceId, DevicePlan] = {}
            for device_id in worker.devices:
                slot = slots.get((worker.worker_id, device_id))
                if slot is None:
                    devices[device_id] = DevicePlan(())
                    continue
                first = list(needed[worker.worker_id, device_id])
                first += [claim.variant_id for claim in slot.claims if claim.variant_id not in first]
                devices[device_id] = DevicePlan(self._with_idle(slot, first), slot.moved)
            parks = self._parks(worker, devices)
            plans.append((worker, WorkerPlan(devices, parks, self._why(worker, devices, parks))))
        return plans

    def _divide(self, slots: list[Slot], claims: list[Claim], *, take: bool, take_turns: bool) -> None:
        partition = Partition(slots, claims, self._fitness, self._estimates, self._now)
        partition.hold()
        partition.spread()
        if take:
            partition.rescue(turns=take_turns)
            if take_turns:
                partition.balance()

    def _bytes(self, belief: DeviceBelief, variants: list[VariantId]) -> int:
        return sum(self._fitness.need_bytes(belief, variant_id) for variant_id in variants)

    def _with_idle(self, slot: Slot, first: list[VariantId]) -> tuple[VariantId, ...]:
        """Beside what is needed or pinned: what is live, was used lately and fits, the most valuable first."""
        belief = slot.belief
        idle = [v for v in belief.wants if v not in first and v not in self._needed and self._may_stay(belief, v)]
        if idle:
            worth = {v: self._worth(slot.worker, belief, v) for v in idle}
            idle.sort(key=lambda v: -worth[v])
            room = belief.device.memory_bytes - self._bytes(belief, first)
            idle, _ = fill(idle, room, self._state.need_bytes)
        wants = (*first, *idle)
        return belief.wants if set(wants) == set(belief.wants) else wants

    def _may_stay(self, belief: DeviceBelief, variant_id: VariantId) -> bool:
        if variant_id not in belief.was_live or variant_id in belief.load_failures:
            return False
        return stays(self._state, variant_id, self._now, self._keep_alive_s)

    def _worth(self, worker: Worker, belief: DeviceBelief, variant_id: VariantId) -> float:
        """What a variant is worth on a device: by the time to load it again from what would be left of it."""
        place = "parked" if variant_id in worker.parked else "staged" if variant_id in worker.staged else "cold"
        load_s = self._estimates.measured_load_s(variant_id, belief.device.kind, place)
        size = self._state.need_bytes(variant_id)
        return value(self._state.uses.get(variant_id, 0), 1.0 if load_s is None else load_s, size)

    # --- memory

    def _parks(self, worker: Worker, devices: dict[DeviceId, DevicePlan]) -> tuple[VariantId, ...]:
        """What the worker's memory should hold: what leaves its devices, and what is pinned and has no room there."""
        live = {v for device in devices.values() for v in device.wants}
        left = [v for belief in worker.devices.values() for v in (*belief.wants, *belief.replicas)]
        pinned = sorted(self._state.pinned)
        known = dict.fromkeys([*worker.park_wants, *worker.parked, *left, *pinned])
        near = [v for v in known if v not in live and self._can_park(worker, v)]
        if not near or not worker.memory_bytes:
            return ()
        worth = {v: self._park_worth(worker, v) for v in near}
        near.sort(key=lambda v: worth[v], reverse=True)
        parks, _ = fill(near, worker.memory_bytes - self._taken(worker, devices, live), self._size(worker))
        return worker.park_wants if set(parks) == set(worker.park_wants) else tuple(parks)

    def _can_park(self, worker: Worker, variant_id: VariantId) -> bool:
        variant = self._state.variants.get(variant_id)
        if variant is None or (
            variant_id not in self._needed and not stays(self._state, variant_id, self._now, self._keep_alive_s)
        ):
            return False
        if variant.has_files:
            return True
        here = [belief.replicas.get(variant_id) for belief in worker.devices.values()]
        return any(r is not None and r.state in {ReplicaState.LIVE, ReplicaState.ASLEEP} for r in here)

    def _park_worth(self, worker: Worker, variant_id: VariantId) -> tuple[bool, bool, float]:
        belief = next(iter(worker.devices.values()), None)
        worth = 0.0
        if belief is not None:
            place = "staged" if variant_id in worker.staged else "cold"
            load_s = self._estimates.measured_load_s(variant_id, belief.device.kind, place)
            size = self._size(worker)(variant_id)
            worth = value(self._state.uses.get(variant_id, 0), 1.0 if load_s is None else load_s, size)
        return variant_id in self._needed, variant_id in self._state.pinned, worth

    def _size(self, worker: Worker) -> Callable[[VariantId], int]:
        """Bytes of a parked copy: as made, else about what the variant needs on a device. One without files can only
        sleep, which on a host gives memory back and takes none."""
        on_host = all(belief.device.is_host for belief in worker.devices.values())

        def size(variant_id: VariantId) -> int:
            copy = worker.parked.get(variant_id)
            if copy is None and on_host and not self._state.variants[variant_id].has_files:
                return 0
            return copy.bytes if copy is not None else self._state.need_bytes(variant_id)

        return size

    def _taken(self, worker: Worker, devices: dict[DeviceId, DevicePlan], live: set[VariantId]) -> int:
        """Bytes of the worker's memory that are spoken for: copies that live variants map, and host devices."""
        size = self._size(worker)
        hosted = {v for d, device in devices.items() if worker.devices[d].device.is_host for v in device.wants}
        copies = sum(size(v) for v in live - hosted if v in worker.parked)
        return copies + sum(self._state.need_bytes(v) for v in hosted)

    # --- words

    def _why(self, worker: Worker, devices: dict[DeviceId, DevicePlan], parks: tuple[VariantId, ...]) -> str:
        """Why a worker's devices and memory should hold something else than before: what that is, its wants say. One
        reason, or one for each context where they differ."""
        reasons: list[tuple[VariantId, str]] = []
        for device_id, device in devices.items():
            before = worker.devices[device_id].wants
            if before is device.wants:
                continue
            reasons += [(v, self._because(v)) for v in device.wants if v not in before]
            reasons += [(v, self._despite(v, device)) for v in before if v not in device.wants]
        if parks is not worker.park_wants:
            reasons += [(v, "its devices have no room for it") for v in parks if v not in worker.park_wants]
        if len({reason for _, reason in reasons}) == 1:
            return reasons[0][1]
        clauses = list(dict.fromkeys(f"{self._state.name_of(v)}: {reason}" for v, reason in reasons))
        more = len(clauses) - CLAUSES_MAX
        return "; ".join([*clauses[:CLAUSES_MAX], *([f"and {more} more"] if more > 0 else [])])

    def _because(self, variant_id: VariantId) -> str:
        if variant_id in self._needed:
            jobs = sum(job.variant_id == variant_id for job in self._state.jobs.values())
            return f"{jobs} jobs need it" if jobs > 1 else "a job needs it"
        return "it is pinned" if variant_id in self._state.pinned else "it was used lately"

    def _despite(self, variant_id: VariantId, device: DevicePlan) -> str:
        if variant_id in self._state.evicted:
            return "it was evicted"
        if variant_id in self._needed and device.moved:
            return "it is another context's turn"
        if variant_id in self._needed or stays(self._state, variant_id, self._now, self._keep_alive_s):
            return "its room is needed" if device.wants else "the device rests"
        return f"it was idle for longer than {self._keep_alive_s:.0f} s"
