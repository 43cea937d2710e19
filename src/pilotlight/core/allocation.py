"""What follows from a belief: who should hold what, who gets which rows, what is read next.

The second half of the manager's machine: `scheduler` takes in what happened, this hands out. How choices are made is in
`policy/`; which rows leave where is here, so that no row is handed out twice but by a hedge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pilotlight.core.decisions import GrantRows, ManagerDecision, ReadRows, RevokeRows, SendWants
from pilotlight.core.model import Count, DeviceId, Job, JobId, Lease, Part, VariantId, Worker, WorkerId
from pilotlight.core.planning import Pace, Planner, Plans
from pilotlight.core.policy import sharing, sizing
from pilotlight.core.policy.fit import largest_bytes
from pilotlight.core.policy.tail import Tail
from pilotlight.core.ranges import IndexSet
from pilotlight.core.state import State
from pilotlight.core.transitions import LEASE, JobState, LeaseState, Level, step

WAY_S = 5.0
"""Others are not asked to make way for one job more often than this."""
ASKED_MAX = 256
REFUSALS_MAX = 16
"""So many workers with room may find nothing to do in one step, then the others wait for the next."""
LOOK_SMALL = 32
"""What is no larger than this is walked in each step."""
LOOK_S_EACH = 100e-6
"""What is larger, no oftener than once in this time for each thing to look at."""


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds. None of them needs tuning; tests and simulations vary them.

    silence_s: a worker that says nothing for so long is lost. horizon_s: how much work a lease covers beyond what
    replicas want in flight. hedge_after_s: how long rows must be silent before an idle worker repeats them.
    keep_alive_s: how long an idle variant stays live. epoch: the manager's; lease ids carry it, so that no two managers
    of a pool give out the same. workers_expected: how many the pool should have. pace: see there.
    """

    silence_s: float = 10.0
    horizon_s: float = 0.25
    hedge_after_s: float = 2.0
    keep_alive_s: float = 600.0
    epoch: int = 1
    workers_expected: int = 0
    pace: Pace = field(default_factory=Pace)


