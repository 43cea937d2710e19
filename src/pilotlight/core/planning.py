"""When it is looked at again who should hold what: at once where workers are few, else no oftener than it is worth.

A plan over all devices (`policy/placement`) costs time in proportion to them. In a large pool it is made when demand
changes, and from time to time while several variants contend for devices. What only concerns one worker (it came, its
replica died, its rest is over) is planned for that worker alone. Where one variant is all that is needed, workers that
hold it and nothing else are left as they are, and the others are looked at a few at a time, in turn: what they hold may
be too old to keep, or a load may pay by now. So they are where nothing is needed any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil

from pilotlight.core.model import VariantId, Worker, WorkerId
from pilotlight.core.policy import placement
from pilotlight.core.state import State
from pilotlight.core.transitions import WorkerState

Plans = list[tuple[Worker, placement.WorkerPlan]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a pool plans. Seconds per device bound the part of a core that plans over all devices take.

    few_devices: so many are planned together at once, whatever happens. changed_s_per_device: between two plans over
    all when demand changes. contended_s_per_device: between two while several variants contend and nothing changes.
    round_s: how long looking at each worker in turn takes; faster while that finds something to change.
    """

    few_devices: int = 64
    changed_s_per_device: float = 50e-6
    contended_s_per_device: float = 5e-3
    round_s: float = 60.0
    turn_max: int = 1024


class Planner:
    """Makes plans; the caller has them carried out. Reads `state`, changes nothing of it."""

    def __init__(self, state: State, keep_alive_s: float, pace: Pace) -> None:
        self._state = state
        self._keep_alive_s = keep_alive_s
        self._pace = pace
        self._planned_s = float("-inf")
        self._planned_for: list[VariantId] = []
        self._due = False
        self._turn: list[WorkerId] = []
        """Workers still to be looked at in this round, the next one last."""
        self._turn_s = 0.0
        self._turn_size = 1
        self._wakes: list[tuple[float, WorkerId]] = []
        """When a device's rest or its wait for another try is over; a heap."""

    @property
    def few(self) -> bool:
        """Whether all devices are planned together each time."""
        return self._state.census.devices <= self._pace.few_devices

    def changed(self, now: float, *, anew: bool = False) -> Plans:
        """Demand changed: plan all devices, now or soon. anew: by more than which variants are needed."""
        needed = self._needed()
        if self.few or anew or len(needed) > 1 or (needed and needed != self._planned_for):
            self._due = True
        if not needed:
            self._planned_for = []
        return self._all(now) if self.few or (self._due and now >= self._soon_s()) else []

    def touched(self, now: float, worker: Worker) -> Plans:
        """Something is new on one worker."""
        self._note_wakes(now, worker)
        if self.few:
            return self._all(now)
        self._note_unserved()
        if worker.state is not WorkerState.LIVE:
            return []
        return placement.plan(self._state, now, self._keep_alive_s, [worker])

    def left(self, now: float) -> Plans:
        """A worker is gone."""
        if self.few:
            return self._all(now)
        self._note_unserved()
        return []

    def tick(self, now: float) -> Plans:
        """Time passed."""
        if self.few:
            return self._all(now)
        calm_s = self._planned_s + self._state.census.devices * self._pace.contended_s_per_device
        if self._due and now >= self._soon_s():
            return self._all(now)
        if len(self._needed()) > 1 and now >= calm_s:
            return self._all(now)
        return self._next_in_turn(now)

    def woken(self, now: float) -> list[Worker]:
        """Workers with a device whose rest or wait is over."""
        names: dict[WorkerId, None] = {}
        while self._wakes and self._wakes[0][0] <= now:
            names[heappop(self._wakes)[1]] = None
        return [self._state.workers[name] for name in names if name in self._state.workers]

    # --- whose turn it is

    def _all(self, now: float) -> Plans:
        self._planned_s = now
        self._planned_for = self._needed()
        self._due = False
        if self.few or len(self._planned_for) > 1:
            return placement.plan(self._state, now, self._keep_alive_s)
        return self._unsettled(now, self._state.workers.values())

    def _unsettled(self, now: float, workers: Iterable[Worker]) -> Plans:
        """Plans for those of some workers that hold anything but what is needed."""
        needed = tuple(self._needed())
        some = [worker for worker in workers if not _is_settled(worker, needed)]
        return placement.plan(self._state, now, self._keep_alive_s, some) if some else []

    def _soon_s(self) -> float:
        return self._planned_s + self._state.census.devices * self._pace.changed_s_per_device

    def _needed(self) -> list[VariantId]:
        return sorted({*self._state.active_variants(), *self._state.pinned})

    def _note_unserved(self) -> None:
        """What is needed and has no device any more does not wait for its turn."""
        if any(not self._state.census.of(variant_id).wanting for variant_id in self._needed()):
            self._due = True

    def _note_wakes(self, now: float, worker: Worker) -> None:
        for belief in worker.devices.values():
            rest_s = belief.quarantined_until_s
            for wake_s in (*belief.retry_at_s.values(), *(() if rest_s is None else (rest_s,))):
                if wake_s > now:
                    heappush(self._wakes, (wake_s, worker.worker_id))

    def _next_in_turn(self, now: float) -> Plans:
        """Plans for the next few workers; each round takes `round_s`, and less while plans change something."""
        if not self._turn:
            self._turn = list(reversed(self._state.workers))
        usual = ceil(len(self._state.workers) * (now - self._turn_s) / self._pace.round_s)
        self._turn_s = now
        size = min(max(usual, self._turn_size), self._pace.turn_max, len(self._turn))
        names = self._turn[-size:]
        del self._turn[-size:]
        workers = self._state.workers
        plans = self._unsettled(now, [workers[name] for name in reversed(names) if name in workers])
        changed = any(_differs(worker, plan) for worker, plan in plans)
        self._turn_size = min(2 * size, self._pace.turn_max) if changed else max(1, size // 2)
        return plans


def _is_settled(worker: Worker, needed: tuple[VariantId, ...]) -> bool:
    """Whether a worker holds all that is needed and nothing else, or may get no work."""
    if worker.state is not WorkerState.LIVE:
        return True
    return not worker.park_wants and all(belief.wants == needed for belief in worker.devices.values())


def _differs(worker: Worker, plan: placement.WorkerPlan) -> bool:
    if plan.parks != worker.park_wants:
        return True
    return any(device.wants != worker.devices[device_id].wants for device_id, device in plan.devices.items())
