"""The end of a job: idle workers take back what slower ones have not started, then repeat what these would finish last.

Both take as much as lets thief and victim end together, by their measured rates, from the worker that would end last.
What reports no progress, or has no rate yet, is repeated once it has been silent for a while, the longest silent first.

A `Tail` is one look at all leases of a variant. Its heaps are put right as they are used: what is on top is weighed
again, and taken only if it is still on top then. So one look can serve many idle workers.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from pilotlight.core.model import Job, Lease, VariantId, Worker
from pilotlight.core.ranges import IndexSet, Span
from pilotlight.core.state import State
from pilotlight.core.transitions import LeaseState

MUCH_LATER = 1.5
"""Rows are repeated where the idle worker would have them this many times sooner."""
HEDGED_MIN = 64
HEDGED_PART = 20
"""Repeated rows that still report are at most so few, or one in twenty of those read."""
SKIPS_MAX = 8
"""So many leases are passed over for an idle worker that may not repeat them, then it waits for the next look."""


class _Victim(NamedTuple):
    """A worker that may have unstarted rows, in these leases, the newest first; who would end last comes first."""

    key: tuple[float, int]
    number: int
    worker: Worker
    leases: list[Lease]


class _Late(NamedTuple):
    """A lease whose rows may be repeated; the smallest key comes first."""

    key: float
    number: int
    lease: Lease


class Tail:
    """What may be taken back or repeated of a variant, as of one look. size: how many leases that were."""

    def __init__(self, state: State, variant_id: VariantId, now: float) -> None:
        self._state = state
        self._variant_id = variant_id
        self.made_s = now
        self._jobs = state.jobs_of(variant_id)
        self.size = sum(len(job.leases) for job in self._jobs)
        self._victims: list[_Victim] | None = None
        self._slow: list[_Late] | None = None
        self._silent: list[_Late] | None = None

    # --- rows to take back

    def steal_from(self, thief: Worker) -> list[tuple[Lease, int]]:
        """The leases to ask for unstarted rows, and for how many: of the worker that would end last."""
        if self._victims is None:
            self._victims = self._find_victims()
        own: _Victim | None = None
        heap = self._victims
        found: _Victim | None = None
        while heap and found is None:
            top = heap[0]
            if self._state.workers.get(top.worker.worker_id) is not top.worker or not _untouched(top.leases):
                heappop(heap)
            elif (key := self._end_key(top.worker)) != top.key:
                heapreplace(heap, top._replace(key=key))
            elif key[1] >= -1:
                heappop(heap)
            elif top.worker is thief:
                own = heappop(heap)
            else:
                found = top
        if own is not None:
            heappush(heap, own)
        if found is None:
            return []
        rows = _balance(thief, found.worker, self._variant_id)
        asked: list[tuple[Lease, int]] = []
        for lease in found.leases:
            if rows <= 0:
                break
            if lease.open:
                asked.append((lease, min(rows, len(lease.open))))
                rows -= len(lease.open)
        return asked

    def _find_victims(self) -> list[_Victim]:
        """Workers that may have rows that they have not started. Where an answer about those is still to come there is
        nothing more to ask for."""
        state = self._state
        found: list[_Victim] = []
        held = [state.leases[lease_id].worker_id for job in self._jobs for lease_id in job.leases]
        for number, worker_id in enumerate(dict.fromkeys(held)):
            worker = state.workers[worker_id]
            if worker.outstanding.get(self._variant_id, 0) <= 1:
                continue
            leases = [state.leases[lease_id] for lease_id in worker.leases]
            ours = [lease for lease in leases if self._is_ours(lease) and not lease.isolated]
            if any(lease.state is LeaseState.REVOKING for lease in ours):
                continue
            ours = [lease for lease in ours if not lease.all_started and not lease.hedge]
            if ours:
                found.append(_Victim(self._end_key(worker), number, worker, ours[::-1]))
        heapify(found)
        return found

    def _is_ours(self, lease: Lease) -> bool:
        return self._state.jobs[lease.job_id].variant_id == self._variant_id

    def _end_key(self, worker: Worker) -> tuple[float, int]:
        """When a worker would end, the last first; those without a rate before all others, by rows."""
        rows = worker.outstanding.get(self._variant_id, 0)
        rate = worker.rate.get(self._variant_id)
        return (-rows / rate if rate else float("-inf")), -rows

    # --- rows to repeat

    def hedge_from(
        self, idle: Worker, capacity: int, now: float, hedge_after_s: float
    ) -> tuple[Lease, list[Span]] | None:
        """Rows elsewhere to run a second time here: the last of a slow worker, else the longest silent."""
        return self._slow_rows(idle, capacity) or self._silent_rows(idle, capacity, now, hedge_after_s)

    def _hedgeable(self) -> list[Lease]:
        leases = [self._state.leases[lease_id] for job in self._jobs if job.may_hedge for lease_id in job.leases]
        return [lease for lease in leases if not lease.isolated and not lease.hedge]

    def _may_repeat(self, lease: Lease) -> bool:
        return lease.state is not LeaseState.CLOSED and not lease.hedge

    def _slow_rows(self, idle: Worker, capacity: int) -> tuple[Lease, list[Span]] | None:
        """The last rows of the worker that would end last, so many that both end together."""
        state, variant_id = self._state, self._variant_id
        if not idle.rate.get(variant_id) or not all(job.exhausted for job in state.jobs_of(variant_id)):
            return None
        if self._slow is None:
            keys = ((lease, self._end_key(state.workers[lease.worker_id])[0]) for lease in self._hedgeable())
            self._slow = [_Late(key, -n, lease) for n, (lease, key) in enumerate(keys) if key > float("-inf")]
            heapify(self._slow)
        skipped: list[_Late] = []
        best: tuple[Lease, IndexSet] | None = None
        heap = self._slow
        while heap and best is None and len(skipped) < SKIPS_MAX:
            top = heap[0]
            if not self._may_repeat(top.lease):
                heappop(heap)
                continue
            key = self._end_key(state.workers[top.lease.worker_id])[0]
            if key != top.key:
                heapreplace(heap, top._replace(key=key))
                continue
            job = state.jobs[top.lease.job_id]
            full = len(job.hedged) >= max(HEDGED_MIN, job.read_upto // HEDGED_PART)
            once = IndexSet() if full or top.lease.worker_id == idle.worker_id else _once(job, top.lease)
            if once:
                best = top.lease, once
            else:
                skipped.append(heappop(heap))
        _put_back(heap, skipped)
        if best is None:
            return None
        lease, once = best
        rows = min(_repeats(idle, state.workers[lease.worker_id], variant_id, capacity), capacity, len(once))
        return (lease, once.take(rows, last=True)) if rows > 0 else None

    def _silent_rows(
        self, idle: Worker, capacity: int, now: float, hedge_after_s: float
    ) -> tuple[Lease, list[Span]] | None:
        """The rows that have been silent longest, and for `hedge_after_s` at least."""
        if self._silent is None:
            self._silent = [_Late(_heard_s(lease), n, lease) for n, lease in enumerate(self._hedgeable())]
            heapify(self._silent)
        skipped: list[_Late] = []
        best: tuple[Lease, IndexSet] | None = None
        heap = self._silent
        while heap and best is None and len(skipped) < SKIPS_MAX:
            top = heap[0]
            if not self._may_repeat(top.lease):
                heappop(heap)
            elif (key := _heard_s(top.lease)) != top.key:
                heapreplace(heap, top._replace(key=key))
            elif now - key < hedge_after_s:
                break
            elif top.lease.worker_id != idle.worker_id and (
                once := _once(self._state.jobs[top.lease.job_id], top.lease)
            ):
                best = top.lease, once
            else:
                skipped.append(heappop(heap))
        _put_back(heap, skipped)
        return (best[0], best[1].take(capacity)) if best else None


def _put_back(heap: list[_Late], skipped: list[_Late]) -> None:
    for late in skipped:
        heappush(heap, late)


def _heard_s(lease: Lease) -> float:
    return max(lease.granted_at_s, lease.last_result_at_s)


def _untouched(leases: list[Lease]) -> bool:
    """Whether none was asked for its unstarted rows yet, and one is still open."""
    here = [lease for lease in leases if lease.state is not LeaseState.CLOSED]
    return bool(here) and all(lease.state is LeaseState.OPEN and not lease.all_started for lease in here)


def _balance(thief: Worker, victim: Worker, variant_id: VariantId) -> int:
    """Rows to move so that both end together; half of them if a rate is unknown; one if that ends sooner here."""
    theirs, ours = victim.outstanding.get(variant_id, 0), thief.outstanding.get(variant_id, 0)
    slow, fast = victim.rate.get(variant_id), thief.rate.get(variant_id)
    if not slow or not fast:
        return (theirs - ours) // 2
    rows = int((theirs * fast - ours * slow) / (slow + fast))
    return rows or int((ours + 1) / fast < theirs / slow)


def _once(job: Job, lease: Lease) -> IndexSet:
    """Rows of a lease that no other lease holds."""
    once = lease.open.copy()
    if job.hedged:
        for start, stop in lease.open:
            once.discard(job.hedged.within(start, stop))
    return once


def _repeats(idle: Worker, victim: Worker, variant_id: VariantId, capacity: int) -> int:
    """How many of a slow worker's rows an idle one would have much sooner.

    Rows that were not begun take here what their number says. Begun ones may be nearly done, and a replica that runs
    many at once takes as long for one as for all: then this worker must be much faster itself.
    """
    theirs = victim.outstanding[variant_id]
    slow, fast = victim.rate[variant_id], idle.rate[variant_id]
    end_s = theirs / slow
    rows = max(1, int(theirs * fast / (slow + fast)))
    if end_s >= MUCH_LATER * max(rows, capacity) / fast:
        return rows
    rows = min(rows, theirs - min(victim.started, theirs))
    return rows if rows and end_s >= MUCH_LATER * rows / fast else 0
