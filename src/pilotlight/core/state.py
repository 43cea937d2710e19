"""The manager's belief, and `check()`, which states every invariant of it.

Changed by `scheduler.handle` only. The methods here keep the indexes (leases by worker and by job, rows outstanding)
true to each other; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.core.census import Census
from pilotlight.core.model import Job, JobId, Lease, LeaseId, Variant, VariantId, Worker, WorkerId
from pilotlight.core.ranges import IndexSet, Span, span_count
from pilotlight.core.transitions import LEASE, WORKER, JobState, LeaseState, WorkerState, step


@dataclass(slots=True)
class State:
    """All that the manager believes."""

    workers: dict[WorkerId, Worker] = field(default_factory=dict[WorkerId, Worker])
    jobs: dict[JobId, Job] = field(default_factory=dict[JobId, Job])
    leases: dict[LeaseId, Lease] = field(default_factory=dict[LeaseId, Lease])
    variants: dict[VariantId, Variant] = field(default_factory=dict[VariantId, Variant])
    measured_bytes: dict[VariantId, int] = field(default_factory=dict[VariantId, int])
    """The most that a live replica of a variant said it holds."""
    proved: set[VariantId] = field(default_factory=set[VariantId])
    """Variants that have had results."""
    proved_on: dict[VariantId, set[str]] = field(default_factory=dict[VariantId, set[str]])
    """The kinds of device that gave them."""
    used_at_s: dict[VariantId, float] = field(default_factory=dict[VariantId, float])
    uses: dict[VariantId, int] = field(default_factory=dict[VariantId, int])
    """How many jobs a variant has served."""
    pinned: set[VariantId] = field(default_factory=set[VariantId])
    """Variants that someone wants live wherever there is room, and that `keep_alive` does not end."""
    load_s: dict[tuple[VariantId, str, str], float] = field(default_factory=dict[tuple[VariantId, str, str], float])
    """How long loads took lately, by variant, kind of device and origin (`cold`, `staged`, `parked`, `asleep`)."""
    refusals: dict[tuple[VariantId, str], dict[WorkerId, str]] = field(
        default_factory=dict[tuple[VariantId, str], dict[WorkerId, str]]
    )
    """Which workers could not hold a variant on a kind of device, and why; outlives the workers."""
    evicted: set[VariantId] = field(default_factory=set[VariantId])
    """Variants that someone asked to leave; until a job or a pin needs them again."""
    troubled: dict[WorkerId, None] = field(default_factory=dict[WorkerId, None])
    """Workers that remember a load that failed or replicas that died in vain, and perhaps others."""
    lacking: dict[WorkerId, None] = field(default_factory=dict[WorkerId, None])
    """Workers with devices where some runtime can't run."""
    census: Census = field(default_factory=Census)
    epoch: int = 1
    leases_made: int = 0
    rows_lost: int = 0
    workers_lost: int = 0
    replicas_lost: int = 0

    # --- workers

    def add_worker(self, worker: Worker, now: float) -> None:
        """A worker is there."""
        self.workers[worker.worker_id] = worker
        if any(belief.device.lacks for belief in worker.devices.values()):
            self.lacking[worker.worker_id] = None
        self.census.look(worker, now)

    def drop_worker(self, worker: Worker, now: float) -> None:
        """A worker is gone, and its leases are void."""
        worker.state = step(WORKER, worker.state, WorkerState.LOST)
        self.census.look(worker, now)
        del self.workers[worker.worker_id]
        self.troubled.pop(worker.worker_id, None)
        self.lacking.pop(worker.worker_id, None)

    # --- leases

    def open_lease(
        self, job: Job, worker: Worker, spans: list[Span], now: float, *, isolated: bool = False, hedge: bool = False
    ) -> Lease:
        """Make a lease of rows that the caller has taken from where they were."""
        self.leases_made += 1
        lease = Lease(
            f"lease-{self.epoch}.{self.leases_made}",
            job.job_id,
            worker.worker_id,
            IndexSet(spans),
            now,
            now,
            isolated,
            hedge,
        )
        self.leases[lease.lease_id] = lease
        job.leases[lease.lease_id] = None
        worker.leases[lease.lease_id] = None
        self._count(lease, len(lease.open))
        return lease

    def shrink(self, lease: Lease, spans: Iterable[Span]) -> int:
        """Take rows out of a lease; an empty lease closes. Returns how many were in it."""
        taken = lease.open.discard(spans)
        if taken:
            self._count(lease, -taken)
        if not lease.open:
            self._close(lease)
        return taken

    def void(self, lease: Lease) -> int:
        """End a lease; rows that no other lease holds are pending again. Returns how many those are."""
        job = self.jobs[lease.job_id]
        rows = self.give_back(job, lease, lease.open.spans())
        if lease.lease_id in self.leases:
            self._close(lease)
        return rows

    def give_back(self, job: Job, lease: Lease, spans: Iterable[Span]) -> int:
        """Rows leave a lease unfinished: to pending, unless another lease holds them too. Returns how many went."""
        freed = IndexSet()
        for start, stop in spans:
            freed.update(lease.open.within(start, stop))
        self.shrink(lease, freed.spans())
        kept = self.unhedge(job, freed.spans())
        freed.discard(kept)
        if kept:
            self._settle_hedges(job, lease)
        job.pending.update(freed.spans())
        return len(freed)

    def unhedge(self, job: Job, spans: Iterable[Span]) -> list[Span]:
        """Rows that had two leases and lost one: the spans that the other still holds."""
        if not job.hedged:
            return []
        twice = IndexSet()
        for start, stop in spans:
            twice.update(job.hedged.within(start, stop))
        job.hedged.discard(twice.spans())
        return twice.spans()

    def hedge(self, lease: Lease, worker: Worker, spans: list[Span], now: float) -> Lease:
        """Lease rows of a lease to another worker as well."""
        job = self.jobs[lease.job_id]
        job.hedged.update(spans)
        second = self.open_lease(job, worker, spans, now, hedge=True)
        second.twins += (lease.lease_id,)
        lease.twins += (second.lease_id,)
        return second

    def _twins(self, lease: Lease) -> list[Lease]:
        return [self.leases[lease_id] for lease_id in lease.twins if lease_id in self.leases]

    def _settle_hedges(self, job: Job, lease: Lease) -> None:
        """A second lease whose rows nobody else holds any more is like any other: it may be taken back or repeated."""
        for twin in self._twins(lease):
            if twin.hedge and not any(job.hedged.within(*span) for span in twin.open):
                twin.hedge = False

    def _close(self, lease: Lease) -> None:
        if lease.open:
            self._count(lease, -len(lease.open))
        lease.state = step(LEASE, lease.state, LeaseState.CLOSED)
        del self.leases[lease.lease_id]
        self.jobs[lease.job_id].leases.pop(lease.lease_id)
        self.workers[lease.worker_id].leases.pop(lease.lease_id)

    def _count(self, lease: Lease, rows: int) -> None:
        job = self.jobs[lease.job_id]
        job.leased += rows
        self.census.count(self.workers[lease.worker_id], job.variant_id, rows)

    # --- rows

    def finish_rows(self, job: Job, spans: tuple[Span, ...], lease: Lease | None) -> None:
        """Rows are in the output: they leave whatever holds them."""
        count = span_count(spans)
        added = job.done.update(spans)
        assert added == count, f"{job.job_id}: rows were written twice: {spans}"
        if job.died_on:
            self._forget_deaths(job, spans, count)
        of_job = lease if lease is not None and lease.job_id == job.job_id else None
        if of_job is not None and self.shrink(of_job, spans) == count:
            if job.hedged.discard(spans):
                for twin in self._twins(of_job):
                    self.shrink(twin, spans)
            return
        found = job.pending.discard(spans) + job.failing.discard(spans)
        for group in job.suspects:
            found += group.discard(spans)
        job.suspects = [group for group in job.suspects if group]
        if found == count:
            return
        job.hedged.discard(spans)
        for lease_id in list(job.leases):  # a late result of a lease that is over, of rows that are leased again
            self.shrink(self.leases[lease_id], spans)

    def _forget_deaths(self, job: Job, spans: tuple[Span, ...], count: int) -> None:
        if count < len(job.died_on):
            over = [index for start, stop in spans for index in range(start, stop) if index in job.died_on]
        else:
            over = [index for index in job.died_on if index in job.done]
        for index in over:
            del job.died_on[index]
            job.outgrown_bytes.pop(index, None)
            job.attempts.pop(index, None)

    def drop_job(self, job: Job) -> None:
        """Forget a job and its leases."""
        for lease_id in list(job.leases):
            self._close(self.leases[lease_id])
        del self.jobs[job.job_id]

    # --- views

    def name_of(self, variant_id: VariantId) -> str:
        """What people call a variant."""
        variant = self.variants.get(variant_id)
        return variant.name if variant else variant_id

    def need_bytes(self, variant_id: VariantId) -> int:
        """Device memory that a variant takes: measured once it has been live anywhere, before that as declared."""
        return self.measured_bytes.get(variant_id) or self.variants[variant_id].memory_bytes

    def live_workers(self) -> list[Worker]:
        """Workers that may get work, in the order they joined."""
        return [worker for worker in self.workers.values() if worker.state is WorkerState.LIVE]

    def jobs_of(self, variant_id: VariantId) -> list[Job]:
        """Running jobs on a variant."""
        return [job for job in self.jobs.values() if job.variant_id == variant_id and job.state is JobState.RUNNING]

    def learn(self, variant: Variant) -> None:
        """Know a variant; where two hints of its need differ, the larger one counts."""
        known = self.variants.get(variant.variant_id)
        if known is None or variant.memory_bytes > known.memory_bytes:
            self.variants[variant.variant_id] = variant

    def in_use(self) -> set[VariantId]:
        """Variants that a job needs, someone pinned, or a worker holds in any way or is asked to."""
        used = self.pinned | {job.variant_id for job in self.jobs.values()}
        for worker in self.workers.values():
            used.update(worker.parked, worker.staged, worker.park_wants)
            for belief in worker.devices.values():
                used.update(belief.wants, belief.replicas)
        return used

    def forget_variants(self, unused_since_s: float) -> None:
        """Drop what is known of variants that nothing uses and no job used since then."""
        used = self.in_use()
        for variant_id in [v for v in self.variants if v not in used and self.used_at_s.get(v, 0.0) < unused_since_s]:
            del self.variants[variant_id]
            self.measured_bytes.pop(variant_id, None)
            self.used_at_s.pop(variant_id, None)
            self.uses.pop(variant_id, None)
            self.proved.discard(variant_id)
            self.proved_on.pop(variant_id, None)
            self.evicted.discard(variant_id)
            for key in [key for key in self.load_s if key[0] == variant_id]:
                del self.load_s[key]
            for worker in self.workers.values():
                for table in (worker.rate, worker.counts):
                    table.pop(variant_id, None)
                for belief in worker.devices.values():
                    belief.worked_on.discard(variant_id)
            self.clear_refusals(variant_id)
            self.census.forget(variant_id)

    def clear_refusals(self, variant_id: VariantId) -> None:
        """Devices may be asked for a variant again that they could not hold."""
        for key in [key for key in self.refusals if key[0] == variant_id]:
            del self.refusals[key]
        for worker_id in list(self.troubled):
            beliefs = self.workers[worker_id].devices.values()
            for belief in beliefs:
                belief.load_failures.pop(variant_id, None)
                belief.retry_at_s.pop(variant_id, None)
                belief.vain_deaths.pop(variant_id, None)
            if not any(b.load_failures or b.retry_at_s or b.vain_deaths for b in beliefs):
                del self.troubled[worker_id]

    def active_variants(self) -> list[VariantId]:
        """Variants that a job needs, in the order of those jobs' fair share."""
        jobs = sorted((job for job in self.jobs.values()), key=lambda job: job.virtual_time)
        return list(dict.fromkeys(job.variant_id for job in jobs))

    # --- what must hold

    def check(self) -> None:
        """Assert every invariant. For tests and simulations: costs time in proportion to the whole state."""
        for lease in self.leases.values():
            assert lease.open, f"{lease.lease_id} is empty and not closed"
            assert lease.worker_id in self.workers, f"{lease.lease_id} outlives its worker"
            assert lease.job_id in self.jobs, f"{lease.lease_id} outlives its job"
            assert lease.lease_id in self.workers[lease.worker_id].leases
            assert lease.lease_id in self.jobs[lease.job_id].leases
            assert lease.state is not LeaseState.CLOSED
        for worker in self.workers.values():
            self._check_worker(worker)
        for job in self.jobs.values():
            self._check_job(job)
        self.census.check(self.workers.values())
        assert self.troubled.keys() <= self.workers.keys()

    def _check_worker(self, worker: Worker) -> None:
        assert worker.state is not WorkerState.LOST, f"{worker.worker_id} is lost and still believed in"
        counts: dict[VariantId, int] = {}
        for lease_id in worker.leases:
            lease = self.leases[lease_id]
            variant_id = self.jobs[lease.job_id].variant_id
            counts[variant_id] = counts.get(variant_id, 0) + len(lease.open)
        believed = {variant_id: rows for variant_id, rows in worker.outstanding.items() if rows}
        assert believed == counts, f"{worker.worker_id}: outstanding {believed} is not {counts}"
        for belief in worker.devices.values():
            promised = sum(self.need_bytes(variant_id) for variant_id in belief.wants)
            trouble = belief.load_failures or belief.retry_at_s or belief.vain_deaths
            assert not trouble or worker.worker_id in self.troubled, (
                f"{worker.worker_id} is in trouble, and not known so"
            )
            alone = len(belief.wants) <= 1
            stays = worker.state is WorkerState.LIVE  # else nothing is promised anew, whatever is measured
            assert alone or not stays or promised <= belief.device.memory_bytes, (
                f"{worker.worker_id}/{belief.device.device_id} was promised {promised} bytes of "
                f"{belief.device.memory_bytes}"
            )

    def _check_job(self, job: Job) -> None:
        assert job.state in {JobState.RUNNING, JobState.DRAINING}, f"{job.job_id} ended and is still here"
        homes: list[tuple[str, IndexSet]] = [("pending", job.pending), ("failing", job.failing)]
        homes += [("suspect", group) for group in job.suspects]
        leased, twice = IndexSet(), IndexSet()
        for lease_id in job.leases:
            for start, stop in self.leases[lease_id].open:
                twice.update(leased.within(start, stop))
                leased.add(start, stop)
        held = sum(len(self.leases[lease_id].open) for lease_id in job.leases)
        assert held == job.leased, f"{job.job_id}: {held} rows are leased, {job.leased} are believed to be"
        assert twice == job.hedged, f"{job.job_id}: {twice} is leased twice, {job.hedged} is believed to be"
        homes.append(("leased", leased))
        seen = IndexSet()
        for name, rows in homes:
            for start, stop in rows:
                assert stop <= job.read_upto, f"{job.job_id}: {name} rows {start}..{stop} were never read"
                assert not job.done.within(start, stop), f"{job.job_id}: {name} rows in {start}..{stop} are done"
                assert seen.add(start, stop) == stop - start, (
                    f"{job.job_id}: {name} rows {start}..{stop} have two homes"
                )
        done = span_count(job.done.within(0, job.read_upto))
        assert len(seen) + done == job.read_upto, (
            f"{job.job_id}: of {job.read_upto} rows read {done} are done and {len(seen)} are somewhere"
        )
        for index, attempts in job.attempts.items():
            assert 0 <= attempts <= job.attempts_max, f"{job.job_id}: row {index} has {attempts} attempts"
