"""Everything that can happen: the input of both machines.

First the manager's (`scheduler`), then the worker's (`agent`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core.model import Device, DeviceId, JobId, LeaseId, ReplicaId, Variant, VariantId, WorkerId
from pilotlight.core.ranges import Span

# --- the manager's --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaFact:
    """One line of a worker's inventory or report: a replica, live or starting."""

    device_id: DeviceId
    variant_id: VariantId
    replica_id: ReplicaId
    live: bool
    wanted: int = 0
    memory_bytes: int = 0
    load_s: float = 0.0
    pid: int = 0


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker's connection opened. Whatever was believed of a worker of that name before is void."""

    worker_id: WorkerId
    pid: int
    host: str
    devices: tuple[Device, ...]
    inventory: tuple[ReplicaFact, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's connection is gone, for whatever reason."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """A worker drains on its own account."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerHeard:
    """A sign of life. `started`: rows that its replicas have begun."""

    worker_id: WorkerId
    started: int


@dataclass(frozen=True, slots=True)
class ReplicaReported:
    """A replica is starting, went live, or wants another number of requests."""

    worker_id: WorkerId
    fact: ReplicaFact


@dataclass(frozen=True, slots=True)
class ReplicaStopped:
    """A replica ended as its agent wished."""

    worker_id: WorkerId
    device_id: DeviceId
    variant_id: VariantId


@dataclass(frozen=True, slots=True)
class ReplicaDied:
    """A replica ended by itself, with these rows in it (by lease), of which about `started` had been begun."""

    worker_id: WorkerId
    device_id: DeviceId
    variant_id: VariantId
    rows: dict[LeaseId, list[Span]]
    started: int
    reason: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A replica could not load. `permanent`: the same device would fail again. `crowded`: there is no room beside what
    the device holds; nobody is to blame."""

    worker_id: WorkerId
    device_id: DeviceId
    variant_id: VariantId
    permanent: bool
    reason: str
    crowded: bool = False


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A job begins, or goes on: `done` and `attempts` are what its output and journal hold already."""

    job_id: JobId
    name: str
    variant: Variant
    weight: float = 1.0
    attempts_max: int = 3
    may_hedge: bool = True
    done: tuple[Span, ...] = ()
    attempts: dict[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, slots=True)
class RowsRead:
    """Rows start <= i < stop of the input are at hand (in order, without gap); `exhausted`: there are no more."""

    job_id: JobId
    start: int
    stop: int
    exhausted: bool


@dataclass(frozen=True, slots=True)
class RowsWritten:
    """These rows, which were not in the output, now are.

    worker_id and device_id say who did them; "" where nobody is to be credited.
    """

    job_id: JobId
    spans: tuple[Span, ...]
    lease_id: LeaseId = ""
    worker_id: WorkerId = ""
    device_id: DeviceId = ""


@dataclass(frozen=True, slots=True)
class RowsReturned:
    """A worker gave back rows that had not started."""

    worker_id: WorkerId
    lease_id: LeaseId
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """A client wants an end: after what replicas hold, or now."""

    job_id: JobId
    drain: bool


@dataclass(frozen=True, slots=True)
class JobBroken:
    """A job's own files fail: its input (`suspended` False) or its output (True)."""

    job_id: JobId
    suspended: bool
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


ManagerEvent = (
    WorkerJoined | WorkerLost | WorkerLeaving | WorkerHeard | ReplicaReported | ReplicaStopped | ReplicaDied
    | LoadFailed | JobSubmitted | RowsRead | RowsWritten | RowsReturned | JobCancelled | JobBroken | Tick
)  # fmt: skip


# --- the worker's ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantsChanged:
    """The manager's list of what to hold live: (device, variant), most wanted first."""

    epoch: int
    version: int
    wants: tuple[tuple[DeviceId, Variant], ...]


@dataclass(frozen=True, slots=True)
class JobDefined:
    """The variant that a job's rows need."""

    job_id: JobId
    variant_id: VariantId


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """Rows are ours now."""

    epoch: int
    lease_id: LeaseId
    job_id: JobId
    spans: tuple[Span, ...]
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    """The manager wants unstarted rows back: up to `rows`, or all."""

    epoch: int
    lease_id: LeaseId
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class JobForgotten:
    """A job is over."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class ReplicaLive:
    """A replica of ours is loaded and warm."""

    replica_id: ReplicaId
    wanted: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaFailed:
    """A replica of ours said that it can't load; it exits by itself."""

    replica_id: ReplicaId
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaExited:
    """A replica's process is gone."""

    replica_id: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class RowsFinished:
    """A replica finished rows of a lease; `wanted` is its current wish, `started` what it has begun beside."""

    replica_id: ReplicaId
    lease_id: LeaseId
    spans: tuple[Span, ...]
    wanted: int
    started: int


@dataclass(frozen=True, slots=True)
class ManagerLost:
    """The connection to the manager is gone."""


@dataclass(frozen=True, slots=True)
class ManagerFound:
    """A manager said welcome, in this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """A signal, a notice or the manager wants this worker to leave within `grace_s`."""

    grace_s: float
    reason: str


AgentEvent = (
    WantsChanged | JobDefined | LeaseGranted | LeaseRevoked | JobForgotten | ReplicaLive | ReplicaFailed | ReplicaExited
    | RowsFinished | ManagerLost | ManagerFound | DrainAsked | Tick
)  # fmt: skip
