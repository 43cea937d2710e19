"""The messages of the three conversations: client and manager, manager and worker, agent and replica.

Each direction is one tagged union, so that a receiver is one `match`. Spans are half-open ranges of request indices;
seconds are floats; ids are short strings made by the side that owns the thing.
"""

from __future__ import annotations

from typing import Any, Literal

from pilotlight.wire import VERSION, Chunk, Context, DeviceSpec, JobRequest, Operation, ResultChunk, Span, Struct


class _Message(Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages: the class's name is its tag."""


# --- client -> manager ---------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True):
    """First message of a client. `owner`: the pool ends when this connection does. `watch_s`: how often to send a
    `Snapshot` (0: never)."""

    version: int = VERSION
    owner: bool = False
    watch_s: float = 0.0


class Submit(_Message, frozen=True, kw_only=True):
    """Hand in a job. Answered by `Accepted` or `Refused` with the same `ticket`."""

    ticket: int
    request: JobRequest


class RowsIn(_Message, frozen=True, kw_only=True):
    """Rows of a `StreamInput` job, in index order. The client bounds how far it runs ahead of its results."""

    job: str
    chunk: Chunk


class InputEnd(_Message, frozen=True, kw_only=True):
    """No more rows for this job."""

    job: str


class Cancel(_Message, frozen=True, kw_only=True):
    """End a job early. `drain`: let rows that replicas hold finish first. Answered by `JobEnded` (`cancelled`)."""

    job: str
    drain: bool = False


class Shutdown(_Message, frozen=True, kw_only=True):
    """End the pool: running jobs are cancelled without drain, workers and manager exit."""


ClientMessage = Hello | Submit | RowsIn | InputEnd | Cancel | Shutdown


# --- manager -> client ---------------------------------------------------------------------------------------


class Greeting(_Message, frozen=True, kw_only=True):
    """Answer to `Hello`."""

    version: int
    epoch: int
    pid: int
    log_dir: str


class Accepted(_Message, frozen=True, kw_only=True):
    """The job exists. `rows_done`: rows found finished from an earlier run. `complete`: nothing is left to do;
    `JobEnded` follows at once. `request`: the job as the manager resolved it (sampling filled in)."""

    ticket: int
    job: str
    rows_done: int = 0
    complete: bool = False
    request: JobRequest


class Refused(_Message, frozen=True, kw_only=True):
    """The job was not started. `kind` and `message` are an error's; `exit_code` is what a command ends with."""

    ticket: int
    kind: str
    message: str
    exit_code: int = 2


class RowsOut(_Message, frozen=True, kw_only=True):
    """Results of a `StreamOutput` job, in any order, each index once."""

    job: str
    chunk: ResultChunk


class JobView(Struct, frozen=True, kw_only=True):
    """A job as a display needs it. `fraction` of the input read, 0..1 (None: unknown); `rows_total` once known."""

    job: str
    name: str
    state: str
    rows_read: int
    rows_done: int
    rows_error: int
    rows_leased: int
    rows_resumed: int = 0
    rows_total: int | None = None
    fraction: float | None = None
    errors: dict[str, int] = {}
    counters: dict[str, float] = {}
    running_s: float = 0.0


class ReplicaView(Struct, frozen=True, kw_only=True):
    """A replica as a display needs it. state: starting, loading, live, stopping; load_s once live."""

    device: str
    device_kind: str
    context: str
    name: str
    state: str
    pid: int = 0
    load_s: float = 0.0
    rows_done: int = 0


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker as a display needs it. state: live, draining, lost."""

    worker: str
    pid: int
    host: str
    state: str
    rows_done: int
    rows_leased: int
    replicas: list[ReplicaView]


class Totals(Struct, frozen=True, kw_only=True):
    """Sums over the pool's life. `rows_lost`: requests that had started when their replica or worker died."""

    loads: dict[str, int] = {}
    load_s: float = 0.0
    busy_s: float = 0.0
    rows_lost: int = 0
    workers_lost: int = 0
    replicas_lost: int = 0


class Snapshot(_Message, frozen=True, kw_only=True):
    """The whole picture, sent every `watch_s` and before `JobEnded`."""

    jobs: list[JobView]
    workers: list[WorkerView]
    totals: Totals


class Notice(_Message, frozen=True, kw_only=True):
    """Something a watcher may want to read at once: `worker-2 was lost (killed by signal 9); 12 requests run again`."""

    level: Literal["info", "warning", "error", "debug"]
    text: str
    worker: str = ""


class JobEnded(_Message, frozen=True, kw_only=True):
    """A job is over. outcome: completed, failed, cancelled, or suspended (its output can't be written; the same
    command goes on). `report` is what was written beside a path output. Nothing about this job follows."""

    job: str
    outcome: Literal["completed", "failed", "cancelled", "suspended"]
    view: JobView
    totals: Totals
    kind: str = ""
    message: str = ""
    exit_code: int = 0
    report: dict[str, Any] = {}


ClientReply = Greeting | Accepted | Refused | RowsOut | Snapshot | Notice | JobEnded


# --- manager -> worker ---------------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, kw_only=True):
    """Answer to `Join`: the worker is in. Commands of an older epoch than one seen are ignored."""

    epoch: int


class Want(Struct, frozen=True, kw_only=True):
    """A variant that a device should hold live. Listed first is wanted most."""

    device: str
    variant: str
    context: Context


class Wants(_Message, frozen=True, kw_only=True):
    """All that this worker should hold, replacing earlier wants. The agent alone acts on it and reports."""

    epoch: int
    version: int
    wants: list[Want]


class DefineJob(_Message, frozen=True, kw_only=True):
    """What to do with the rows of a job; sent before the first `Grant` of that job on this connection."""

    job: str
    variant: str
    operation: Operation


class Grant(_Message, frozen=True, kw_only=True):
    """A lease: these rows are this worker's. `isolated`: let no other row be in the replica that runs them."""

    epoch: int
    lease: str
    job: str
    chunks: list[Chunk]
    isolated: bool = False


class Revoke(_Message, frozen=True, kw_only=True):
    """Give back up to `rows` unstarted rows of a lease (None: all of them). Always answered by `Returned`."""

    epoch: int
    lease: str
    rows: int | None = None


class ForgetJob(_Message, frozen=True, kw_only=True):
    """A job is over: drop its unstarted rows without a word; its late results are welcome but needless."""

    job: str


class Ack(_Message, frozen=True, kw_only=True):
    """Results up to this sequence number are written; the worker may forget them."""

    upto: int


class Drain(_Message, frozen=True, kw_only=True):
    """Take no new work, return what has not started, finish the rest, exit within `grace_s`."""

    grace_s: float


ManagerMessage = Welcome | Wants | DefineJob | Grant | Revoke | ForgetJob | Ack | Drain


# --- worker -> manager ---------------------------------------------------------------------------------------


class Resident(Struct, frozen=True, kw_only=True):
    """A variant that a replica of this worker holds, or is about to."""

    device: str
    variant: str
    replica: str
    state: Literal["starting", "live"]
    pid: int = 0
    wanted: int = 0
    memory_bytes: int = 0
    load_s: float = 0.0
    stages: dict[str, float] = {}


class Join(_Message, frozen=True, kw_only=True):
    """First message on each connection of a worker; the inventory overrides what the manager believed."""

    version: int = VERSION
    worker: str
    pid: int
    host: str
    devices: list[DeviceSpec]
    residents: list[Resident] = []


class Reported(_Message, frozen=True, kw_only=True):
    """A replica changed: it is starting, it became live, or it wants another number of requests."""

    resident: Resident


class Stopped(_Message, frozen=True, kw_only=True):
    """A replica was ended on purpose (no longer wanted, or for room)."""

    device: str
    variant: str
    replica: str


class Died(_Message, frozen=True, kw_only=True):
    """A replica ended by itself. `rows`: per lease, the spans that it held; they are no longer this worker's. About
    `started` of them had been begun. `reason`: how it ended, with its last log line, if there is one."""

    device: str
    variant: str
    replica: str
    rows: dict[str, list[Span]]
    started: int
    reason: str


class LoadFailed(_Message, frozen=True, kw_only=True):
    """A replica could not load. `kind` is the error's, as `core.errors.verdict` knows it."""

    device: str
    variant: str
    replica: str
    kind: str
    reason: str


class Rows(_Message, frozen=True, kw_only=True):
    """Finished rows. Sent again after a reconnect until acknowledged; `started` is how many rows of this worker
    had been begun by then."""

    seq: int
    lease: str
    job: str
    device: str
    chunk: ResultChunk
    started: int = 0


class Returned(_Message, frozen=True, kw_only=True):
    """These rows of a lease had not started and are no longer this worker's."""

    lease: str
    spans: list[Span]


class Beat(_Message, frozen=True, kw_only=True):
    """A sign of life, about twice a second."""

    started: int = 0


class Leaving(_Message, frozen=True, kw_only=True):
    """The worker drains on its own account (a signal, a notice) and will be gone within `grace_s`."""

    grace_s: float
    reason: str


WorkerMessage = Join | Reported | Stopped | Died | LoadFailed | Rows | Returned | Beat | Leaving


# --- agent -> runtime server and replica ---------------------------------------------------------------------


class Spawn(_Message, frozen=True, kw_only=True):
    """To the runtime server, with the replica's socket as an attached descriptor: fork a replica."""

    replica: str
    log_path: str


class Load(_Message, frozen=True, kw_only=True):
    """First message to a replica: build this context on this device. Answered by `Live` or `Failed`."""

    context: Context
    device: DeviceSpec


class Feed(_Message, frozen=True, kw_only=True):
    """To a replica: run these rows. `operation` comes with the first rows of a job."""

    lease: str
    job: str
    chunks: list[Chunk]
    operation: Operation | None = None


class Forget(_Message, frozen=True, kw_only=True):
    """To a replica: a job is over. Drop its operation once no row of it is left."""

    job: str


class Quit(_Message, frozen=True, kw_only=True):
    """To a replica: end now, in order; rows it holds are not answered."""


ReplicaMessage = Load | Feed | Quit | Forget


# --- runtime server and replica -> agent ---------------------------------------------------------------------


class Forked(_Message, frozen=True, kw_only=True):
    """From the server: this replica's process id. An empty replica: the server itself is ready."""

    replica: str
    pid: int


class Exited(_Message, frozen=True, kw_only=True):
    """From the server: a replica ended; `status` is negative for a signal."""

    replica: str
    status: int


class Live(_Message, frozen=True, kw_only=True):
    """From a replica: loaded and warm."""

    wanted: int
    memory_bytes: int
    stages: dict[str, float]


class Failed(_Message, frozen=True, kw_only=True):
    """From a replica: it can't load; it exits by itself."""

    kind: str
    reason: str


class Finished(_Message, frozen=True, kw_only=True):
    """From a replica: rows of one lease are done. `wanted` is its current wish; `started` is how many of the rows that
    it still holds will have been begun by the end of its next step."""

    lease: str
    job: str
    chunk: ResultChunk
    wanted: int
    started: int


ServerReply = Forked | Exited
ReplicaReply = Live | Failed | Finished
