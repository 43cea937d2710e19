"""The manager's machine: `Scheduler.handle(event, now) -> decisions`.

One event changes the belief (`state`), then the parts of the world that it touched are looked at again: wants where
devices or demand changed, grants for workers that have room, reading where rows run short (all three in `allocation`),
the end of jobs that have no row left. What to believe is in the handlers here.
"""

from __future__ import annotations

from pilotlight.core import events as ev
from pilotlight.core.allocation import Allocation, Options
from pilotlight.core.blame import Blame
from pilotlight.core.census import Census
from pilotlight.core.decisions import (
    DropWorker,
    EndJob,
    ManagerDecision,
    Note,
)
from pilotlight.core.fetches import Fetches
from pilotlight.core.model import (
    SLEPT_S,
    Copy,
    Count,
    DeviceBelief,
    Job,
    Lease,
    Replica,
    VariantId,
    Worker,
    WorkerId,
)
from pilotlight.core.policy import retry, sharing
from pilotlight.core.ranges import span_count
from pilotlight.core.recovery import job_from, worker_from
from pilotlight.core.silence import Silence
from pilotlight.core.state import State
from pilotlight.core.transitions import (
    JOB,
    LEASE,
    REPLICA,
    WORKER,
    JobState,
    LeaseState,
    Level,
    ReplicaState,
    WorkerState,
    step,
)

FORGET_S = 3600.0
"""For how long at least something is known of a variant that nobody uses."""
RATE_S = 0.2
"""A worker's rate is measured over at least so long."""
SAME_RATE = 1 / 32
"""A rate that moved by no more than this part of it is the same: totals need not be told."""
_FROM = {"parked": "from memory", "staged": "from the disk's cache", "asleep": "waking it"}


