"""What all workers add up to, kept event by event, so that no event has to walk them all.

For each variant every live worker adds a `Part`; `look` takes off what a worker added before and adds what it is now.
Whoever changes a worker's state, wants, replicas or rates has it looked at again; rows are counted as they come and go
(`count`). Rates are whole micro-rows per second: sums of floats would drift, and depend on the order of events.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import frexp, ldexp
from typing import NamedTuple, TypeVar

from pilotlight.core.model import DeviceBelief, Part, VariantId, Worker, WorkerId
from pilotlight.core.policy.sizing import lease_target, low_water
from pilotlight.core.transitions import ReplicaState, WorkerState

Key = TypeVar("Key")
MICRO = 1_000_000
STEPS = 16
"""Steps of an octave in which rates are told apart where only the highest counts: six percent."""


class Rated(NamedTuple):
    """Live replicas of which a rate is known, and the sum of their rates in rows per second."""

    replicas: int
    rate: float


@dataclass(slots=True)
class Totals:
    """What live workers add up to for one variant.

    outstanding: rows leased to any worker. held: those of workers that serve it. appetite: rows that these should hold.
    serving, rated: how many workers serve it, and of how many the rate is known. wanting: devices that are to hold it
    and do not rest. dry, low: workers that serve it and hold nothing, or too little; the longest so first.
    """

    outstanding: int = 0
    held: int = 0
    appetite: int = 0
    serving: int = 0
    rated: int = 0
    micro_rate: int = 0
    wanting: int = 0
    by_kind: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Live replicas with a rate, and their micro-rates, by kind of device."""
    steps: dict[int, int] = field(default_factory=dict[int, int])
    """How many workers serve it at a rate in each step of the scale."""
    dry: OrderedDict[WorkerId, None] = field(default_factory=OrderedDict[WorkerId, None])
    low: OrderedDict[WorkerId, None] = field(default_factory=OrderedDict[WorkerId, None])

    @property
    def rate(self) -> float:
        """Rows per second of the workers whose rate is known."""
        return self.micro_rate / MICRO

    @property
    def fastest(self) -> float:
        """The highest rate of a worker, rounded down by six percent at most; 0 where none is known."""
        if not self.steps:
            return 0.0
        octave, step = divmod(max(self.steps), STEPS)
        return ldexp((STEPS + step) / (2 * STEPS), octave)

    def live(self, kind: str | None = None) -> Rated:
        """Replicas of which a rate is known, on one kind of device or on all."""
        found = self.by_kind.values() if kind is None else [self.by_kind.get(kind, (0, 0))]
        return Rated(sum(n for n, _ in found), sum(rate for _, rate in found) / MICRO)


