"""The messages of two conversations: client and manager, manager and worker. `replica_messages.py` has the third.

Each direction is one tagged union, so that a receiver is one `match`. Spans are half-open ranges of request indices;
seconds are floats; ids are short strings made by the side that owns the thing.
"""

from __future__ import annotations

from typing import Any, Literal

from pilotlight.views import CacheView, ContextView, JobView, Totals, WorkerView
from pilotlight.wire import (
    VERSION,
    Arrival,
    Chunk,
    Context,
    DeviceSpec,
    Environment,
    JobRequest,
    Listing,
    Offer,
    Operation,
    ResultChunk,
    Served,
    Span,
    Struct,
)


class Message(Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages: the class's name is its tag."""


# --- client -> manager ---------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """First message of a client. `owner`: the pool ends when this connection does. `watch_s`: how often to send a
    `Snapshot` (0: never)."""

    version: int = VERSION
    owner: bool = False
    watch_s: float = 0.0


class Submit(Message, frozen=True, kw_only=True):
    """Hand in a job. Answered by `Accepted` or `Refused` with the same `ticket`. Where a running job writes this very
    output for an equal request, the client is attached to it. `detached` (path jobs only): it goes on when this client
    is gone."""

    ticket: int
    request: JobRequest
    detached: bool = False


class Attach(Message, frozen=True, kw_only=True):
    """Follow a running job, by its id or its output's path. Answered by `Accepted` or `Refused`; `JobEnded` comes at
    its end. A client that only follows can leave without a trace."""

    ticket: int
    job: str


class Ask(Message, frozen=True, kw_only=True):
    """Answered by `JobsAnswer`, `ContextsAnswer` or `WorkersAnswer` with the same `ticket`."""

    ticket: int
    what: Literal["jobs", "contexts", "workers"]


class Pin(Message, frozen=True, kw_only=True):
    """Keep this context live wherever there is room (loading it, if need be), whatever `keep_alive_s` says, until it is
    unpinned (`on` False). Answered by `Done` or `Refused`."""

    ticket: int
    context: Context
    on: bool = True


class Evict(Message, frozen=True, kw_only=True):
    """Drop a context that no job needs from all devices and memories, with `disk` also from the file caches, and unpin
    it. `context`: its name, its id or its model's folder. Answered by `Done` or `Refused`."""

    ticket: int
    context: str
    disk: bool = False


class RowsIn(Message, frozen=True, kw_only=True):
    """Rows of a `StreamInput` job, in index order. The client bounds how far it runs ahead of its results."""

    job: str
    chunk: Chunk


class InputEnd(Message, frozen=True, kw_only=True):
    """No more rows for this job."""

    job: str


class Cancel(Message, frozen=True, kw_only=True):
    """End a job early. `drain`: let rows that replicas hold finish first. Its followers get `JobEnded` (`cancelled`).
    With a `ticket` (not 0) it is answered by `Done`, or by `Refused` where there is no such job."""

    job: str
    drain: bool = False
    ticket: int = 0


class Shutdown(Message, frozen=True, kw_only=True):
    """End the pool: running jobs are cancelled without drain, workers and manager exit."""


ClientMessage = Hello | Submit | Attach | RowsIn | InputEnd | Cancel | Ask | Pin | Evict | Shutdown


# --- manager -> client ---------------------------------------------------------------------------------------


class Greeting(Message, frozen=True, kw_only=True):
    """Answer to `Hello`. python: the version that functions must be pickled by; empty: any."""

    version: int
    epoch: int
    pid: int
    log_dir: str
    pool: str = ""
    lasting: bool = False
    release: str = ""
    python: str = ""


class Accepted(Message, frozen=True, kw_only=True):
    """The job exists. `rows_done`: rows found finished from an earlier run. `complete`: nothing is left to do;
    `JobEnded` follows at once. `joined`: it ran already. `request`: the job as the manager resolved it (sampling
    filled in)."""

    ticket: int
    job: str
    rows_done: int = 0
    complete: bool = False
    joined: bool = False
    request: JobRequest


class Refused(Message, frozen=True, kw_only=True):
    """What was asked for is not done. `kind` and `message` are an error's; `exit_code` is what a command ends with."""

    ticket: int
    kind: str
    message: str
    exit_code: int = 2


class RowsOut(Message, frozen=True, kw_only=True):
    """Results of a `StreamOutput` job, in any order, each index once."""

    job: str
    chunk: ResultChunk


class Done(Message, frozen=True, kw_only=True):
    """What was asked for is done; `text` says what that was, in one sentence."""

    ticket: int
    text: str


class JobsAnswer(Message, frozen=True, kw_only=True):
    """Running jobs, and those that ended lately, oldest first."""

    ticket: int
    jobs: list[JobView]


class ContextsAnswer(Message, frozen=True, kw_only=True):
    """Every context that this pool knows, most recently used first."""

    ticket: int
    contexts: list[ContextView]


class WorkersAnswer(Message, frozen=True, kw_only=True):
    """Every worker that is here, in the order in which they came, with what it said of itself."""

    ticket: int
    workers: list[WorkerView]


class Snapshot(Message, frozen=True, kw_only=True):
    """The whole picture, sent every `watch_s` and before `JobEnded`."""

    jobs: list[JobView]
    workers: list[WorkerView]
    totals: Totals


class Notice(Message, frozen=True, kw_only=True):
    """Something a watcher may want to read at once: `worker-2 was lost (killed by signal 9); 12 requests run again`."""

    level: Literal["info", "warning", "error", "debug"]
    text: str
    worker: str = ""


class JobEnded(Message, frozen=True, kw_only=True):
    """A job is over. outcome: completed, failed, cancelled, or suspended (its output can't be written, or its pool
    pauses; the same command goes on). `report` is what was written beside a path output. Nothing about this job
    follows."""

    job: str
    outcome: Literal["completed", "failed", "cancelled", "suspended"]
    view: JobView
    totals: Totals
    kind: str = ""
    message: str = ""
    exit_code: int = 0
    report: dict[str, Any] = {}


ClientReply = (
    Greeting
    | Accepted
    | Refused
    | Done
    | RowsOut
    | Snapshot
    | Notice
    | JobEnded
    | JobsAnswer
    | ContextsAnswer
    | WorkersAnswer
)


# --- manager -> worker ---------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to `Join`: the worker is in. Commands of an older epoch than one seen are ignored."""

    epoch: int


Level = Literal["live", "parked"]


class Want(Struct, frozen=True, kw_only=True):
    """A variant that a device should hold live, or the worker in its memory (parked or asleep; `device` is then empty).
    Listed first is wanted most. What is wanted is staged on the way."""

    device: str
    variant: str
    context: Context
    level: Level = "live"


class Wants(Message, frozen=True, kw_only=True):
    """All that this worker should hold, replacing earlier wants. The agent alone acts on it and reports."""

    epoch: int
    version: int
    wants: list[Want]


class DefineJob(Message, frozen=True, kw_only=True):
    """What to do with the rows of a job; sent before the first `Grant` of that job on this connection."""

    job: str
    variant: str
    operation: Operation
    request_timeout_s: float = 600.0


class Grant(Message, frozen=True, kw_only=True):
    """A lease: these rows are this worker's. `isolated`: let no other row be in the replica that runs them; `avoid`:
    on another device than this one, if that can be."""

    epoch: int
    lease: str
    job: str
    chunks: list[Chunk]
    isolated: bool = False
    avoid: list[str] = []


class Revoke(Message, frozen=True, kw_only=True):
    """Give back up to `rows` unstarted rows of a lease (None: all of them). Always answered by `Returned`."""

    epoch: int
    lease: str
    rows: int | None = None


class SourceNamed(Message, frozen=True, kw_only=True):
    """Answer to `SourceAsked`: stage from this worker's machine, or (if empty) from where the context says. offer: how
    to fetch it; none where the worker is to read the model's own folder. refusal: why there is no offer, where one was
    asked for."""

    epoch: int
    variant: str
    source: str = ""
    offer: Offer | None = None
    refusal: str = ""


class ForgetJob(Message, frozen=True, kw_only=True):
    """A job is over: drop its unstarted rows without a word; its late results are welcome but needless."""

    job: str


class Unstage(Message, frozen=True, kw_only=True):
    """Remove a variant's files from the machine's cache, unless something here uses them."""

    variant: str


class Ack(Message, frozen=True, kw_only=True):
    """Results up to this sequence number are written; the worker may forget them."""

    upto: int


class Drain(Message, frozen=True, kw_only=True):
    """Take no new work, return what has not started, finish the rest, exit within `grace_s`."""

    grace_s: float


class TurnedAway(Message, frozen=True, kw_only=True):
    """Answer to a `Join` of a worker that this pool can't use; the worker says the reason and ends (`NotWanted`)."""

    reason: str


ManagerMessage = (
    TurnedAway | Welcome | Wants | DefineJob | Grant | Revoke | SourceNamed | ForgetJob | Unstage | Ack | Drain
)


# --- worker -> manager ---------------------------------------------------------------------------------------


Origin = Literal["cold", "staged", "parked", "asleep"]


class Resident(Struct, frozen=True, kw_only=True):
    """A variant that a replica of this worker holds, or is about to. origin: the nearest residence that it was built
    from; load_s and stages say how long that took (`stage`, `park`, `import`, `start`, `read`, `to_device`, `warm`).
    context: in an inventory only, for a manager that does not know it yet."""

    device: str
    variant: str
    replica: str
    state: Literal["starting", "live", "asleep"]
    pid: int = 0
    wanted: int = 0
    memory_bytes: int = 0
    attachment_bytes: int = 0
    origin: Origin = "cold"
    load_s: float = 0.0
    stages: dict[str, float] = {}
    context: Context | None = None


class Copy(Struct, frozen=True, kw_only=True):
    """A variant's files in this worker's memory (parked) or on its disk (staged). bytes: 0 when they are gone.
    took_s: how long that took. context: as in `Resident`. listing: of a staged copy that this worker serves."""

    variant: str
    level: Literal["parked", "staged"]
    bytes: int
    took_s: float = 0.0
    context: Context | None = None
    listing: Listing | None = None


class Join(Message, frozen=True, kw_only=True):
    """First message on each connection of a worker; the inventory overrides what the manager believed. memory_bytes:
    host memory for parked copies. serves: how workers of other machines can fetch what it has staged; None: they can't.
    environment, cache: what it can run, and where its machine's cache lies. cache_name: what tells that cache from
    every other: workers with the same one share its files."""

    version: int = VERSION
    worker: str
    pid: int
    host: str
    devices: list[DeviceSpec]
    memory_bytes: int = 0
    serves: Served | None = None
    residents: list[Resident] = []
    copies: list[Copy] = []
    environment: Environment | None = None
    cache: CacheView | None = None
    cache_name: str = ""


class Reported(Message, frozen=True, kw_only=True):
    """A replica changed: it is starting, it became live, or it wants another number of requests."""

    resident: Resident


class Kept(Message, frozen=True, kw_only=True):
    """A copy of a variant's files was made, or is gone."""

    copy: Copy


class SourceAsked(Message, frozen=True, kw_only=True):
    """From where should this variant's files be staged? Answered by `SourceNamed` when it is this worker's turn; asked
    again on each connection and once a minute. remote: the model's folder is not on this machine, so it takes an offer
    to read the origin."""

    variant: str
    remote: bool = False


class CopyFailed(Message, frozen=True, kw_only=True):
    """A variant's files were not staged from the source that was named, or are not wanted any more (`source` is then
    empty)."""

    variant: str
    source: str = ""
    reason: str


class Stopped(Message, frozen=True, kw_only=True):
    """A replica was ended on purpose (no longer wanted, or for room)."""

    device: str
    variant: str
    replica: str


class Died(Message, frozen=True, kw_only=True):
    """A replica ended by itself, or hung. `rows`: per lease, the spans that it held; they are no longer this worker's.
    About `started` of them had been begun. `reason`: how it ended, with its last log line, if there is one. `kind`:
    what the error row is called if a single row is to blame."""

    device: str
    variant: str
    replica: str
    rows: dict[str, list[Span]]
    started: int
    reason: str
    kind: str = "killed_replica"


class LoadFailed(Message, frozen=True, kw_only=True):
    """A replica could not load. `kind` is the error's, as `core.errors.verdict` knows it."""

    device: str
    variant: str
    replica: str
    kind: str
    reason: str


class Rows(Message, frozen=True, kw_only=True):
    """Finished rows. Sent again after a reconnect until acknowledged; `started` is how many rows of this worker
    had been begun by then."""

    seq: int
    lease: str
    job: str
    device: str
    chunk: ResultChunk
    started: int = 0


class Returned(Message, frozen=True, kw_only=True):
    """These rows of a lease had not started and are no longer this worker's."""

    lease: str
    spans: list[Span]


class Beat(Message, frozen=True, kw_only=True):
    """A sign of life, about twice a second. arriving: what is being staged."""

    started: int = 0
    arriving: list[Arrival] = []


class Leaving(Message, frozen=True, kw_only=True):
    """The worker drains on its own account (a signal, a notice) and will be gone within `grace_s`."""

    grace_s: float
    reason: str


WorkerMessage = (
    Join | Reported | Kept | SourceAsked | CopyFailed | Stopped | Died | LoadFailed | Rows | Returned | Beat | Leaving
)
