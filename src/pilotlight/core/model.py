"""The nouns: what the manager believes about variants, devices, workers, replicas, leases and jobs.

Frozen dataclasses are facts that never change; slotted ones are beliefs that only `scheduler.handle` changes.
Times are seconds on the caller's monotonic clock. Rows are known by index only: no payload is ever here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pilotlight.core.ranges import IndexSet
from pilotlight.core.transitions import JobState, LeaseState, ReplicaState, WorkerState

JobId = str
WorkerId = str
DeviceId = str
VariantId = str
LeaseId = str
ReplicaId = str

SLEPT_S = 1.0
"""A machine that took in nothing for so long did not run (it was stopped, or its disk stood still), since ticks come
four times a second. What others said meanwhile was not heard, so no deadline of theirs runs while it sleeps."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, a slice of one, or the CPUs of a worker. Devices of one `kind` are interchangeable.

    is_host: its memory is the worker's own, where parked copies are too. lacks: runtimes that can't run here whatever
    its kind, and why.
    """

    device_id: DeviceId
    kind: str
    memory_bytes: int
    is_host: bool = False
    lacks: tuple[tuple[str, str], ...] = ()

    def why_not(self, variant: Variant) -> str:
        """Why the runtime of a variant can't run here; empty where nothing speaks against it."""
        return next((why for runtime, why in self.lacks if runtime == variant.runtime), "")


@dataclass(frozen=True, slots=True)
class Variant:
    """A context as one runtime holds it.

    memory_bytes: a hint of what a live replica needs. has_files: it is built from files that can be staged and parked.
    runtime: by name; empty: any.
    """

    variant_id: VariantId
    name: str
    memory_bytes: int = 0
    has_files: bool = False
    runtime: str = ""


@dataclass(slots=True)
class Replica:
    """A live (or starting) variant on a device, as last reported."""

    replica_id: ReplicaId
    variant_id: VariantId
    state: ReplicaState
    wanted: int = 0
    memory_bytes: int = 0
    attachment_bytes: int = 0
    origin: str = "cold"
    load_s: float = 0.0
    pid: int = 0
    rows_done: int = 0
    since_s: float = 0.0


@dataclass(slots=True)
class Copy:
    """A variant's files on a worker: parked in its memory, or staged on its disk. took_s: how long that took."""

    bytes: int
    since_s: float
    took_s: float = 0.0


@dataclass(slots=True)
class DeviceBelief:
    """A device, what it was told to hold, what it holds, and how it has behaved."""

    device: Device
    wants: tuple[VariantId, ...] = ()
    wants_since_s: float = 0.0
    replicas: dict[VariantId, Replica] = field(default_factory=dict[VariantId, Replica])
    load_failures: dict[VariantId, int] = field(default_factory=dict[VariantId, int])
    retry_at_s: dict[VariantId, float] = field(default_factory=dict[VariantId, float])
    deaths: list[dict[JobId, IndexSet]] = field(default_factory=list[dict[JobId, IndexSet]])
    """The rows, by job, of each death since the last result."""
    charges: list[tuple[JobId, int]] = field(default_factory=list[tuple[JobId, int]])
    """Attempts charged since the last result; given back if the device turns out to be the culprit."""
    quarantined_until_s: float | None = None
    quarantines: int = 0
    """Rests since the last result."""
    was_live: set[VariantId] = field(default_factory=set[VariantId])
    """Wanted variants that have been live here: worth bringing back while they are kept."""
    worked: bool = False
    """Whether any request ever had a result here."""
    worked_on: set[VariantId] = field(default_factory=set[VariantId])
    """The variants that had results here."""
    vain_deaths: dict[VariantId, int] = field(default_factory=dict[VariantId, int])
    """Deaths of a variant's replicas while it never had a result here."""

    def rests(self, now: float) -> bool:
        """Whether the device is in quarantine."""
        return self.quarantined_until_s is not None and self.quarantined_until_s > now

    def serves(self, variant_id: VariantId, now: float) -> bool:
        """Whether the device takes rows of a variant, or is about to."""
        return variant_id in self.wants and not self.rests(now)


class Part(NamedTuple):
    """What a live worker adds to a variant's totals (`census`).

    capacity: requests that it wants in flight. target: rows that it should hold. low_water: with so few it wants more.
    wanting: its devices that are to hold the variant and do not rest. live: for each of its live replicas whose rate is
    known the kind of device and the rate. Rates are micro-rows per second.
    """

    capacity: int
    target: int
    low_water: int
    micro_rate: int
    wanting: int
    live: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Count:
    """Rows of a variant that a worker answered since a moment; its rate is measured from them."""

    since_s: float
    rows: int = 0