class Census:
    """The totals of all variants and the kinds and sizes of all devices. Owned by `State`."""

    def __init__(self, horizon_s: float = 0.25) -> None:
        self.horizon_s = horizon_s
        self.shapes: dict[tuple[str, int], int] = {}
        """Devices of live workers, by kind and memory."""
        self.workers_with: dict[str, int] = {}
        """Live workers, by kinds of device that they have."""
        self.devices = 0
        self._totals: dict[VariantId, Totals] = {}

    def of(self, variant_id: VariantId) -> Totals:
        """The totals of a variant."""
        totals = self._totals.get(variant_id)
        if totals is None:
            totals = self._totals[variant_id] = Totals()
        return totals

    def forget(self, variant_id: VariantId) -> None:
        """Nobody holds or is to hold a variant any more."""
        self._totals.pop(variant_id, None)

    # --- what changes

    def count(self, worker: Worker, variant_id: VariantId, rows: int) -> None:
        """Rows were leased to a worker, or (negative) left its leases."""
        left = worker.outstanding.get(variant_id, 0) + rows
        if left:
            worker.outstanding[variant_id] = left
        else:
            worker.outstanding.pop(variant_id, None)
        totals = self.of(variant_id)
        totals.outstanding += rows
        part = worker.parts.get(variant_id)
        if part is not None and part.capacity:
            totals.held += rows
            _rank(totals, worker.worker_id, part, left)

    def look(self, worker: Worker, now: float) -> None:
        """A worker is not what it was."""
        live = worker.state is WorkerState.LIVE
        if live is not worker.counted:
            self._count_devices(worker, 1 if live else -1)
            worker.counted = live
        worker.looked_at_s = now
        fresh = parts_of(worker, now, self.horizon_s) if live else {}
        for variant_id, part in worker.parts.items():
            if fresh.get(variant_id) != part:
                self._add(worker, variant_id, part, -1)
                if variant_id not in fresh:
                    _rank(self.of(variant_id), worker.worker_id, None, 0)
        for variant_id, part in fresh.items():
            if worker.parts.get(variant_id) != part:
                self._add(worker, variant_id, part, 1)
                _rank(self.of(variant_id), worker.worker_id, part, worker.outstanding.get(variant_id, 0))
        worker.parts = fresh

    def look_at_rate(self, worker: Worker, variant_id: VariantId) -> None:
        """A worker's rate for a variant is another. A short cut for `look`, as this happens often."""
        old = worker.parts.get(variant_id)
        if old is None or not (old.live and old.capacity and old.micro_rate):
            self.look(worker, worker.looked_at_s)
            return
        rate = worker.rate[variant_id]
        each, micro_rate = int(MICRO * rate / len(old.live)), int(MICRO * rate)
        target = lease_target(old.capacity, rate, self.horizon_s)
        if not each:
            self.look(worker, worker.looked_at_s)
            return
        low = low_water(target, old.capacity)
        live = tuple([(kind, each) for kind, _ in old.live])
        part = worker.parts[variant_id] = Part(old.capacity, target, low, micro_rate, old.wanting, live)
        totals = self.of(variant_id)
        for kind, before in old.live:
            replicas, sum_of_rates = totals.by_kind[kind]
            totals.by_kind[kind] = replicas, sum_of_rates + each - before
        totals.appetite += target - old.target
        totals.micro_rate += micro_rate - old.micro_rate
        step, before = _step(micro_rate / MICRO), _step(old.micro_rate / MICRO)
        if step != before:
            _tally(totals.steps, before, -1)
            _tally(totals.steps, step, 1)
        if low != old.low_water:
            _rank(totals, worker.worker_id, part, worker.outstanding.get(variant_id, 0))

    def _add(self, worker: Worker, variant_id: VariantId, part: Part, sign: int) -> None:
        totals = self.of(variant_id)
        totals.wanting += sign * part.wanting
        for kind, micro_rate in part.live:
            replicas, sum_of_rates = totals.by_kind.get(kind, (0, 0))
            if replicas + sign:
                totals.by_kind[kind] = replicas + sign, sum_of_rates + sign * micro_rate
            else:
                del totals.by_kind[kind]
        if not part.capacity:
            return
        totals.serving += sign
        totals.appetite += sign * part.target
        totals.held += sign * worker.outstanding.get(variant_id, 0)
        if part.micro_rate:
            totals.rated += sign
            totals.micro_rate += sign * part.micro_rate
            step = _step(part.micro_rate / MICRO)
            _tally(totals.steps, step, sign)

    def _count_devices(self, worker: Worker, sign: int) -> None:
        kinds: dict[str, None] = {}
        for belief in worker.devices.values():
            shape = belief.device.kind, belief.device.memory_bytes
            _tally(self.shapes, shape, sign)
            kinds[belief.device.kind] = None
            self.devices += sign
        for kind in kinds:
            _tally(self.workers_with, kind, sign)

    # --- what must hold

    def check(self, workers: Iterable[Worker]) -> None:
        """Assert that all totals are what the workers, one by one, add up to."""
        true = Census(self.horizon_s)
        for worker in workers:
            copy = Worker(worker.worker_id, 0, "", worker.devices, 0.0, state=worker.state, rate=worker.rate)
            for variant_id, rows in worker.outstanding.items():
                true.count(copy, variant_id, rows)
            true.look(copy, worker.looked_at_s)
            assert copy.parts == worker.parts, f"{worker.worker_id} adds {copy.parts}, counted was {worker.parts}"
        assert true.shapes == self.shapes
        assert true.workers_with == self.workers_with
        assert true.devices == self.devices
        for variant_id in {**self._totals, **true._totals}:
            ours, theirs = self.of(variant_id), true.of(variant_id)
            assert sorted(ours.dry) == sorted(theirs.dry), f"{variant_id}: {[*ours.dry]} are dry, not {[*theirs.dry]}"
            assert sorted(ours.low) == sorted(theirs.low), f"{variant_id}: {[*ours.low]} are low, not {[*theirs.low]}"
            ours_plain, theirs_plain = _plain(ours), _plain(theirs)
            assert ours_plain == theirs_plain, f"{variant_id}: {ours_plain} is not {theirs_plain}"


def parts_of(worker: Worker, now: float, horizon_s: float) -> dict[VariantId, Part]:
    """What a live worker adds, for each variant that its devices hold or should hold."""
    parts: dict[VariantId, Part] = {}
    beliefs = worker.devices.values()
    for belief in beliefs:
        for variant_id in (*belief.wants, *belief.replicas):
            if variant_id not in parts:
                parts[variant_id] = _part(worker, beliefs, variant_id, now, horizon_s)
    return parts


def _part(worker: Worker, beliefs: Iterable[DeviceBelief], variant_id: VariantId, now: float, horizon_s: float) -> Part:
    capacity = wanting = 0
    kinds: list[str] = []
    for belief in beliefs:
        replica = belief.replicas.get(variant_id)
        live = replica is not None and replica.state is ReplicaState.LIVE
        if live:
            kinds.append(belief.device.kind)
        if belief.serves(variant_id, now):
            wanting += 1
            if live and replica is not None:
                capacity += replica.wanted
    rate = worker.rate.get(variant_id, 0.0)
    target = lease_target(capacity, rate, horizon_s) if capacity else 0
    each = int(MICRO * rate / len(kinds)) if kinds and rate else 0
    live_rates = tuple((kind, each) for kind in kinds) if each else ()
    return Part(capacity, target, low_water(target, capacity), int(MICRO * rate), wanting, live_rates)


def _rank(totals: Totals, worker_id: WorkerId, part: Part | None, held: int) -> None:
    """Put a worker among those that have room, or take it from there."""
    serves = part is not None and part.capacity > 0
    if serves and not held:
        totals.dry.setdefault(worker_id)
    elif totals.dry:
        totals.dry.pop(worker_id, None)
    if serves and part is not None and 0 < held <= part.low_water:
        totals.low.setdefault(worker_id)
    elif totals.low:
        totals.low.pop(worker_id, None)


def _tally(table: dict[Key, int], key: Key, more: int) -> None:
    table[key] = table.get(key, 0) + more
    if not table[key]:
        del table[key]


def _step(rate: float) -> int:
    """Where a rate is on a scale of octaves, each in equal steps."""
    mantissa, octave = frexp(rate)
    return octave * STEPS + int(mantissa * 2 * STEPS) - STEPS


def _plain(totals: Totals) -> tuple[object, ...]:
    return (
        totals.outstanding,
        totals.held,
        totals.appetite,
        totals.serving,
        totals.rated,
        totals.micro_rate,
        totals.wanting,
        totals.by_kind,
        totals.steps,
    )
