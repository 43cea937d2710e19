"""What displays are told: jobs, workers, contexts and sums, folded from the scheduler's belief and the jobs' files."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from pilotlight.core.model import Copy, Worker
from pilotlight.manager.jobs import JobFiles
from pilotlight.manager.journal import JobRecord
from pilotlight.manager.loop import Manager
from pilotlight.messages import Snapshot
from pilotlight.views import ArrivalView, ContextView, JobView, ReplicaView, ResidenceView, WorkerView
from pilotlight.wire import Context, JobRequest, PathOutput


def snapshot(manager: Manager) -> Snapshot:
    """The whole picture."""
    state = manager.scheduler.state
    return Snapshot(
        jobs=[job_view(manager, job, "running") for job in manager.jobs.values() if job.job_id in state.jobs],
        workers=[_worker_view(manager, worker) for worker in state.workers.values()],
        totals=manager.ledger.totals(state),
    )


def job_view(manager: Manager, job: JobFiles, state: str, message: str = "") -> JobView:
    """One job; `state`: if the scheduler knows it no more. `message`: why it ended."""
    belief = manager.scheduler.state.jobs.get(job.job_id)
    leased = sum(len(manager.scheduler.state.leases[lease].open) for lease in belief.leases) if belief else 0
    return JobView(
        job=job.job_id,
        name=job.request.name,
        state=belief.state.value if belief else state,
        rows_read=job.read_upto,
        rows_done=job.rows_done,
        rows_error=sum(job.errors.values()),
        rows_leased=leased,
        rows_resumed=job.rows_resumed,
        rows_total=job.rows_total,
        fraction=job.fraction,
        errors=dict(job.errors),
        counters=dict(job.counters),
        running_s=time.monotonic() - job.began_monotonic_s,
        began_s=job.began_s,
        output=_output(job.request),
        context=job.request.context.name,
        weight=job.request.weight,
        detached=job.detached,
        message=message,
    )


def unopened_job(record: JobRecord, message: str, state: str = "failed") -> JobView:
    """A job as the journal has it, while its files are not open: one that was not taken up, or not yet."""
    request = record.request
    return JobView(
        job=record.job,
        name=request.name,
        state=state,
        rows_read=0,
        rows_done=0,
        rows_error=0,
        rows_leased=0,
        began_s=record.began_s,
        output=_output(request),
        context=request.context.name,
        weight=request.weight,
        detached=record.detached,
        message=message,
    )


def _output(request: JobRequest) -> str:
    return request.output.path if isinstance(request.output, PathOutput) else ""


def contexts(manager: Manager) -> list[ContextView]:
    """Every context and where it is, the most recently used first."""
    state, now = manager.scheduler.state, time.monotonic()
    jobs: dict[str, int] = {}
    for job in state.jobs.values():
        jobs[job.variant_id] = jobs.get(job.variant_id, 0) + 1

    def view(variant_id: str, context: Context) -> ContextView:
        running = jobs.get(variant_id, 0)
        return ContextView(
            variant=variant_id,
            context=context.id,
            name=context.name,
            runtime=context.runtime,
            pinned=variant_id in state.pinned,
            jobs=running,
            used=state.uses.get(variant_id, 0),
            idle_s=0.0 if running else max(0.0, now - state.used_at_s.get(variant_id, now)),
            residences=list(_residences(manager, variant_id, now)),
            trouble=_trouble(manager, variant_id),
        )

    views = [view(variant_id, context) for variant_id, context in manager.contexts.items()]
    return sorted(views, key=lambda view: (view.idle_s, -view.jobs))


def _trouble(manager: Manager, variant_id: str) -> str:
    """Why some device can't hold a variant, if one said so."""
    refusals = manager.scheduler.state.refusals.items()
    return next((why for (v, _), told in refusals if v == variant_id for why in told.values()), "")


def _residences(manager: Manager, variant_id: str, now: float) -> Iterable[ResidenceView]:
    for worker in manager.scheduler.state.workers.values():
        for belief in worker.devices.values():
            replica = belief.replicas.get(variant_id)
            if replica is not None:
                yield ResidenceView(
                    worker=worker.worker_id,
                    level=replica.state.value,
                    host=worker.host,
                    device=belief.device.device_id,
                    bytes=replica.memory_bytes,
                    attachment_bytes=replica.attachment_bytes,
                    age_s=max(0.0, now - replica.since_s) if replica.since_s else 0.0,
                    took_s=replica.load_s,
                    stages=manager.ledger.stages(worker.worker_id, replica.replica_id),
                    rows=replica.rows_done,
                )
        if variant_id in worker.parked:
            yield _copy(worker, "parked", worker.parked[variant_id], now)
        if variant_id in worker.staged:
            yield _copy(worker, "staged", worker.staged[variant_id], now)


def _copy(worker: Worker, level: str, copy: Copy, now: float) -> ResidenceView:
    age_s = max(0.0, now - copy.since_s)
    return ResidenceView(
        worker=worker.worker_id, level=level, host=worker.host, bytes=copy.bytes, age_s=age_s, took_s=copy.took_s
    )


def workers(manager: Manager) -> list[WorkerView]:
    """Every worker, with what it said of its cache and its environment."""
    views: list[WorkerView] = []
    for worker in manager.scheduler.state.workers.values():
        view, said = _worker_view(manager, worker), manager.roll.said(worker.worker_id)
        if said is not None:
            join, verdict = said
            view = msgspec.structs.replace(
                view, cache=join.cache, environment=join.environment, troubles=verdict.sentences
            )
        views.append(view)
    return views


def _worker_view(manager: Manager, worker: Worker) -> WorkerView:
    replicas = [
        ReplicaView(
            device=belief.device.device_id,
            device_kind=belief.device.kind,
            context=replica.variant_id,
            name=manager.name_of(replica.variant_id),
            state=replica.state.value,
            pid=replica.pid,
            load_s=replica.load_s,
            rows_done=replica.rows_done,
        )
        for belief in worker.devices.values()
        for replica in belief.replicas.values()
    ]
    return WorkerView(
        worker=worker.worker_id,
        pid=worker.pid,
        host=worker.host,
        state=worker.state.value,
        rows_done=worker.rows_done,
        rows_leased=sum(worker.outstanding.values()),
        replicas=replicas,
        arriving=[
            ArrivalView(
                name=manager.name_of(arrival.variant),
                done_bytes=arrival.done_bytes,
                total_bytes=arrival.total_bytes,
                source=arrival.source,
            )
            for arrival in manager.offers.arriving(worker.worker_id)
        ],
        devices=[belief.device.kind for belief in worker.devices.values()],
    )