@dataclass(slots=True)
class Worker:
    """A worker that has joined. `rate` is rows per second by variant, smoothed; `outstanding` counts leased rows."""

    worker_id: WorkerId
    pid: int
    host: str
    devices: dict[DeviceId, DeviceBelief]
    deadline_s: float
    memory_bytes: int = 0
    joined_at_s: float = 0.0
    parked: dict[VariantId, Copy] = field(default_factory=dict[VariantId, Copy])
    staged: dict[VariantId, Copy] = field(default_factory=dict[VariantId, Copy])
    park_wants: tuple[VariantId, ...] = ()
    """Variants that its memory should hold where its devices do not."""
    state: WorkerState = WorkerState.LIVE
    wants_version: int = 0
    leases: dict[LeaseId, None] = field(default_factory=dict[LeaseId, None])
    outstanding: dict[VariantId, int] = field(default_factory=dict[VariantId, int])
    started: int = 0
    rate: dict[VariantId, float] = field(default_factory=dict[VariantId, float])
    counts: dict[VariantId, Count] = field(default_factory=dict[VariantId, Count])
    rows_done: int = 0
    parts: dict[VariantId, Part] = field(default_factory=dict[VariantId, Part])
    """What it added to the census when that last looked at it, at `looked_at_s`."""
    looked_at_s: float = 0.0
    counted: bool = False
    """Whether the census counts its devices."""

    def capacity(self, variant_id: VariantId, now: float) -> int:
        """Requests that its live replicas of the variant want in flight, where the variant is still wanted."""
        wanted = 0
        for belief in self.devices.values():
            replica = belief.replicas.get(variant_id)
            if replica is not None and replica.state is ReplicaState.LIVE and belief.serves(variant_id, now):
                wanted += replica.wanted
        return wanted


@dataclass(slots=True)
class Lease:
    """Rows of one job given to one worker. `open` shrinks as they come back; an empty lease is over."""

    lease_id: LeaseId
    job_id: JobId
    worker_id: WorkerId
    open: IndexSet
    granted_at_s: float
    last_result_at_s: float
    isolated: bool = False
    hedge: bool = False
    state: LeaseState = LeaseState.OPEN
    all_started: bool = False
    """The worker answered a revoke with nothing: all that is open runs."""
    twins: tuple[LeaseId, ...] = ()
    """Leases that hold, or held, some of its rows too."""


@dataclass(slots=True)
class Job:
    """One input bound to one variant and one operation. Which rows are in which state; see `state.check`."""

    job_id: JobId
    name: str
    variant_id: VariantId
    weight: float
    attempts_max: int
    may_hedge: bool
    done: IndexSet
    """Rows in the output: results and error rows."""
    state: JobState = JobState.RUNNING
    read_upto: int = 0
    exhausted: bool = False
    reading: bool = False
    appetite: int = 0
    """Rows that all workers together should hold, when that was last looked at."""
    pending: IndexSet = field(default_factory=IndexSet)
    suspects: list[IndexSet] = field(default_factory=list[IndexSet])
    """Groups of rows that were in a replica when it died; each runs with nothing else beside it. Last goes first."""
    failing: IndexSet = field(default_factory=IndexSet)
    """Rows out of attempts, whose error row is being written."""
    hedged: IndexSet = field(default_factory=IndexSet)
    """Rows that are in two leases."""
    attempts: dict[int, int] = field(default_factory=dict[int, int])
    died_on: dict[int, list[tuple[WorkerId, DeviceId]]] = field(
        default_factory=dict[int, list[tuple[WorkerId, DeviceId]]]
    )
    """Where suspect rows were when replicas died, the last place last."""
    outgrown_bytes: dict[int, int] = field(default_factory=dict[int, int])
    """Rows that ran out of memory alone, and the memory of the device where they did."""
    leases: dict[LeaseId, None] = field(default_factory=dict[LeaseId, None])
    leased: int = 0
    """Rows in its leases, those in two counted twice."""
    virtual_time: float = 0.0
    """Rows granted per unit of weight: the fair share's clock."""
    end_message: str = ""

    @property
    def open_rows(self) -> bool:
        """Whether anything is left to hand out or to read."""
        return bool(self.pending or self.suspects or not self.exhausted)