class Allocation:
    """Hands out work. Shares `state` with the scheduler that owns it; `begin` opens each of its steps."""

    def __init__(self, state: State, options: Options) -> None:
        self._state = state
        self._options = options
        self._out: list[ManagerDecision] = []
        self._now = 0.0
        self._clocks: dict[VariantId, float] = {}
        """The fair share's clock of each variant."""
        self._planner = Planner(state, options.keep_alive_s, options.pace)
        self._weighed_s = float("-inf")
        """When it was last weighed whom to ask."""
        self._asked_s: dict[str, float] = {}
        """When rows were last asked back for a job, and when on a variant."""
        self._tails: dict[VariantId, Tail] = {}

    def begin(self, now: float) -> list[ManagerDecision]:
        """A step begins: the list that its decisions go to."""
        self._now = now
        self._out = []
        if self._tails:
            self._tails = {v: tail for v, tail in self._tails.items() if now < tail.made_s + _look_s(tail.size)}
        return self._out

    # --- who holds what

    def place(self, *, anew: bool = False) -> None:
        """Demand changed. anew: by more than which variants are needed."""
        self._clocks = {v: clock for v, clock in self._clocks.items() if v in self._state.variants}
        self._carry_out(self._planner.changed(self._now, anew=anew))

    def place_on(self, worker: Worker, *, force: bool = False) -> None:
        """Something is new on a worker. force: tell it what to hold in any case."""
        self._state.census.look(worker, self._now)
        self._carry_out(self._planner.touched(self._now, worker), worker.worker_id if force else "")

    def place_without(self) -> None:
        """A worker is gone."""
        self._carry_out(self._planner.left(self._now))

    def keep_up(self) -> None:
        """Time passed: what was waited for may be over, what is kept too old."""
        for worker in self._planner.woken(self._now):
            self.place_on(worker)
        self._carry_out(self._planner.tick(self._now))

    def _carry_out(self, plans: Plans, force: WorkerId = "") -> None:
        """Tell workers whose wants changed what to hold now."""
        for worker, plan in plans:
            changed = worker.worker_id == force or plan.parks != worker.park_wants
            for device_id, device in plan.devices.items():
                belief = worker.devices[device_id]
                if device.wants == belief.wants:
                    continue
                if device.moved or not belief.wants:
                    belief.wants_since_s = self._now
                belief.wants = device.wants
                belief.was_live.intersection_update(device.wants)
                changed = True
            if changed:
                worker.park_wants = plan.parks
                worker.wants_version += 1
                wants = [(d, v, Level.LIVE) for d, belief in worker.devices.items() for v in belief.wants]
                wants += [("", variant_id, Level.PARKED) for variant_id in plan.parks]
                self._out.append(SendWants(worker.worker_id, worker.wants_version, tuple(wants), plan.why))
                self._state.census.look(worker, self._now)
                self.take_back(worker)

    def take_back(self, worker: Worker) -> None:
        """Ask for all unstarted rows that this worker is not to serve any more."""
        kept = {variant_id for belief in worker.devices.values() for variant_id in belief.wants}
        for lease_id in worker.leases:
            lease = self._state.leases[lease_id]
            if self._state.jobs[lease.job_id].variant_id not in kept:
                self.revoke(lease, None, "its context leaves the worker")

    def top_up_all(self, last: str = "") -> None:
        """Give work to all that have room, those that hold nothing first; `last`: this one after all others."""
        self._make_way()
        for variant_id in dict.fromkeys([job.variant_id for job in self._state.jobs.values()]):
            refusals = 0
            for name in self._with_room(variant_id, last):
                worker = self._state.workers[name]
                if not self._feed(worker, variant_id, worker.parts[variant_id]):
                    refusals += 1
                    if refusals == REFUSALS_MAX:
                        break

    def _with_room(self, variant_id: VariantId, last: WorkerId) -> Iterator[WorkerId]:
        """Workers that hold nothing, then others with room, a few at a time; `last` after all others.

        Each goes to the end of its queue, so that those that are not come to now are first the next time.
        """
        totals = self._state.census.of(variant_id)
        for queue in (totals.dry, totals.low):
            left = len(queue)
            while left > 0 and queue:
                names = list(islice(queue, min(left, LOOK_SMALL)))
                left -= len(names)
                held = {name: self._state.workers[name].outstanding.get(variant_id, 0) for name in names}
                for name in sorted(names, key=held.__getitem__) if queue is totals.low else names:
                    if name in queue:
                        queue.move_to_end(name)
                        if name != last:
                            yield name
        if last in totals.dry or last in totals.low:
            yield last

    def top_up(self, worker: Worker) -> None:
        """Give work to a worker that has room."""
        for variant_id, part in list(worker.parts.items()):
            if part.capacity and worker.outstanding.get(variant_id, 0) <= part.low_water:
                self._feed(worker, variant_id, part)

    def _feed(self, worker: Worker, variant_id: VariantId, part: Part) -> bool:
        """Find something to do for a worker that has room. False where there is nothing."""
        jobs = self._state.jobs_of(variant_id)
        isolated = self._isolate(worker, jobs)
        outstanding = worker.outstanding.get(variant_id, 0)
        hungry = [job for job in jobs if job.pending]
        if hungry:
            rows = min(part.target - outstanding, self._limit(worker, variant_id, jobs))
            if rows > 0:
                self._share_out(worker, variant_id, hungry, rows, part.target)
            return rows > 0 or isolated
        if outstanding <= part.capacity // 2 and self._steal(worker, variant_id):
            return True
        if outstanding:
            return isolated
        hedge = self._tail(variant_id).hedge_from(worker, part.capacity, self._now, self._options.hedge_after_s)
        if hedge is None:
            return False
        self._grant(worker, self._state.hedge(hedge[0], worker, hedge[1], self._now), "another worker is late")
        return True

    def _share_out(self, worker: Worker, variant_id: VariantId, hungry: list[Job], rows: int, target: int) -> None:
        """Grant rows to a worker that should hold `target`, divided among jobs that have some."""
        if not worker.outstanding.get(variant_id):  # it was idle: its rate is measured from now
            worker.counts[variant_id] = Count(self._now)
        clock = self._clocks.get(variant_id, 0.0)
        self._clocks[variant_id] = max(clock, min([job.virtual_time for job in hungry]))
        most: dict[JobId, int] = {}
        if len(hungry) > 1:
            appetite = max(job.appetite for job in hungry)
            most = sharing.last_rows(self._state, hungry, worker, min(1.0, target / max(appetite, 1)))
        for job, count in sharing.divide(hungry, rows, clock, most):
            lease = self._state.open_lease(job, worker, job.pending.take(count), self._now)
            self._grant(worker, lease, "it has room")
            self.read(job)

    def _limit(self, worker: Worker, variant_id: VariantId, jobs: list[Job]) -> int:
        """The most that a worker may have of the last rows, as long as results come; all, where more will come."""
        pending = sum([len(job.pending) for job in jobs])
        if pending > max([job.appetite for job in jobs]):
            return pending
        rate = worker.rate.get(variant_id)
        silent_s = self._now - self._state.used_at_s.get(variant_id, 0.0)
        if not rate or silent_s > self._options.hedge_after_s or not all(job.exhausted for job in jobs):
            return pending
        totals = self._state.census.of(variant_id)
        speed = totals.rate + rate * (totals.serving - totals.rated)
        own = worker.outstanding.get(variant_id, 0), rate
        return min(pending, sizing.last_rows(pending + totals.held, own, speed, max(rate, totals.fastest)))

    def _steal(self, worker: Worker, variant_id: VariantId) -> bool:
        """Ask another worker for rows that it has not started. False where there are none."""
        found = self._tail(variant_id).steal_from(worker)
        for lease, rows in found:
            self.revoke(lease, rows, "another worker would finish them sooner")
        return bool(found)

    def _tail(self, variant_id: VariantId) -> Tail:
        if variant_id not in self._tails:
            self._tails[variant_id] = Tail(self._state, variant_id, self._now)
        return self._tails[variant_id]

    def _make_way(self) -> None:
        """Ask rows back for jobs that hold none, where they would wait for long behind others."""
        for job in self._state.jobs.values():
            if job.leases or not job.pending or job.state is not JobState.RUNNING:
                continue
            if self._now < self._asked_s.get(job.variant_id, 0.0) + sharing.PATIENCE_S:
                continue
            if self._now < self._asked_s.get(job.job_id, -WAY_S) + WAY_S:
                continue
            if self._now < self._weighed_s + _look_s(len(self._state.workers)):
                return
            self._weighed_s = self._now
            for lease in sharing.make_way(self._state, job, self._now):
                self.revoke(lease, None, "another job's turn comes first")
                self._asked_s[job.variant_id] = self._asked_s[job.job_id] = self._now
        if len(self._asked_s) > ASKED_MAX:
            self._asked_s = {key: at for key, at in self._asked_s.items() if self._now < at + WAY_S}

    def _isolate(self, worker: Worker, jobs: list[Job]) -> bool:
        """Lease a group of suspects, of a job that has nothing else to hand out, to run with nothing beside them.

        One at a time; the worker runs it when its replica has finished what it was leased before. A row alone runs on
        another device than the one it died on last, of this worker or another, where there is one; one that ran out of
        memory on a larger one.
        """
        suspicious = [job for job in jobs if job.suspects and not job.pending]
        if not suspicious:
            return False
        if any(self._state.leases[lease_id].isolated for lease_id in worker.leases):
            return False
        for job, at in _in_question(suspicious):
            rows = job.suspects[at]
            avoid = self._avoid(worker, job, rows)
            if avoid and not self._others_serve(worker, avoid, job) and self._other_can(worker, job, rows):
                continue
            if len(rows) == 1 and self._larger_elsewhere(worker, job, next(rows.indices())):
                continue
            del job.suspects[at]
            lease = self._state.open_lease(job, worker, rows.spans(), self._now, isolated=True)
            self._grant(worker, lease, "its replica died with these rows: they run with nothing beside them", avoid)
            return True
        return False

    @staticmethod
    def _avoid(worker: Worker, job: Job, rows: IndexSet) -> tuple[DeviceId, ...]:
        """Devices of a worker that a row should not run on again: where it died last, or ran out of memory."""
        if len(rows) != 1:
            return ()
        index = next(rows.indices())
        died_on = job.died_on.get(index)
        last = died_on[-1][1] if died_on and died_on[-1][0] == worker.worker_id else ""
        outgrown = job.outgrown_bytes.get(index, 0)
        return tuple(d for d, b in worker.devices.items() if d == last or b.device.memory_bytes <= outgrown)

    def _larger_elsewhere(self, worker: Worker, job: Job, index: int) -> bool:
        """Whether a row ran out of memory alone on a device as large as this worker's, and another has a larger one."""
        outgrown = job.outgrown_bytes.get(index)
        if outgrown is None or largest_bytes([worker], job.variant_id, self._now) > outgrown:
            return False
        return largest_bytes(self._state.live_workers(), job.variant_id, self._now) > outgrown

    def _others_serve(self, worker: Worker, avoid: tuple[DeviceId, ...], job: Job) -> bool:
        """Whether a job's rows could run on another device of a worker than these."""
        others = (belief for other_id, belief in worker.devices.items() if other_id not in avoid)
        return any(belief.serves(job.variant_id, self._now) for belief in others)

    def _other_can(self, worker: Worker, job: Job, rows: IndexSet) -> bool:
        """Whether a job's rows could run on another worker, on a device that they need not avoid as well."""
        others = (other for other in self._state.live_workers() if other is not worker)
        return any(self._others_serve(other, self._avoid(other, job, rows), job) for other in others)

    def _grant(self, worker: Worker, lease: Lease, why: str, avoid: tuple[DeviceId, ...] = ()) -> None:
        spans = tuple(lease.open.spans())
        self._out.append(GrantRows(worker.worker_id, lease.lease_id, lease.job_id, spans, lease.isolated, why, avoid))

    def revoke(self, lease: Lease, rows: int | None, why: str = "its job drains") -> None:
        """Ask for unstarted rows of a lease back, unless that was asked already."""
        if lease.state is LeaseState.OPEN:
            lease.state = step(LEASE, lease.state, LeaseState.REVOKING)
            self._out.append(RevokeRows(lease.worker_id, lease.lease_id, rows, why))

    def read(self, job: Job) -> None:
        """Read on where the rows at hand would not fill all leases anew; and while devices stand by, as much again as
        was read: they are asked to load where the work that is known outlasts that."""
        totals = self._state.census.of(job.variant_id)
        job.appetite = totals.appetite
        if job.state is not JobState.RUNNING or job.exhausted or job.reading:
            return
        ahead = job.read_upto if totals.wanting < self._state.census.devices else 0
        rows = sizing.read_rows(len(job.pending), job.appetite, ahead)
        if rows:
            job.reading = True
            self._out.append(ReadRows(job.job_id, rows))


def _look_s(size: int) -> float:
    """How long what so many things add up to is good for."""
    return size * LOOK_S_EACH if size > LOOK_SMALL else 0.0


def _in_question(jobs: list[Job]) -> list[tuple[Job, int]]:
    """Groups of suspects, as job and place in its list: the fewest deaths first, each job's last group first."""

    def deaths(found: tuple[Job, int]) -> int:
        job, at = found
        return len(job.died_on.get(next(job.suspects[at].indices()), ()))

    return sorted(((job, at) for job in jobs for at in range(len(job.suspects) - 1, -1, -1)), key=deaths)
