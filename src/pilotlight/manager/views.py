"""What displays are told: jobs, workers and sums, folded from the scheduler's belief and the jobs' files."""

from __future__ import annotations

import time

from pilotlight.core.model import Worker
from pilotlight.manager.jobs import JobFiles
from pilotlight.manager.loop import Manager
from pilotlight.messages import Snapshot
from pilotlight.views import JobView, ReplicaView, WorkerView


def snapshot(manager: Manager) -> Snapshot:
    """The whole picture."""
    state = manager.scheduler.state
    return Snapshot(
        jobs=[job_view(manager, job, "running") for job in manager.jobs.values() if job.job_id in state.jobs],
        workers=[_worker_view(manager, worker) for worker in state.workers.values()],
        totals=manager.ledger.totals(state),
    )


def job_view(manager: Manager, job: JobFiles, state: str) -> JobView:
    """One job, running or just ended."""
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
    )


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
    )
