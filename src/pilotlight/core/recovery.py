"""The one way back: from what a job's files and a worker's inventory say, to belief.

A manager that starts knows nothing. Jobs come back through `job_from`: what their outputs hold is done, what their
journals charged stays charged, everything else is unread. Workers come back through `worker_from`: their inventory is
the truth about what is live where. There is no other state to restore, so a crash loses none.
"""

from __future__ import annotations

from pilotlight.core.events import JobSubmitted, WorkerJoined
from pilotlight.core.model import Copy, DeviceBelief, Job, Replica, Worker
from pilotlight.core.ranges import IndexSet
from pilotlight.core.transitions import Level, ReplicaState


def job_from(event: JobSubmitted) -> Job:
    """A job as its output and its journal leave it. For a new job both are empty."""
    done = IndexSet(event.done)
    return Job(
        job_id=event.job_id,
        name=event.name,
        variant_id=event.variant.variant_id,
        weight=event.weight,
        attempts_max=event.attempts_max,
        may_hedge=event.may_hedge,
        done=done,
        attempts={index: min(n, event.attempts_max - 1) for index, n in event.attempts.items() if index not in done},
    )


def worker_from(event: WorkerJoined, now: float, silence_s: float) -> Worker:
    """A worker as its inventory says: no lease, whatever it held before; what is live there counts as wanted."""
    devices = {device.device_id: DeviceBelief(device, wants_since_s=now) for device in event.devices}
    for fact in event.inventory:
        if fact.device_id in devices:
            devices[fact.device_id].replicas[fact.variant_id] = Replica(
                replica_id=fact.replica_id,
                variant_id=fact.variant_id,
                state=fact.state,
                wanted=fact.wanted,
                memory_bytes=fact.memory_bytes,
                attachment_bytes=fact.attachment_bytes,
                origin=fact.origin,
                load_s=fact.load_s,
                pid=fact.pid,
                since_s=now,
            )
            if fact.state is ReplicaState.LIVE:
                devices[fact.device_id].wants += (fact.variant_id,)
                devices[fact.device_id].was_live.add(fact.variant_id)
    copies: dict[Level, dict[str, Copy]] = {Level.PARKED: {}, Level.STAGED: {}}
    for copy in event.copies:
        copies[copy.level][copy.variant_id] = Copy(copy.bytes, now, copy.took_s)
    return Worker(
        event.worker_id,
        event.pid,
        event.host,
        devices,
        now + silence_s,
        event.memory_bytes,
        joined_at_s=now,
        parked=copies[Level.PARKED],
        staged=copies[Level.STAGED],
    )
