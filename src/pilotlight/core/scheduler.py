"""The manager's machine: `Scheduler.handle(event, now) -> decisions`.

One event changes the belief (`state`), then the parts of the world that it touched are looked at again: wants where
devices or demand changed, grants for workers that have room, reading where rows run short (all three in `allocation`),
the end of jobs that have no row left. What to believe is in the handlers here.
"""

from __future__ import annotations

from pilotlight.core import events as ev
from pilotlight.core.allocation import Allocation, Options
from pilotlight.core.decisions import (
    DropWorker,
    EndJob,
    ManagerDecision,
    Note,
    RecordAttempts,
    WriteFailure,
)
from pilotlight.core.model import DeviceBelief, DeviceId, Job, Lease, Replica, VariantId, Worker
from pilotlight.core.policy import placement, retry, sharing
from pilotlight.core.ranges import IndexSet, span_count
from pilotlight.core.recovery import job_from, worker_from
from pilotlight.core.state import State
from pilotlight.core.transitions import (
    JOB,
    LEASE,
    REPLICA,
    WORKER,
    JobState,
    LeaseState,
    ReplicaState,
    WorkerState,
    step,
)


class Scheduler:
    """The pure machine. `state` may be read by anyone and changed by nobody else."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.state = State()
        self._allocation = Allocation(self.state, self.options)
        self._out: list[ManagerDecision] = []
        self._now = 0.0

    def handle(self, event: ev.ManagerEvent, now: float) -> list[ManagerDecision]:
        """Take in what happened at `now` (seconds, never decreasing) and say what to do about it."""
        assert now >= self._now, "time went backwards"
        self._now = now
        self._out = self._allocation.begin(now)
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
            case _:
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
        retry.absolve(belief)
        if job is not None:
            self.state.proved.add(job.variant_id)
        worker.deadline_s = self._now + self.options.silence_s
        worker.rows_done += rows
        if job is None:
            return
        variant_id = job.variant_id
        if variant_id in belief.replicas:
            belief.replicas[variant_id].rows_done += rows
        self.state.used_at_s[variant_id] = self._now
        seen = worker.rate_rows.get(variant_id, 0) + rows
        since_s = self._now - worker.rate_since_s.setdefault(variant_id, self._now)
        if since_s >= 0.2:
            old = worker.rate.get(variant_id)
            fresh = seen / since_s
            worker.rate[variant_id] = fresh if old is None else (old + fresh) / 2
            worker.rate_since_s[variant_id] = self._now
            seen = 0
        worker.rate_rows[variant_id] = seen

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
        if job.state is JobState.DRAINING and event.spans and lease.lease_id in self.state.leases:
            self._allocation.revoke(lease, None)  # only part of it was asked for before
        self._end_if_over(job)
        self._allocation.top_up_all(last=event.worker_id)

    def _rows_read(self, event: ev.RowsRead) -> None:
        job = self.state.jobs.get(event.job_id)
        if job is None:
            return
        assert event.start == job.read_upto, f"{job.job_id}: read at {event.start}, expected {job.read_upto}"
        job.reading = False
        job.read_upto = event.stop
        job.exhausted = event.exhausted
        job.pending.update(job.done.missing(event.start, event.stop))
        self._end_if_over(job)
        self._allocation.top_up_all()
        self._allocation.read(job)

    # --- workers and replicas

    def _worker_joined(self, event: ev.WorkerJoined) -> None:
        if event.worker_id in self.state.workers:
            self._forget_worker(self.state.workers[event.worker_id])
        self.state.workers[event.worker_id] = worker_from(event, self._now, self.options.silence_s)
        self._note("info", f"{event.worker_id} joined with {_devices_text(event)}", event.worker_id)
        self._allocation.place(force=event.worker_id)
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
            self._note("warning", text, event.worker_id)
        else:
            self._note("info", f"{event.worker_id} left", event.worker_id)
        for job in list(self.state.jobs.values()):
            self._end_if_over(job)
        self._allocation.place()
        self._allocation.top_up_all()

    def _forget_worker(self, worker: Worker) -> None:
        for lease_id in list(worker.leases):
            lease = self.state.leases[lease_id]
            if lease.isolated:
                self._suspect_again(lease)
            else:
                self.state.void(lease)
        worker.state = step(WORKER, worker.state, WorkerState.LOST)
        del self.state.workers[worker.worker_id]

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
            known = Replica(fact.replica_id, fact.variant_id, state)
            belief.replicas[fact.variant_id] = known
        elif known.state is not state:
            known.state = step(REPLICA, known.state, state)
        known.wanted, known.memory_bytes, known.pid = fact.wanted, fact.memory_bytes, fact.pid
        if fact.state is not ReplicaState.LIVE:
            return
        if fact.load_s and not known.load_s:
            name = self._name(fact.variant_id)
            text = f"{worker.worker_id} holds {name} live on {fact.device_id} after {fact.load_s:.2f} s"
            self._note("info", text, worker.worker_id)
        known.load_s = fact.load_s or known.load_s
        measured = self.state.measured_bytes
        measured[fact.variant_id] = max(measured.get(fact.variant_id, 0), fact.memory_bytes)
        belief.load_failures.pop(fact.variant_id, None)
        belief.retry_at_s.pop(fact.variant_id, None)
        if fact.variant_id in belief.wants:
            belief.was_live.add(fact.variant_id)
        self.state.used_at_s.setdefault(fact.variant_id, self._now)
        self._allocation.top_up(worker)
        for job in self.state.jobs_of(fact.variant_id):
            self._allocation.read(job)

    def _replica_stopped(self, event: ev.ReplicaStopped) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is not None and event.device_id in worker.devices:
            worker.devices[event.device_id].replicas.pop(event.variant_id, None)

    def _replica_died(self, event: ev.ReplicaDied) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is None or event.device_id not in worker.devices:
            return
        belief = worker.devices[event.device_id]
        belief.replicas.pop(event.variant_id, None)
        self.state.replicas_lost += 1
        held: list[tuple[Job, IndexSet]] = []
        for lease_id, spans in event.rows.items():
            lease = self.state.leases.get(lease_id)
            if lease is None or lease.worker_id != event.worker_id:
                continue
            rows = IndexSet()
            for start, stop in spans:
                rows.update(lease.open.within(start, stop))
            job = self.state.jobs[lease.job_id]
            self.state.shrink(lease, rows.spans())
            rows.discard(self.state.unhedge(job, rows.spans()))
            if rows:
                held.append((job, rows))
        total = sum(len(rows) for _, rows in held)
        lost = min(total, event.started)
        self.state.rows_lost += lost
        name = self._name(event.variant_id)
        text = f"{worker.worker_id}'s replica of {name} died ({event.reason}); {lost} requests had started"
        self._note("warning", text, worker.worker_id)
        proved = event.variant_id in self.state.proved
        culprit = retry.is_culprit(belief, held)
        if held:
            retry.remember(belief, (event.worker_id, event.device_id), event.variant_id, held, proved=proved)
        for job, rows in held:
            self._blame(belief, job, rows, charge=total == 1 and (proved or belief.worked), reason=event.reason)
        if retry.is_hopeless(belief, event.variant_id):
            retry.refund(belief, self.state.jobs)
            self._refuse(
                worker, event.device_id, event.variant_id, f"its replicas die whatever they run: {event.reason}"
            )
        if total and culprit:
            rest_s = retry.quarantine(belief, self.state.jobs, self._now)
            text = f"{worker.worker_id}/{event.device_id} rests for {rest_s:.0f} s: its replicas die whatever they run"
            self._note("warning", text, worker.worker_id)
        for job in list(self.state.jobs.values()):
            self._end_if_over(job)
        self._allocation.place()
        self._allocation.top_up_all()

    def _blame(self, belief: DeviceBelief, job: Job, rows: IndexSet, *, charge: bool, reason: str) -> None:
        if len(rows) > 1:
            job.suspects.extend(retry.halves(rows))
            return
        job.suspects.insert(0, rows)  # behind all others, whose results may speak for the device
        if not charge:
            return
        index = next(rows.indices())
        job.attempts[index] = job.attempts.get(index, 0) + 1
        belief.charges.append((job.job_id, index))
        self._out.append(RecordAttempts(job.job_id, ((index, job.attempts[index]),)))
        if job.attempts[index] < job.attempts_max:
            return
        job.suspects.pop(0)
        job.failing.add(index, index + 1)
        text = f"the request ended its replica {job.attempts[index]} times, alone each time; the last time: {reason}"
        self._out.append(WriteFailure(job.job_id, index, "killed_replica", text))

    def _load_failed(self, event: ev.LoadFailed) -> None:
        worker = self.state.workers.get(event.worker_id)
        if worker is None or event.device_id not in worker.devices:
            return
        belief = worker.devices[event.device_id]
        belief.replicas.pop(event.variant_id, None)
        if event.crowded:
            belief.retry_at_s[event.variant_id] = self._now + retry.CROWDED_S
        elif event.permanent:
            self._refuse(worker, event.device_id, event.variant_id, event.reason)
        else:
            self._load_failure(worker, event.device_id, event.variant_id, event.reason)
        self._allocation.place()
        self._allocation.top_up_all()

    def _refuse(self, worker: Worker, device_id: DeviceId, variant_id: VariantId, reason: str) -> None:
        """A device is given up for a variant."""
        worker.devices[device_id].load_failures[variant_id] = placement.LOAD_TRIES_MAX
        self._load_failure(worker, device_id, variant_id, reason)

    def _load_failure(self, worker: Worker, device_id: DeviceId, variant_id: VariantId, reason: str) -> None:
        belief = worker.devices[device_id]
        failures = belief.load_failures.get(variant_id, 0) + 1
        belief.load_failures[variant_id] = failures
        belief.retry_at_s[variant_id] = self._now + retry.load_retry_s(failures)
        name = self._name(variant_id)
        self._note("warning", f"{worker.worker_id}/{device_id} can't hold {name}: {reason}", worker.worker_id)
        if placement.failed_everywhere(self.state, variant_id):
            for job in [job for job in self.state.jobs.values() if job.variant_id == variant_id]:
                self._end(job, JobState.FAILED, "load_failed", f"{name} can't be held by any worker: {reason}")

    # --- jobs

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        assert event.job_id not in self.state.jobs, f"{event.job_id} was submitted twice"
        known = self.state.variants.get(event.variant.variant_id)
        if known is None or event.variant.memory_bytes > known.memory_bytes:
            self.state.variants[event.variant.variant_id] = event.variant
        job = job_from(event)
        if job.done:
            self.state.proved.add(job.variant_id)
        job.virtual_time = sharing.starting_clock(self.state.jobs.values())
        self.state.jobs[job.job_id] = job
        self.state.used_at_s[job.variant_id] = self._now
        for worker in self.state.live_workers():
            for belief in worker.devices.values():
                belief.load_failures.pop(job.variant_id, None)
                belief.retry_at_s.pop(job.variant_id, None)
                belief.vain_deaths.pop(job.variant_id, None)
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

    def _tick(self) -> None:
        for worker in list(self.state.workers.values()):
            if worker.deadline_s <= self._now:
                reason = f"silent for {self.options.silence_s:.0f} s"
                self._out.append(DropWorker(worker.worker_id, reason))
                self._worker_lost(ev.WorkerLost(worker.worker_id, reason))
        self._allocation.place()
        self._allocation.top_up_all()
        for job in list(self.state.jobs.values()):
            self._allocation.read(job)

    # --- words for people

    def _name(self, variant_id: VariantId) -> str:
        variant = self.state.variants.get(variant_id)
        return variant.name if variant else variant_id

    def _note(self, level: str, text: str, subject: str) -> None:
        self._out.append(Note(level, text, subject))


def _devices_text(event: ev.WorkerJoined) -> str:
    kinds: dict[str, int] = {}
    for device in event.devices:
        kinds[device.kind] = kinds.get(device.kind, 0) + 1
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
