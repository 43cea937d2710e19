"""What follows from a belief: who should hold what, who gets which rows, what is read next.

The second half of the manager's machine: `scheduler` takes in what happened, this hands out. How choices are made is in
`policy/`; which rows leave where is here, so that no row is handed out twice but by a hedge.
"""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core.decisions import GrantRows, ManagerDecision, ReadRows, RevokeRows, SendWants
from pilotlight.core.model import Job, Lease, VariantId, Worker
from pilotlight.core.policy import placement, sharing, sizing, tail
from pilotlight.core.state import State
from pilotlight.core.transitions import LEASE, JobState, LeaseState, Level, WorkerState, step


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds. None of them needs tuning; tests and simulations vary them.

    silence_s: a worker that says nothing for so long is lost. horizon_s: how much work a lease covers beyond what
    replicas want in flight. hedge_after_s: how long rows must be silent before an idle worker repeats them.
    keep_alive_s: how long an idle variant stays live. epoch: the manager's; lease ids carry it, so that no two managers
    of a pool give out the same. workers_expected: how many the pool should have.
    """

    silence_s: float = 10.0
    horizon_s: float = 0.25
    hedge_after_s: float = 2.0
    keep_alive_s: float = 600.0
    epoch: int = 1
    workers_expected: int = 0


class Allocation:
    """Hands out work. Shares `state` with the scheduler that owns it; `begin` opens each of its steps."""

    def __init__(self, state: State, options: Options) -> None:
        self._state = state
        self._options = options
        self._out: list[ManagerDecision] = []
        self._now = 0.0

    def begin(self, now: float) -> list[ManagerDecision]:
        """A step begins: the list that its decisions go to."""
        self._now = now
        self._out = []
        return self._out

    def place(self, force: str = "") -> None:
        """Tell workers whose wants changed what to hold now; `force`: tell this one in any case."""
        for worker in self._state.live_workers():
            changed = worker.worker_id == force
            for belief in worker.devices.values():
                choice = placement.place(self._state, belief, self._now, self._options.keep_alive_s)
                if choice.wants == belief.wants:
                    continue
                if choice.rotated or not belief.wants:
                    belief.wants_since_s = self._now
                belief.wants = choice.wants
                belief.was_live.intersection_update(choice.wants)
                changed = True
            if changed:
                worker.wants_version += 1
                pairs = tuple((d, v, Level.LIVE) for d, belief in worker.devices.items() for v in belief.wants)
                self._out.append(SendWants(worker.worker_id, worker.wants_version, pairs))
                self.take_back(worker)

    def take_back(self, worker: Worker) -> None:
        """Ask for all unstarted rows that this worker is not to serve any more."""
        kept = {variant_id for belief in worker.devices.values() for variant_id in belief.wants}
        for lease_id in worker.leases:
            lease = self._state.leases[lease_id]
            if self._state.jobs[lease.job_id].variant_id not in kept:
                self.revoke(lease, None)

    def top_up_all(self, last: str = "") -> None:
        """Give work to all that have room, the emptiest first; `last`: this one after all others."""
        workers = self._state.live_workers()
        for worker in sorted(workers, key=lambda w: (w.worker_id == last, sum(w.outstanding.values()))):
            self.top_up(worker)

    def top_up(self, worker: Worker) -> None:
        """Give work to a worker that has room."""
        if worker.state is not WorkerState.LIVE:
            return
        for variant_id in {v: None for belief in worker.devices.values() for v in belief.replicas}:
            capacity = worker.capacity(variant_id, self._now)
            if capacity:
                self._feed(worker, variant_id, capacity)

    def _feed(self, worker: Worker, variant_id: VariantId, capacity: int) -> None:
        state = self._state
        outstanding = worker.outstanding.get(variant_id, 0)
        target = self._target(worker, variant_id, capacity)
        if not sizing.wants_more(outstanding, target, capacity):
            return
        jobs = state.jobs_of(variant_id)
        self._isolate(worker, jobs)
        hungry = [job for job in jobs if job.pending]
        if hungry:
            for job, rows in sharing.divide(hungry, target - outstanding):
                self._grant(worker, state.open_lease(job, worker, job.pending.take(rows), self._now))
                self.read(job, weigh=False)
            return
        if worker.outstanding.get(variant_id, 0):
            return
        found = tail.steal_from(state, worker, variant_id)
        if found is not None:
            self.revoke(*found)
            return
        hedge = tail.hedge_from(state, worker, variant_id, capacity, self._now, self._options.hedge_after_s)
        if hedge is not None:
            lease, spans = hedge
            job = state.jobs[lease.job_id]
            job.hedged.update(spans)
            self._grant(worker, state.open_lease(job, worker, spans, self._now, hedge=True))

    def _isolate(self, worker: Worker, jobs: list[Job]) -> None:
        """Lease a group of suspects, of a job that has nothing else to hand out, to run with nothing beside them.

        One at a time; the worker runs it when its replica has finished what it was leased before.
        """
        suspicious = [job for job in jobs if job.suspects and not job.pending]
        if not suspicious or any(self._state.leases[lease_id].isolated for lease_id in worker.leases):
            return
        for job in suspicious:
            for at in range(len(job.suspects) - 1, -1, -1):
                rows = job.suspects[at]
                died_on = job.died_on.get(rows.spans()[0][0])
                if len(rows) == 1 and died_on and died_on[-1][0] == worker.worker_id and self._other_can(worker, job):
                    continue
                del job.suspects[at]
                self._grant(worker, self._state.open_lease(job, worker, rows.spans(), self._now, isolated=True))
                return

    def _other_can(self, worker: Worker, job: Job) -> bool:
        others = (w for w in self._state.live_workers() if w is not worker)
        return any(w.capacity(job.variant_id, self._now) for w in others)

    def _grant(self, worker: Worker, lease: Lease) -> None:
        grant = GrantRows(worker.worker_id, lease.lease_id, lease.job_id, tuple(lease.open.spans()), lease.isolated)
        self._out.append(grant)

    def revoke(self, lease: Lease, rows: int | None) -> None:
        """Ask for unstarted rows of a lease back, unless that was asked already."""
        if lease.state is LeaseState.OPEN:
            lease.state = step(LEASE, lease.state, LeaseState.REVOKING)
            self._out.append(RevokeRows(lease.worker_id, lease.lease_id, rows))

    def read(self, job: Job, *, weigh: bool = True) -> None:
        """Read on where the rows at hand would not fill all leases anew.

        Weighing that looks at every worker, so a grant goes by what was weighed last, a tick ago at most.
        """
        if job.exhausted or job.reading or job.state is not JobState.RUNNING:
            return
        if weigh:
            job.appetite = sum(
                self._target(worker, job.variant_id, worker.capacity(job.variant_id, self._now))
                for worker in self._state.live_workers()
            )
        rows = sizing.read_rows(len(job.pending), job.appetite)
        if rows:
            job.reading = True
            self._out.append(ReadRows(job.job_id, rows))

    def _target(self, worker: Worker, variant_id: VariantId, capacity: int) -> int:
        """Rows of a variant that a worker should hold."""
        return sizing.lease_target(capacity, worker.rate.get(variant_id, 0.0), self._options.horizon_s)