class Scheduler:
    """The pure machine. `state` may be read by anyone and changed by nobody else."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.state = State(census=Census(self.options.horizon_s), epoch=self.options.epoch)
        self._allocation = Allocation(self.state, self.options)
        self._blame = Blame(self.state, self.options.workers_expected)
        self._fetches = Fetches()
        self._out: list[ManagerDecision] = []
        self._now = 0.0
        self._forget_at_s = FORGET_S
        self._silence = Silence()
        """When each worker, if it is not heard of until then, is to be looked at; a heap."""

    def listened(self, now: float) -> None:
        """Nothing happened up to `now`, and somebody listened: it did not sleep, though no tick came."""
        self._now = max(self._now, now)

    def handle(self, event: ev.ManagerEvent, now: float) -> list[ManagerDecision]:  # noqa: C901, PLR0912 - one line per event
        """Take in what happened at `now` (seconds, never decreasing) and say what to do about it."""
        assert now >= self._now, "time went backwards"
        slept_s, self._now = now - self._now, now
        self._out = self._allocation.begin(now)
        self._blame.begin(self._out, now)
        self._fetches.begin(self._out, now)
        if slept_s >= SLEPT_S:
            self._slept(slept_s)
        match event:
            case ev.RowsWritten():
                self._rows_written(event)
            case ev.WorkerHeard():
                self._heard(event)
            case ev.ReplicaReported():
                self._replica_reported(event)
            case ev.RowsReturned():
                self._rows_returned(event)
            case ev.RowsRead():
                self._rows_read(event)
            case ev.WorkerJoined():
                self._worker_joined(event)
            case ev.WorkerLost():
                self._worker_lost(event)
            case ev.PilotEnded():
                pass  # its connection's loss is what counts
            case ev.WorkerLeaving():
                self._worker_leaving(event)
            case ev.ReplicaStopped():
                self._replica_stopped(event)
            case ev.ReplicaDied():
                self._replica_died(event)
            case ev.LoadFailed():
                self._load_failed(event)
            case ev.JobSubmitted():
                self._job_submitted(event)
            case ev.JobCancelled():
                self._job_cancelled(event)
            case ev.JobBroken():
                self._job_broken(event)
            case ev.CopyReported() | ev.VariantPinned() | ev.VariantEvicted():
                self._residence(event)
            case ev.SourceAsked(worker_id, variant_id, remote):
                self._fetches.asked(worker_id, variant_id, remote=remote)
            case ev.CopyFailedAt(worker_id, variant_id, source):
                self._fetches.failed(worker_id, variant_id, source)
            case ev.Tick():
                self._tick()
        return self._out

    # --- rows

    def _rows_written(self, event: ev.RowsWritten) -> None:
        state = self.state
        worker = state.workers.get(event.worker_id)
        job = state.jobs.get(event.job_id)
        if worker is not None and event.device_id in worker.devices:
            self._credit(worker, worker.devices[event.device_id], job, span_count(event.spans))
        if job is None:
            return
        lease = state.leases.get(event.lease_id)
        if lease is not None:
            lease.last_result_at_s = self._now
        state.finish_rows(job, event.spans, lease)
        self._end_if_over(job)
        if worker is not None:
            self._allocation.top_up(worker)

    def _credit(self, worker: Worker, belief: DeviceBelief, job: Job | None, rows: int) -> None:
        worker.deadline_s = self._now + self.options.silence_s
        worker.rows_done += rows
        rested = belief.quarantined_until_s is not None
        retry.absolve(belief)
        if rested:
            self.state.census.look(worker, self._now)
        if job is None:
            return
        variant_id = job.variant_id
        if variant_id not in belief.worked_on:
            belief.worked_on.add(variant_id)
            self.state.proved.add(variant_id)
            self.state.proved_on.setdefault(variant_id, set()).add(belief.device.kind)
        replica = belief.replicas.get(variant_id)
        if replica is not None:
            replica.rows_done += rows
        self.state.used_at_s[variant_id] = self._now
        count = worker.counts.get(variant_id)
        if count is None:
            count = worker.counts[variant_id] = Count(self._now)
        count.rows += rows
        since_s = self._now - count.since_s
        if since_s >= RATE_S:
            self._rated(worker, variant_id, count.rows / since_s)
            count.since_s, count.rows = self._now, 0

    def _rated(self, worker: Worker, variant_id: VariantId, fresh: float) -> None:
        """A worker's rate was measured, in rows per second: believe half of it, where that tells anything new."""
        old = worker.rate.get(variant_id)
        rate = fresh if old is None else (old + fresh) / 2
        if old is None or abs(rate - old) > SAME_RATE * old:
            worker.rate[variant_id] = rate
            self.state.census.look_at_rate(worker, variant_id)

    def _rows_returned(self, event: ev.RowsReturned) -> None:
        lease = self.state.leases.get(event.lease_id)
        if lease is None or lease.worker_id != event.worker_id:
            return
        job = self.state.jobs[lease.job_id]
        if lease.state is LeaseState.REVOKING:
            lease.state = step(LEASE, lease.state, LeaseState.OPEN)
        lease.all_started = not event.spans
        if lease.isolated and event.spans:
            self._suspect_again(lease)
        else:
            self.state.give_back(job, lease, event.spans)
        devices = self.state.workers[lease.worker_id].devices.values()
        unwanted = all(job.variant_id not in belief.wants for belief in devices)
        if (job.state is JobState.DRAINING or unwanted) and event.spans and lease.lease_id in self.state.leases:
            self._allocation.revoke(lease, None)  # only part of it was asked for before
        self._end_if_over(job)
        self._allocation.top_up_all(last=event.worker_id)

    def _rows_read(self, event: ev.RowsRead) -> None:
        job = self.state.jobs.get(event.job_id)
        if job is None:
            return
        first = not job.read_upto
        assert event.start == job.read_upto, f"{job.job_id}: read at {event.start}, expected {job.read_upto}"
        job.reading = False
        job.read_upto = event.stop
        job.exhausted = event.exhausted
        job.pending.update(job.done.missing(event.start, event.stop))
        self._end_if_over(job)
        if first:
            self._allocation.place(anew=True)
        self._allocation.top_up_all()
        self._allocation.read(job)

    # --- workers and replicas

    def _worker_joined(self, event: ev.WorkerJoined) -> None:
        if event.worker_id in self.state.workers:
            self._forget_worker(self.state.workers[event.worker_id])
            self._end_all_over()
        for variant in event.variants:
            self.state.learn(variant)
            self.state.used_at_s.setdefault(variant.variant_id, self._now)
        for fact in event.inventory:
            self._measured(fact)
        worker = worker_from(event, self._now, self.options.silence_s)
        self.state.add_worker(worker, self._now)
        self._silence.watch(worker)
        cache = event.cache or worker.host
        self._fetches.joined(worker.worker_id, cache, worker.staged, serves=event.serves_files)
        self._note("info", f"{event.worker_id} joined with {_devices_text(event)}", event.worker_id)
        self._allocation.place_on(worker, force=True)
        self._allocation.top_up_all()

    def _worker_lost(self, event: ev.WorkerLost) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is None:
            return
        rows = sum(worker.outstanding.values())
        lost = min(worker.started, rows)
        drained = worker.state is WorkerState.DRAINING
        self._forget_worker(worker)
        if not drained or rows:
            self.state.workers_lost += 1
            self.state.rows_lost += lost
            text = f"{event.worker_id} was lost ({event.reason}); {lost} requests had started and run again elsewhere"
            self._out.append(Note("warning", text, event.worker_id, again=lost))
        else:
            self._note("info", f"{event.worker_id} left", event.worker_id)
        self._end_all_over()
        self._allocation.place_without()
        self._allocation.top_up_all()

    def _forget_worker(self, worker: Worker) -> None:
        for lease_id in list(worker.leases):
            lease = self.state.leases[lease_id]
            if lease.isolated:
                self._suspect_again(lease)
            else:
                self.state.void(lease)
        self.state.drop_worker(worker, self._now)
        self._fetches.lost(worker.worker_id)

    def _suspect_again(self, lease: Lease) -> None:
        """A group that was to run alone stays together: losing its worker taught nothing about it."""
        job = self.state.jobs[lease.job_id]
        rows = lease.open.copy()
        self.state.shrink(lease, rows.spans())
        rows.discard(self.state.unhedge(job, rows.spans()))
        if rows:
            job.suspects.append(rows)

    def _worker_leaving(self, event: ev.WorkerLeaving) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is None or worker.state is not WorkerState.LIVE:
            return
        worker.state = step(WORKER, worker.state, WorkerState.DRAINING)
        self.state.census.look(worker, self._now)
        self._fetches.leaving(worker.worker_id)
        self._note("info", f"{event.worker_id} drains ({event.reason})", event.worker_id)
        self._allocation.top_up_all()

    def _heard(self, event: ev.WorkerHeard) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is not None:
            worker.deadline_s = self._now + self.options.silence_s
            worker.started = event.started

    def _replica_reported(self, event: ev.ReplicaReported) -> None:
        worker = self.state.workers.get(event.worker_id)
        fact = event.fact
        if worker is None or fact.device_id not in worker.devices:
            return
        belief = worker.devices[fact.device_id]
        known = belief.replicas.get(fact.variant_id)
        state = fact.state
        if known is None or known.replica_id != fact.replica_id:
            known = Replica(fact.replica_id, fact.variant_id, state, since_s=self._now)
            belief.replicas[fact.variant_id] = known
        elif known.state is not state:
            known.state = step(REPLICA, known.state, state)
            known.since_s = self._now
        known.wanted, known.memory_bytes, known.pid = fact.wanted, fact.memory_bytes, fact.pid
        known.attachment_bytes = fact.attachment_bytes
        if state is ReplicaState.ASLEEP:
            self._allocation.place_on(worker)
        if state is not ReplicaState.LIVE:
            self.state.census.look(worker, self._now)
            return
        if fact.load_s and (fact.load_s, fact.origin) != (known.load_s, known.origin):
            self._loaded(worker, belief, fact)
        known.load_s, known.origin = fact.load_s or known.load_s, fact.origin
        grew = self._measured(fact)
        belief.load_failures.pop(fact.variant_id, None)
        belief.retry_at_s.pop(fact.variant_id, None)
        if fact.variant_id in belief.wants:
            belief.was_live.add(fact.variant_id)
        self.state.used_at_s.setdefault(fact.variant_id, self._now)
        self.state.census.look(worker, self._now)
        if grew:
            self._allocation.place(anew=True)
        self._allocation.top_up(worker)
        for job in self.state.jobs_of(fact.variant_id):
            self._allocation.read(job)

    def _loaded(self, worker: Worker, belief: DeviceBelief, fact: ev.ReplicaFact) -> None:
        """A load took so long: remember that by where it came from, the last ones counting most."""
        key = (fact.variant_id, belief.device.kind, fact.origin)
        old = self.state.load_s.get(key, fact.load_s)
        self.state.load_s[key] = (old + fact.load_s) / 2
        name, source = self.state.name_of(fact.variant_id), "" if fact.origin == "cold" else f", {_FROM[fact.origin]}"
        text = f"{worker.worker_id} holds {name} live on {fact.device_id} after {fact.load_s:.2f} s{source}"
        self._note("info", text, worker.worker_id)

    def _measured(self, fact: ev.ReplicaFact) -> bool:
        """Take in what a live replica holds; True if that is more than was known of its variant."""
        measured = self.state.measured_bytes
        if fact.state is not ReplicaState.LIVE or fact.memory_bytes <= measured.get(fact.variant_id, 0):
            return False
        measured[fact.variant_id] = fact.memory_bytes
        return True

    def _residence(self, event: ev.CopyReported | ev.VariantPinned | ev.VariantEvicted) -> None:
        match event:
            case ev.CopyReported(worker_id, fact):
                worker = self.state.workers.get(worker_id)
                if worker is None:
                    return
                copies = worker.parked if fact.level is Level.PARKED else worker.staged
                if fact.bytes:
                    copies[fact.variant_id] = Copy(fact.bytes, self._now, fact.took_s)
                else:
                    copies.pop(fact.variant_id, None)
                if fact.level is Level.STAGED:
                    (self._fetches.made if fact.bytes else self._fetches.gone)(worker_id, fact.variant_id)
                return
            case ev.VariantPinned(variant, on):
                variant_id = variant.variant_id
                self.state.learn(variant)
                self.state.used_at_s[variant_id] = self._now
                if on:
                    self.state.pinned.add(variant_id)
                    self.state.evicted.discard(variant_id)
                    self.state.clear_refusals(variant_id)
                else:
                    self.state.pinned.discard(variant_id)
            case ev.VariantEvicted(variant_id):
                assert not self.state.jobs_of(variant_id), f"{variant_id} is in use"
                self.state.pinned.discard(variant_id)
                self.state.evicted.add(variant_id)
        self._allocation.place(anew=isinstance(event, ev.VariantEvicted))

    def _replica_stopped(self, event: ev.ReplicaStopped) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is not None and event.device_id in worker.devices:
            worker.devices[event.device_id].replicas.pop(event.variant_id, None)
            self.state.census.look(worker, self._now)

    def _replica_died(self, event: ev.ReplicaDied) -> None:
        self._blame.replica_died(event)
        self._end_hopeless()
        self._end_all_over()
        self._place_after_trouble(event.worker_id)

    def _load_failed(self, event: ev.LoadFailed) -> None:
        self._blame.load_failed(event)
        self._end_hopeless()
        self._place_after_trouble(event.worker_id)

    def _place_after_trouble(self, worker_id: WorkerId) -> None:
        worker = self.state.workers.get(worker_id)
        if worker is not None:
            self._allocation.place_on(worker)
        self._allocation.top_up_all()

    def _end_hopeless(self) -> None:
        """End jobs whose context no device can hold."""
        for job in list(self.state.jobs.values()):
            if why := self._blame.held_nowhere(job.variant_id):
                self._end(job, JobState.FAILED, "load_failed", why)

    # --- jobs

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        assert event.job_id not in self.state.jobs, f"{event.job_id} was submitted twice"
        self.state.learn(event.variant)
        job = job_from(event)
        if job.done:
            self.state.proved.add(job.variant_id)
        job.virtual_time = sharing.starting_clock(self.state.jobs.values())
        self.state.jobs[job.job_id] = job
        self.state.used_at_s[job.variant_id] = self._now
        self.state.uses[job.variant_id] = self.state.uses.get(job.variant_id, 0) + 1
        self.state.evicted.discard(job.variant_id)
        self.state.clear_refusals(job.variant_id)
        self._allocation.place()
        self._allocation.read(job)

    def _job_cancelled(self, event: ev.JobCancelled) -> None:
        job = self.state.jobs.get(event.job_id)
        if job is None:
            return
        if not event.drain:
            self._end(job, JobState.CANCELLED, "cancelled", "the job was cancelled")
            return
        if job.state is JobState.RUNNING:
            job.state = step(JOB, job.state, JobState.DRAINING)
            for lease_id in job.leases:
                self._allocation.revoke(self.state.leases[lease_id], None)
        self._end_if_over(job)

    def _job_broken(self, event: ev.JobBroken) -> None:
        job = self.state.jobs.get(event.job_id)
        if job is not None:
            self._end(job, JobState.SUSPENDED if event.suspended else JobState.FAILED, event.kind, event.reason)

    def _end_all_over(self) -> None:
        for job in list(self.state.jobs.values()):
            self._end_if_over(job)

    def _end_if_over(self, job: Job) -> None:
        if job.job_id not in self.state.jobs or job.leases or job.failing:
            return
        if not job.open_rows:
            self._end(job, JobState.COMPLETED, "", "")
        elif job.state is JobState.DRAINING:
            self._end(job, JobState.CANCELLED, "cancelled", "the job was stopped before its end")

    def _end(self, job: Job, state: JobState, kind: str, message: str) -> None:
        job.state = step(JOB, job.state, state)
        self.state.used_at_s[job.variant_id] = self._now
        self.state.drop_job(job)
        self._out.append(EndJob(job.job_id, state, kind, message))
        self._allocation.place()

    # --- time

    def _slept(self, seconds: float) -> None:
        """Nobody was heard because nobody listened."""
        for worker in self.state.workers.values():
            worker.deadline_s += seconds

    def _tick(self) -> None:
        self._fetches.tick()
        for worker in self._silence.overdue(self.state.workers, self._now):
            reason = f"silent for {self.options.silence_s:.0f} s"
            self._out.append(DropWorker(worker.worker_id, reason))
            self._worker_lost(ev.WorkerLost(worker.worker_id, reason))
        if self.state.refusals or self.state.lacking:
            self._end_hopeless()
        self._allocation.keep_up()
        self._allocation.top_up_all()
        for job in list(self.state.jobs.values()):
            self._allocation.read(job)
        if self._now >= self._forget_at_s:
            self._forget_at_s = self._now + FORGET_S
            self.state.forget_variants(self._now - max(FORGET_S, self.options.keep_alive_s))

    # --- what must hold

    def check(self) -> None:
        """Assert every invariant. For tests and simulations, as `State.check` is."""
        self.state.check()
        self._fetches.check(self.state.workers)

    def _note(self, level: str, text: str, subject: str) -> None:
        self._out.append(Note(level, text, subject))


def _devices_text(event: ev.WorkerJoined) -> str:
    kinds: dict[str, int] = {}
    for device in event.devices:
        kinds[device.kind] = kinds.get(device.kind, 0) + 1
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
