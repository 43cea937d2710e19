"""Everything that can happen: the input of both machines.

First the manager's (`scheduler`), then the worker's (`agent`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core.model import Device, DeviceId, JobId, LeaseId, ReplicaId, Variant, VariantId, WorkerId
from pilotlight.core.ranges import Span
from pilotlight.core.transitions import Level, ReplicaState

KILLED = "killed_replica"
"""What a row's error is called whose replica ended by itself."""

# --- the manager's --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaFact:
    """One line of a worker's inventory or report: a replica that is starting, live or asleep. `stages`: what its
    `load_s` was spent on, for stories."""

    device_id: DeviceId
    variant_id: VariantId
    replica_id: ReplicaId
    state: ReplicaState
    wanted: int = 0
    memory_bytes: int = 0
    attachment_bytes: int = 0
    origin: str = "cold"
    load_s: float = 0.0
    pid: int = 0
    stages: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class CopyFact:
    """One line of a worker's inventory or report: a copy of a variant's files. `bytes` 0: it is gone."""

    variant_id: VariantId
    level: Level
    bytes: int
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker's connection opened. Whatever was believed of a worker of that name before is void.

    variants: those of its inventory and copies. memory_bytes: of its host, for parked copies. serves_files: workers on
    other hosts can fetch from it what it has staged. about: sentences for people on its cache and its environment.
    cache: names where its files are: workers with the same one share them; empty: all workers of its host do.
    """

    worker_id: WorkerId
    pid: int
    host: str
    devices: tuple[Device, ...]
    inventory: tuple[ReplicaFact, ...] = ()
    copies: tuple[CopyFact, ...] = ()
    variants: tuple[Variant, ...] = ()
    memory_bytes: int = 0
    serves_files: bool = False
    about: tuple[str, ...] = ()
    cache: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's connection is gone, for whatever reason."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class PilotEnded:
    """A worker's process has ended, and how; said where its connection's loss does not say it. For stories."""

    worker_id: WorkerId
    how: str


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """A worker drains on its own account, and will be gone within `grace_s` (0 in logs of before that was known)."""

    worker_id: WorkerId
    reason: str
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerHeard:
    """A sign of life. `started`: rows that its replicas have begun."""

    worker_id: WorkerId
    started: int


@dataclass(frozen=True, slots=True)
class ReplicaReported:
    """A replica is starting, went live, fell asleep, wants another number of requests, or holds more or less."""

    worker_id: WorkerId
    fact: ReplicaFact


@dataclass(frozen=True, slots=True)
class CopyReported:
    """A copy of a variant's files was made, or is gone."""

    worker_id: WorkerId
    fact: CopyFact


@dataclass(frozen=True, slots=True)
class SourceAsked:
    """A worker wants to know from where to stage a variant's files. Asking again changes nothing. Answered, when it is
    its turn, by `NameSource`. remote: it can't read the origin's folder, so it fetches what it stages, and can pass it
    on as it comes."""

    worker_id: WorkerId
    variant_id: VariantId
    remote: bool = False


@dataclass(frozen=True, slots=True)
class CopyFailedAt:
    """A worker could not stage a variant's files from this source, another worker or the origin (""), or does not want
    them any more. A failure to park is its own business."""

    worker_id: WorkerId
    variant_id: VariantId
    source: WorkerId


@dataclass(frozen=True, slots=True)
class ReplicaStopped:
    """A replica ended as its agent wished."""

    worker_id: WorkerId
    device_id: DeviceId
    variant_id: VariantId


@dataclass(frozen=True, slots=True)
class ReplicaDied:
    """A replica ended by itself, with these rows in it (by lease), of which about `started` had been begun. `kind`:
    what the error row is called if a single row is to blame."""

    worker_id: WorkerId
    device_id: DeviceId
    variant_id: VariantId
    rows: dict[LeaseId, list[Span]]
    started: int
    reason: str
    kind: str = KILLED


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
class VariantPinned:
    """Someone wants a variant live wherever there is room, whether a job needs it or not; or (`on` False) no longer."""

    variant: Variant
    on: bool


@dataclass(frozen=True, slots=True)
class VariantEvicted:
    """Someone wants a variant that no job needs to leave all devices and memories."""

    variant_id: VariantId


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

    worker_id and device_id say who did them; "" where nobody is to be credited. errors: those that are error rows, by
    kind, for stories.
    """

    job_id: JobId
    spans: tuple[Span, ...]
    lease_id: LeaseId = ""
    worker_id: WorkerId = ""
    device_id: DeviceId = ""
    errors: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


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
    WorkerJoined | WorkerLost | PilotEnded | WorkerLeaving | WorkerHeard | ReplicaReported | CopyReported
    | SourceAsked | CopyFailedAt | ReplicaStopped | ReplicaDied | LoadFailed | JobSubmitted | VariantPinned
    | VariantEvicted | RowsRead | RowsWritten | RowsReturned | JobCancelled | JobBroken | Tick
)  # fmt: skip


# --- the worker's ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantsChanged:
    """The manager's list of what to hold: (device, variant, level), most wanted first. Only `LIVE` names a device."""

    epoch: int
    version: int
    wants: tuple[tuple[DeviceId, Variant, Level], ...]


@dataclass(frozen=True, slots=True)
class JobDefined:
    """The variant that a job's rows need, and how long a replica may hold such rows without a sign of progress."""

    job_id: JobId
    variant_id: VariantId
    request_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """Rows are ours now."""

    epoch: int
    lease_id: LeaseId
    job_id: JobId
    spans: tuple[Span, ...]
    isolated: bool = False
    avoid: tuple[DeviceId, ...] = ()


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
    """A replica of ours is loaded and warm, or awake again."""

    replica_id: ReplicaId
    wanted: int
    memory_bytes: int
    can_sleep: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaSlept:
    """A replica of ours sleeps, and still holds so much of its device."""

    replica_id: ReplicaId
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaProgressed:
    """A replica of ours finished a step, and no row with it. wanted: how many rows it wants now; 0: as it was."""

    replica_id: ReplicaId
    started: int
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class SourceNamed:
    """The manager's answer to `AskSource`: stage from this worker, or from the origin ("")."""

    epoch: int
    variant_id: VariantId
    source: WorkerId


@dataclass(frozen=True, slots=True)
class CopyMade:
    """A copy of a variant's files is there: parked in our memory, or staged on the machine's disk."""

    variant_id: VariantId
    level: Level
    bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class CopyFailed:
    """A copy could not be made (no room, unreadable files, a peer that is gone). After another worker another source is
    asked for; after the origin replicas are built from the next nearest place. remote: there is none on this machine,
    so the origin is tried a few times more."""

    variant_id: VariantId
    level: Level
    reason: str
    remote: bool = False


@dataclass(frozen=True, slots=True)
class CopyGone:
    """A copy is no longer there: dropped as we wished, or taken by the cache's size limit."""

    variant_id: VariantId
    level: Level


@dataclass(frozen=True, slots=True)
class ReplicaFailed:
    """A replica of ours said that it can't load, or can't go on with the rows it has; it exits by itself."""

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
    memory_bytes: int = 0
    attachment_bytes: int = 0


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
    WantsChanged | JobDefined | LeaseGranted | LeaseRevoked | JobForgotten | ReplicaLive | ReplicaSlept
    | ReplicaProgressed | ReplicaFailed | ReplicaExited | SourceNamed | CopyMade | CopyFailed | CopyGone | RowsFinished
    | ManagerLost | ManagerFound | DrainAsked | Tick
)  # fmt: skip
