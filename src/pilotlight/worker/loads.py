"""How long each replica took to live, from the first thing that was done for it, and where the time went.

A load that had to wait for its variant's files to be staged or parked began with that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.core.model import DeviceId, ReplicaId, VariantId
from pilotlight.core.transitions import Level
from pilotlight.messages import Origin

STAGES = {Level.STAGED: "stage", Level.PARKED: "park"}


@dataclass(slots=True)
class Load:
    """One replica's way to live. load_s: 0 until it is there. stages: seconds by what they were spent on."""

    place: tuple[DeviceId, VariantId]
    began_s: float
    origin: Origin
    load_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict[str, float])


class Loads:
    """All replicas' loads. Times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._loads: dict[ReplicaId, Load] = {}
        self._wished: dict[tuple[DeviceId, VariantId], float] = {}
        self._copying: dict[tuple[VariantId, Level], float] = {}
        self._copied: dict[tuple[VariantId, Level], tuple[float, float]] = {}

    def wish(self, places: Iterable[tuple[DeviceId, VariantId]], now: float) -> None:
        """All that is wanted live from now on."""
        self._wished = {place: self._wished.get(place, now) for place in places}
        variants = {variant_id for _, variant_id in self._wished}
        self._copied = {key: times for key, times in self._copied.items() if key[0] in variants}

    def copying(self, variant_id: VariantId, level: Level, now: float) -> None:
        """A copy is being made."""
        self._copying[variant_id, level] = now

    def copied(self, variant_id: VariantId, level: Level, now: float) -> None:
        """A copy was made, or could not be."""
        self._copied[variant_id, level] = (self._copying.pop((variant_id, level), now), now)

    def start(self, replica_id: ReplicaId, device_id: DeviceId, variant_id: VariantId, now: float) -> None:
        """A replica is started: what it waited for since it was wished for counts as part of its load."""
        place = (device_id, variant_id)
        load = self._loads[replica_id] = Load(place, now, "cold")
        wished_s = self._wished.get(place)
        for level, stage in STAGES.items():
            times = self._copied.get((variant_id, level))
            if wished_s is not None and times is not None and times[1] >= wished_s:
                load.began_s = min(load.began_s, max(wished_s, times[0]))
                load.stages[stage] = times[1] - max(wished_s, times[0])

    def wake(self, replica_id: ReplicaId, now: float) -> None:
        """A replica is woken, which is another load."""
        load = self._loads.get(replica_id)
        if load is not None:
            self._loads[replica_id] = Load(load.place, now, "asleep")

    def live(self, replica_id: ReplicaId, now: float, *stages: dict[str, float]) -> None:
        """A replica lives. stages: what is known of its way beside copies."""
        load = self._loads.get(replica_id)
        if load is None:
            return
        load.load_s = now - load.began_s
        for more in stages:
            load.stages |= more
        if load.place in self._wished:
            self._wished[load.place] = now  # should it die, its successor waits for no copy

    def origin(self, replica_id: ReplicaId, origin: Origin) -> None:
        """Where a replica loads from."""
        if replica_id in self._loads:
            self._loads[replica_id].origin = origin

    def of(self, replica_id: ReplicaId) -> Load | None:
        """A replica's load."""
        return self._loads.get(replica_id)

    def end(self, replica_id: ReplicaId) -> None:
        """A replica is gone."""
        self._loads.pop(replica_id, None)
