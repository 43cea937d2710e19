"""Who gets which devices, where several variants are wanted.

Work goes where contexts are: what a device holds and is needed stays. Then, the least served first, each takes more
devices with room as long as its work would last longer than the load. Where there is no room, devices are divided by
weighted fair share: a variant with none gets one from the most over-served; further ones move while that makes the
shares more even and the work outlasts the switch. With fewer devices than variants they take turns, in slices of time
in proportion to weight that make loads cheap beside the work. Who is about to be done is let finish first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from pilotlight.core.model import DeviceBelief, VariantId, Worker
from pilotlight.core.policy.estimate import Estimates, finish_s, origin
from pilotlight.core.policy.fit import Fitness
from pilotlight.core.state import State
from pilotlight.core.transitions import JobState, ReplicaState

SLICE_LOADS = 10.0
"""A device serves what it holds for at least this many load times before it changes over."""
SLICE_S_MIN = 5.0
RIPE_LOADS = 2.0
"""Shares are evened out by devices that have served for this many load times."""
BALANCE_PART = 8
"""So many of the devices, one in eight, change over at once to even out shares: what they teach counts for the rest."""
READY_STEPS = 8
"""Devices that are ready at nearly the same time are added up: within an eighth of the wait's octave."""
LOAD_MARGIN = 1.25
"""A device is worth loading where the work would last this many times longer than the load."""


@dataclass(slots=True, eq=False)
class Slot:
    """A device while it is decided what it is to hold. `fixed_bytes`: taken already, by what is more important."""

    worker: Worker
    belief: DeviceBelief
    claims: list[Claim] = field(default_factory=list["Claim"])
    fixed_bytes: int = 0
    fixed: int = 0
    moved: bool = False
    """It changed over just now."""


@dataclass(slots=True, eq=False)
class Claim:
    """A variant that wants devices. rows: left to do, as far as known; `exact`: there are no more."""

    variant_id: VariantId
    weight: float
    rows: float
    exact: bool
    grows: bool
    """Whether it may get more devices than it holds."""
    used_at_s: float
    slots: dict[Slot, None] = field(default_factory=dict[Slot, None])
    rates: dict[float, float] | None = None
    """Rows per second of its devices, by when they are ready (`READY_STEPS`); None: to be added up anew."""
    displaced: bool = False
    elsewhere: int = 0
    """Devices that hold it and are not planned now; what those do: `replicas_elsewhere`, as (ready after s, rows/s)."""
    replicas_elsewhere: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @property
    def devices(self) -> int:
        """Devices that are to hold it."""
        return len(self.slots) + self.elsewhere

    @property
    def served(self) -> float:
        """Devices per unit of weight."""
        return self.devices / self.weight


def job_claims(state: State, estimates: Estimates) -> list[Claim]:
    """A claim for each variant that a job needs, the longest unused first."""
    claims: list[Claim] = []
    for variant_id in state.active_variants():
        jobs = [job for job in state.jobs.values() if job.variant_id == variant_id]
        running = [job for job in jobs if job.state is JobState.RUNNING]
        weight = math.fsum(job.weight for job in running or jobs)
        rows, exact = estimates.rows_left(variant_id)
        claims.append(Claim(variant_id, weight, rows, exact, bool(running), state.used_at_s.get(variant_id, 0.0)))
    return sorted(claims, key=lambda claim: claim.used_at_s)


def pin_claims(state: State) -> list[Claim]:
    """A claim for each variant that someone pinned and no job needs."""
    needed = set(state.active_variants())
    return [Claim(v, 1.0, float("inf"), exact=True, grows=True, used_at_s=0.0) for v in sorted(state.pinned - needed)]


