"""How fast a variant runs on a device, how long it would take to load there, and how much of it is left to do.

All of it from what was measured: rates by worker, else by kind of device; loads by kind of device and by where they
came from. What was never measured is guessed: a load from one place farther takes twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.core.model import DeviceBelief, VariantId, Worker
from pilotlight.core.state import State
from pilotlight.core.transitions import ReplicaState

ORIGINS = ("asleep", "parked", "staged", "cold")
"""Where a replica may come from, the nearest first."""
LOAD_S_PRIOR = (1.0, 5.0, 10.0, 20.0)
"""A load of a variant of which nothing was measured, by origin."""


def origin(worker: Worker, belief: DeviceBelief, variant_id: VariantId) -> str:
    """The nearest place that a device could get a variant from."""
    replica = belief.replicas.get(variant_id)
    if replica is not None and replica.state is ReplicaState.ASLEEP:
        return "asleep"
    if variant_id in worker.parked:
        return "parked"
    return "staged" if variant_id in worker.staged else "cold"


def finish_s(rows: float, replicas: Iterable[tuple[float, float]]) -> float:
    """When rows would be done: by replicas that are ready after `ready` s and then do `rate` rows/s, each as much as
    it can. Infinite without any."""
    speed = late = 0.0
    end = float("inf")
    for ready, rate in sorted(replicas):
        if ready >= end:
            break
        speed += rate
        late += rate * ready
        end = (rows + late) / speed if speed else end
    return end


class Estimates:
    """What can be said of variants at one moment."""

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._now = now
        self._loads: dict[VariantId, dict[tuple[str, str], float]] = {}
        for (variant_id, kind, place), seconds in state.load_s.items():
            self._loads.setdefault(variant_id, {})[kind, place] = seconds
        self._memo: dict[tuple[VariantId, str, str], float | None] = {}

    def rows_left(self, variant_id: VariantId) -> tuple[float, bool]:
        """Rows of a variant that are known to be left, and whether those are all. Of an input that was not read to its
        end at least as much as was read is left."""
        rows, exact = float(self._state.census.of(variant_id).outstanding), True
        for job in self._state.jobs_of(variant_id):
            rows += len(job.pending) + sum(map(len, job.suspects))
            if not job.exhausted:
                exact = False
                rows += job.read_upto
        return rows, exact

    def rate(self, worker: Worker, belief: DeviceBelief, variant_id: VariantId) -> float | None:
        """Rows per second of a device for a variant; None: nothing like it was measured."""
        own = worker.rate.get(variant_id)
        if own and _is_live(belief, variant_id):
            return own / sum(_is_live(other, variant_id) for other in worker.devices.values())
        totals = self._state.census.of(variant_id)
        for seen in (totals.live(belief.device.kind), totals.live()):
            if seen.replicas:
                return seen.rate / seen.replicas
        return own / len(worker.devices) if own else None

    def elsewhere(self, variant_id: VariantId, workers: Iterable[Worker]) -> tuple[int, list[tuple[float, float]]]:
        """How many devices of all but these workers are to hold a variant, and what these do together: when they are
        ready, and their rate. Those that are not rated yet count as just asked to load it."""
        totals = self._state.census.of(variant_id)
        devices, (rated, rate) = totals.wanting, totals.live()
        each = rate / rated if rated else 0.0
        for worker in workers:
            part = worker.parts.get(variant_id)
            if part is not None:
                devices -= part.wanting
                rated -= len(part.live)
                rate -= each * len(part.live)
        replicas = [(0.0, rate)] if rated > 0 else []
        if each and devices > rated:
            places = (self.measured_load_s(variant_id, kind, "cold") for kind in self._state.census.workers_with)
            load_s = max((seconds for seconds in places if seconds is not None), default=LOAD_S_PRIOR[-1])
            replicas.append((load_s, each * (devices - rated)))
        return devices, replicas

    def load_s(self, worker: Worker, belief: DeviceBelief, variant_id: VariantId) -> float:
        """Seconds until a device could hold a variant live, from the nearest place."""
        place = origin(worker, belief, variant_id)
        known = self.measured_load_s(variant_id, belief.device.kind, place)
        return LOAD_S_PRIOR[ORIGINS.index(place)] if known is None else known

    def ready_s(self, worker: Worker, belief: DeviceBelief, variant_id: VariantId) -> float:
        """Seconds until a device that was asked to hold a variant serves it."""
        replica = belief.replicas.get(variant_id)
        if replica is None:
            return self.load_s(worker, belief, variant_id)
        if replica.state is ReplicaState.LIVE:
            return 0.0
        return max(0.0, self.load_s(worker, belief, variant_id) - (self._now - replica.since_s))

    def measured_load_s(self, variant_id: VariantId, kind: str, place: str) -> float | None:
        """A load on a kind of device from a place: as measured there, else on other kinds, else from other places."""
        key = variant_id, kind, place
        if key not in self._memo:
            self._memo[key] = self._from_others(variant_id, kind, place)
        return self._memo[key]

    def _from_others(self, variant_id: VariantId, kind: str, place: str) -> float | None:
        loads = self._loads.get(variant_id)
        if not loads:
            return None
        wanted = ORIGINS.index(place)

        def farness(key: tuple[str, str]) -> tuple[int, bool]:
            return abs(ORIGINS.index(key[1]) - wanted), key[0] != kind

        nearest = min((key for key in loads if key[1] in ORIGINS), key=farness, default=None)
        return None if nearest is None else loads[nearest] * 2.0 ** (wanted - ORIGINS.index(nearest[1]))


def _is_live(belief: DeviceBelief, variant_id: VariantId) -> bool:
    replica = belief.replicas.get(variant_id)
    return replica is not None and replica.state is ReplicaState.LIVE
