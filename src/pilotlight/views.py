"""What displays are told: jobs, workers, contexts and where they are, sums over a pool's life.

Folded from the manager's belief by `manager/views.py`; `messages.py` says when each is sent.
"""

from __future__ import annotations

from pilotlight.core.story.words import bytes_text
from pilotlight.wire import Environment, Struct

ERROR_ROWS_EXIT_CODE = 3
"""What a command ends with whose job completed with error rows."""
_EXIT_CODES = {"completed": 0, "cancelled": 130, "failed": 1, "suspended": 1}


class JobView(Struct, frozen=True, kw_only=True):
    """A job as a display needs it. `fraction` of the input read, 0..1 (None: unknown); `rows_total` once known.
    `output`: a path job's; `context`: its context's name; `began_s`, `ended_s` (0: not yet): Unix time; `holders` (told
    in `JobsAnswer` only): clients without which it ends, unless it is detached; `message`: why it ended, if it did."""

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
    began_s: float = 0.0
    ended_s: float = 0.0
    holders: int = 0
    output: str = ""
    context: str = ""
    weight: float = 1.0
    detached: bool = False
    message: str = ""


def exit_code(outcome: str, rows_error: int) -> int:
    """What a command ends with whose job ended so."""
    return ERROR_ROWS_EXIT_CODE if outcome == "completed" and rows_error else _EXIT_CODES[outcome]


class ResidenceView(Struct, frozen=True, kw_only=True):
    """Where a variant is on one worker. level: live, starting, asleep, parked, staged. age_s: since when. took_s: how
    long it took to get there, `stages` by stage. rows: finished by this replica. attachment_bytes: prompt prefixes.
    What is parked or staged are the same bytes for all workers of a host.
    """

    worker: str
    level: str
    host: str = ""
    device: str = ""
    bytes: int = 0
    attachment_bytes: int = 0
    age_s: float = 0.0
    took_s: float = 0.0
    stages: dict[str, float] = {}
    rows: int = 0


class ContextView(Struct, frozen=True, kw_only=True):
    """A context and all its residences. used: how many jobs ever used it here; idle_s: since its last use; trouble: why
    some device can't hold it."""

    variant: str
    context: str
    name: str
    runtime: str
    pinned: bool
    jobs: int
    used: int
    idle_s: float
    residences: list[ResidenceView]
    trouble: str = ""


class ReplicaView(Struct, frozen=True, kw_only=True):
    """A replica as a display needs it. state: starting, live, asleep, stopping; load_s once live."""

    device: str
    device_kind: str
    context: str
    name: str
    state: str
    pid: int = 0
    load_s: float = 0.0
    rows_done: int = 0


class ArrivalView(Struct, frozen=True, kw_only=True):
    """A context whose files are being staged: how many of their bytes are here, and from which worker they come
    (empty: from the origin)."""

    name: str
    done_bytes: int
    total_bytes: int
    source: str = ""

    @property
    def text(self) -> str:
        """In a few words: `fetching tiny, 34 % of 3.4 GB from worker-2`."""
        source = f" from {self.source}" if self.source else ""
        return f"fetching {self.name}, {100 * self.fraction:.0f} % of {bytes_text(self.total_bytes)}{source}"

    @property
    def fraction(self) -> float:
        """How much is here, 0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 1.0


class CacheView(Struct, frozen=True, kw_only=True):
    """Where a machine's cache of model files lies, as its worker saw it when it joined.

    chosen_by: the option, variable or folder that named it. file_system: its type; empty: the system does not tell.
    free_inodes: None: it has no fixed number. in_memory: what is in it takes host memory. network: another machine's.
    ends_with_job: it is likely to go when the batch job ends.
    """

    path: str
    chosen_by: str
    file_system: str = ""
    free_bytes: int = 0
    free_inodes: int | None = None
    in_memory: bool = False
    network: bool = False
    ends_with_job: bool = False

    @property
    def text(self) -> str:
        """In one line: `/scratch/ada/pilotlight (SLURM_TMPDIR; xfs, 812.0 GB free, gone when the batch job ends)`."""
        facts = [self.file_system or "file system unknown", f"{bytes_text(self.free_bytes)} free"]
        if self.free_inodes is not None:
            facts.append(f"{self.free_inodes:,} inodes free")
        odd = {
            "in memory": self.in_memory,
            "over the network": self.network,
            "gone when the batch job ends": self.ends_with_job,
        }
        return f"{self.path} ({self.chosen_by}; {', '.join([*facts, *(text for text, is_so in odd.items() if is_so)])})"


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker as a display needs it. state: live, draining, lost. cache, environment: as it said when it joined (None:
    it did not). arriving: what it stages. troubles: what it can't do, and what is odd about it, in sentences."""

    worker: str
    pid: int
    host: str
    state: str
    rows_done: int
    rows_leased: int
    replicas: list[ReplicaView]
    arriving: list[ArrivalView] = []
    devices: list[str] = []
    cache: CacheView | None = None
    environment: Environment | None = None
    troubles: list[str] = []


OTHERS = "(others)"
"""Under this name `Totals.loads` sums up the contexts that were not loaded for long."""


class Totals(Struct, frozen=True, kw_only=True):
    """Sums over the pool's life. `rows_lost`: requests that had started when their replica or worker died."""

    loads: dict[str, int] = {}
    load_s: float = 0.0
    busy_s: float = 0.0
    rows_lost: int = 0
    workers_lost: int = 0
    replicas_lost: int = 0
