"""Everything the machines may ask for: the output of `scheduler.handle` and of `agent.handle`.

Each decision is carried out by the loop around the machine, and whatever comes of it comes back as an event.
"""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core.model import DeviceId, JobId, LeaseId, ReplicaId, VariantId, WorkerId
from pilotlight.core.ranges import Span
from pilotlight.core.transitions import JobState, Level

# --- the manager's --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendWants:
    """Tell a worker all that its devices and its memory should hold; only `LIVE` names a device. `why`, here and
    below, is for stories: one clause, in words."""

    worker_id: WorkerId
    version: int
    wants: tuple[tuple[DeviceId, VariantId, Level], ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class GrantRows:
    """Lease rows to a worker. `avoid`: let other devices of it run them, if one can."""

    worker_id: WorkerId
    lease_id: LeaseId
    job_id: JobId
    spans: tuple[Span, ...]
    isolated: bool
    why: str = ""
    avoid: tuple[DeviceId, ...] = ()


@dataclass(frozen=True, slots=True)
class RevokeRows:
    """Ask a worker for unstarted rows of a lease: up to `rows`, or all. It answers with `RowsReturned`."""

    worker_id: WorkerId
    lease_id: LeaseId
    rows: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Read about this many rows of a job's input. Answered by `RowsRead` or `JobBroken`."""

    job_id: JobId
    rows: int


@dataclass(frozen=True, slots=True)
class WriteFailure:
    """Write the error row of a request that has no attempts left. Answered by `RowsWritten`."""

    job_id: JobId
    index: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class RecordAttempts:
    """Put into the job's journal how often these rows have run and died."""

    job_id: JobId
    attempts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class EndJob:
    """A job is over: finish or let go of its files, tell its client, and have its workers forget it."""

    job_id: JobId
    state: JobState
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class NameSource:
    """Tell a worker from where to stage a variant's files: from this worker, or from the origin (""). Ends in
    `CopyReported` or `CopyFailedAt`."""

    worker_id: WorkerId
    variant_id: VariantId
    source: WorkerId


@dataclass(frozen=True, slots=True)
class DropWorker:
    """Close the connection of a worker that was silent too long; if it lives, it joins again."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person may want to know, and what it is about. For stories: `again`, how many rows of it had started
    and run again like others; `rest_device` and `rest_s`, which device of the subject gets no rows, for how long."""

    level: str
    text: str
    subject: str
    again: int = 0
    rest_device: DeviceId = ""
    rest_s: float = 0.0


ManagerDecision = (
    SendWants | GrantRows | RevokeRows | ReadRows | WriteFailure | RecordAttempts | EndJob | NameSource | DropWorker
    | Note
)  # fmt: skip


# --- the worker's ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Have a runtime server fork a replica that loads from the nearest copy. Ends in `ReplicaLive`, `ReplicaFailed` or
    `ReplicaExited`. `origin`: where that copy is."""

    replica_id: ReplicaId
    device_id: DeviceId
    variant_id: VariantId
    origin: str


@dataclass(frozen=True, slots=True)
class StopReplica:
    """End a replica: ask, or `kill` it at once. Ends in `ReplicaExited`."""

    replica_id: ReplicaId
    kill: bool = False


@dataclass(frozen=True, slots=True)
class SleepReplica:
    """Have a live replica without rows give its device's memory back. Ends in `ReplicaSlept` or `ReplicaExited`."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class WakeReplica:
    """Have a sleeping replica take its device's memory again. Ends in `ReplicaLive` or `ReplicaExited`."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class AskSource:
    """Ask the manager from where to stage a variant's files. Answered by `SourceNamed`, when it is our turn."""

    variant_id: VariantId


@dataclass(frozen=True, slots=True)
class MakeCopy:
    """Stage a variant's files on the machine's disk, or park its weights in memory. Ends in `CopyMade` or
    `CopyFailed`. `source`: the worker to fetch files from; "": the origin, or the disk where they are on it already."""

    variant_id: VariantId
    level: Level
    source: WorkerId = ""


@dataclass(frozen=True, slots=True)
class DropCopy:
    """Let go of a parked copy. Ends in `CopyGone`."""

    variant_id: VariantId


@dataclass(frozen=True, slots=True)
class FeedRows:
    """Hand rows of a lease to a replica."""

    replica_id: ReplicaId
    lease_id: LeaseId
    job_id: JobId
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class DropRows:
    """Forget the bytes of rows that are no longer ours; all of the lease's if `spans` is None."""

    lease_id: LeaseId
    spans: tuple[Span, ...] | None


@dataclass(frozen=True, slots=True)
class SendReturned:
    """Tell the manager that these rows had not started and are no longer ours."""

    lease_id: LeaseId
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class SendResident:
    """Report a replica as it is now."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class SendCopy:
    """Report a copy of a variant's files; `bytes` 0: it is gone."""

    variant_id: VariantId
    level: Level
    bytes: int
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SendCopyFailed:
    """Report that a variant's files were not staged from the source that the manager named: it has a place for
    another."""

    variant_id: VariantId
    level: Level
    source: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class SendStopped:
    """Report a replica that ended as we wished."""

    device_id: DeviceId
    variant_id: VariantId
    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class SendDied:
    """Report a replica that ended by itself, or hung, with the rows that it held. `kind`: what the error row is called
    if a single row is to blame."""

    device_id: DeviceId
    variant_id: VariantId
    replica_id: ReplicaId
    rows: dict[LeaseId, list[Span]]
    started: int
    reason: str
    kind: str = "killed_replica"


@dataclass(frozen=True, slots=True)
class SendLoadFailed:
    """Report that a variant can't be loaded on a device."""

    device_id: DeviceId
    variant_id: VariantId
    replica_id: ReplicaId
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class SendLeaving:
    """Tell the manager that this worker drains."""

    grace_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Exit:
    """End the worker and all its processes."""

    reason: str


AgentDecision = (
    StartReplica | StopReplica | SleepReplica | WakeReplica | AskSource | MakeCopy | DropCopy | FeedRows | DropRows
    | SendReturned | SendResident | SendCopy | SendCopyFailed | SendStopped | SendDied | SendLoadFailed | SendLeaving
    | Exit
)  # fmt: skip