class Partition:
    """Divides `slots` among `claims`: fills in `slot.claims` and `claim.slots`."""

    def __init__(
        self, slots: list[Slot], claims: list[Claim], fitness: Fitness, estimates: Estimates, now: float
    ) -> None:
        self._slots = slots
        self._claims = claims
        self._fitness = fitness
        self._estimates = estimates
        self._now = now
        self._ripe_slots: dict[tuple[VariantId, VariantId], list[Slot]] = {}
        """By who gives and who takes: devices that were ripe when first looked at, the nearest last."""

    def hold(self) -> None:
        """Keep what devices were asked to hold and may hold on."""
        by_id = {claim.variant_id: claim for claim in self._claims}
        for slot in self._slots:
            for variant_id in slot.belief.wants:
                claim = by_id.get(variant_id)
                if claim and self._fitness.may_hold(slot.belief, variant_id) and self._has_room(slot, claim):
                    self._put(slot, claim)

    def spread(self) -> None:
        """Give room that nobody needs to whoever is served least and gains by it."""
        queue = [(claim.served, n) for n, claim in enumerate(self._claims) if claim.grows]
        heapify(queue)
        candidates: dict[int, list[Slot]] = {}
        while queue:
            _, n = heappop(queue)
            claim = self._claims[n]
            if n not in candidates:
                candidates[n] = self._by_cost(claim)[::-1]
            while candidates[n]:
                slot = candidates[n].pop()
                if self._has_room(slot, claim):
                    if self._gains(claim, slot):
                        self._put(slot, claim)
                        heappush(queue, (claim.served, n))
                    break

    def rescue(self, *, turns: bool) -> None:
        """Give those with no device one of the most over-served, or (`turns`) one whose turn it is."""
        waiting = [claim for claim in self._claims if claim.grows and not claim.slots and claim.rows > 0]
        for claim in waiting:
            slot = self._donor(claim) or (self._turn(claim, waiting) if turns else None)
            if slot is not None:
                self._take(slot, claim)
        if any(claim.displaced for claim in self._claims):
            self.spread()

    def balance(self) -> None:
        """Move devices from those with more than their share to those with less, as long as both sides gain by it."""
        for _ in range(max(1, len(self._slots) // BALANCE_PART)):
            move = self._fairer()
            if move is None:
                return
            self._take(*move)

    # --- who gives what

    def _donor(self, claim: Claim) -> Slot | None:
        """The device to take for a claim that has none: of the most over-served, who keeps one or finds another."""
        best: tuple[tuple[float, float, float], Slot] | None = None
        for slot in [slot for slot in self._slots if self._usable(slot, claim)]:
            victims = self._victims(slot, claim)
            if any(self._ends_soon(v, slot, claim) for v in victims):
                continue
            if not all(len(v.slots) > 1 or self._finds_another(v, slot) for v in victims):
                continue
            served = max((v.served for v in victims), default=0.0)
            rank = (-served, self._cost(claim, slot), slot.belief.wants_since_s)
            if best is None or rank < best[0]:
                best = rank, slot
        return best[1] if best else None

    def _turn(self, claim: Claim, waiting: list[Claim]) -> Slot | None:
        """The device whose present holders have been served longest beyond their slice."""
        lightest = min(other.weight for other in waiting)
        best: tuple[float, Slot] | None = None
        for slot in [slot for slot in self._slots if self._usable(slot, claim)]:
            victims = self._victims(slot, claim)
            held_s = self._now - slot.belief.wants_since_s
            weight = max((v.weight for v in victims), default=lightest)
            due = held_s / (self._slice_s(slot, claim) * max(1.0, weight / min(lightest, weight)))
            if due < 1.0 or any(self._ends_soon(v, slot, claim) for v in victims):
                continue
            if best is None or due > best[0]:
                best = due, slot
        return best[1] if best else None

    def _fairer(self) -> tuple[Slot, Claim] | None:
        """A device that changes over to a variant that is still served no better than the one that loses it."""
        for claim in sorted((c for c in self._claims if c.grows and c.slots), key=lambda c: c.served):
            after = (len(claim.slots) + 1) / claim.weight
            givers = [g for g in self._claims if g is not claim and (len(g.slots) - 1) / g.weight >= after]
            for giver in sorted(givers, key=lambda g: -g.served):
                nearest = self._nearest_ripe(giver, claim)
                if nearest is not None and self._gains(claim, nearest):
                    return nearest, claim
        return None

    def _nearest_ripe(self, giver: Claim, claim: Claim) -> Slot | None:
        """The device of a giver that would serve a claim soonest. A plan moves many: they are ranked once."""
        key = giver.variant_id, claim.variant_id
        if key not in self._ripe_slots:
            ripe = [slot for slot in giver.slots if self._ripe(slot, claim)]
            self._ripe_slots[key] = sorted(ripe, key=lambda slot: self._cost(claim, slot))[::-1]
        ripe = self._ripe_slots[key]
        while ripe and not (ripe[-1] in giver.slots and self._ripe(ripe[-1], claim)):
            ripe.pop()
        return ripe[-1] if ripe else None

    def _ripe(self, slot: Slot, claim: Claim) -> bool:
        """Whether a device may change over from one that has others, to `claim`: not soon after it did so last."""
        if claim in slot.claims or not self._usable(slot, claim):
            return False
        after = (len(claim.slots) + 1) / claim.weight
        victims = self._victims(slot, claim)
        if any((len(v.slots) - 1) / v.weight < after or self._ends_soon(v, slot, claim) for v in victims):
            return False
        loading = any(self._estimates.ready_s(slot.worker, slot.belief, v.variant_id) > 0.0 for v in victims)
        return not loading and self._now - slot.belief.wants_since_s >= self._slice_s(slot, claim, RIPE_LOADS)

    def _usable(self, slot: Slot, claim: Claim) -> bool:
        """Whether a variant could have a device, whoever has to leave it."""
        if slot.moved or not self._fitness.may_hold(slot.belief, claim.variant_id):
            return False
        room = slot.belief.device.memory_bytes - slot.fixed_bytes
        return not slot.fixed or self._fitness.need_bytes(slot.belief, claim.variant_id) <= room

    def _finds_another(self, claim: Claim, leaving: Slot) -> bool:
        """Whether a claim that loses its only device finds room on another. Once in a plan, so that it ends."""
        if claim.displaced:
            return False
        may_hold = self._fitness.may_hold
        return any(
            slot is not leaving and may_hold(slot.belief, claim.variant_id) and self._has_room(slot, claim)
            for slot in self._slots
        )

    def _ends_soon(self, victim: Claim, slot: Slot, claim: Claim) -> bool:
        """Whether a variant will be done before another would be loaded in its place; believed while results come."""
        load_s = self._estimates.load_s(slot.worker, slot.belief, claim.variant_id)
        if not victim.exact or self._now - victim.used_at_s > load_s:
            return False
        return self._finish_s(victim) <= load_s

    # --- what it costs, and what it brings

    def _gains(self, claim: Claim, slot: Slot) -> bool:
        """Whether a variant would be done sooner with one more device, by enough to be worth the load."""
        if not claim.devices:
            return True
        if claim.devices >= claim.rows:
            return False
        end = self._finish_s(claim)
        return end > LOAD_MARGIN * self._cost(claim, slot)

    def _finish_s(self, claim: Claim) -> float:
        """When all that is left of a variant would be done by the devices that it has; infinite where none is rated."""
        if claim.rates is None:
            claim.rates = {}
            for ready_s, rate in claim.replicas_elsewhere:
                claim.rates[ready_s] = claim.rates.get(ready_s, 0.0) + rate
            for slot in claim.slots:
                self._add_rate(claim.rates, claim, slot)
        return finish_s(claim.rows, claim.rates.items())

    def _add_rate(self, rates: dict[float, float], claim: Claim, slot: Slot) -> None:
        rate = self._estimates.rate(slot.worker, slot.belief, claim.variant_id)
        if rate:
            mantissa, octave = math.frexp(self._estimates.ready_s(slot.worker, slot.belief, claim.variant_id))
            ready_s = math.ldexp(round(mantissa * 2 * READY_STEPS) / (2 * READY_STEPS), octave)
            rates[ready_s] = rates.get(ready_s, 0.0) + rate

    def _cost(self, claim: Claim, slot: Slot) -> float:
        """Seconds until a device would serve a variant, and to bring back the idle ones that it would displace."""
        worker, belief = slot.worker, slot.belief
        cost = self._estimates.ready_s(worker, belief, claim.variant_id)
        need = self._fitness.need_bytes(belief, claim.variant_id)
        idle = {v: r for v, r in belief.replicas.items() if r.state is ReplicaState.LIVE and not self._claimed(v)}
        idle.pop(claim.variant_id, None)
        taken = sum(replica.memory_bytes for replica in idle.values()) + slot.fixed_bytes
        if idle and need + taken > belief.device.memory_bytes:
            cost += math.fsum(self._estimates.load_s(worker, belief, v) for v in idle)
        return cost

    def _by_cost(self, claim: Claim) -> list[Slot]:
        """Devices with room for one more variant, the best first: soon there, little else to do, fast."""
        usable = [slot for slot in self._slots if self._usable(slot, claim) and claim not in slot.claims]
        found = [slot for slot in usable if self._has_room(slot, claim)]

        def rank(slot: Slot) -> tuple[float, int, float]:
            rate = self._estimates.rate(slot.worker, slot.belief, claim.variant_id) or 0.0
            return self._cost(claim, slot), slot.fixed + len(slot.claims), -rate

        return sorted(found, key=rank)

    def _slice_s(self, slot: Slot, claim: Claim, loads_min: float = SLICE_LOADS) -> float:
        """How long a device serves what it holds before another variant's turn, in seconds, at the least weight."""
        belief = slot.belief
        loads = [belief.replicas[v.variant_id].load_s for v in slot.claims if v.variant_id in belief.replicas]
        place = origin(slot.worker, belief, claim.variant_id)
        loads.append(self._estimates.measured_load_s(claim.variant_id, belief.device.kind, place) or 0.0)
        return max(SLICE_S_MIN, loads_min * max(loads))

    # --- room

    def _claimed(self, variant_id: VariantId) -> bool:
        return any(claim.variant_id == variant_id for claim in self._claims)

    def _has_room(self, slot: Slot, claim: Claim) -> bool:
        return self._room(slot) >= self._need_beside(slot, claim)

    def _room(self, slot: Slot) -> int:
        taken = sum(self._fitness.need_bytes(slot.belief, claim.variant_id) for claim in slot.claims)
        return slot.belief.device.memory_bytes - slot.fixed_bytes - taken

    def _need_beside(self, slot: Slot, claim: Claim) -> int:
        """Room that a variant needs; any will do on an empty device: the device has the last word."""
        alone = not slot.claims and not slot.fixed
        need = self._fitness.need_bytes(slot.belief, claim.variant_id)
        return min(need, slot.belief.device.memory_bytes) if alone else need

    def _victims(self, slot: Slot, claim: Claim) -> list[Claim]:
        """Who has to leave a device so that a variant fits: the most over-served first, no more than needed."""
        if claim in slot.claims:
            return []
        need = self._fitness.need_bytes(slot.belief, claim.variant_id)
        room = self._room(slot)
        victims: list[Claim] = []
        for other in sorted(slot.claims, key=lambda other: -other.served):
            if need <= room:
                break
            victims.append(other)
            room += self._fitness.need_bytes(slot.belief, other.variant_id)
        return victims

    def _put(self, slot: Slot, claim: Claim) -> None:
        slot.claims.append(claim)
        claim.slots[slot] = None
        if claim.rates is not None:
            self._add_rate(claim.rates, claim, slot)

    def _take(self, slot: Slot, claim: Claim) -> None:
        """A device changes over to a variant."""
        for victim in self._victims(slot, claim):
            slot.claims.remove(victim)
            del victim.slots[slot]
            victim.rates = None
            victim.displaced = True
        slot.moved = True
        self._put(slot, claim)
