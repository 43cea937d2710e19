"""What a world is made of: models, kinds of machines, work, and how finely time is cut.

All times in seconds, sizes in bytes, speeds relative to a device of speed 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.sim.chance import lognormal


@dataclass(frozen=True, slots=True)
class Model:
    """A variant. memory_bytes: of a live replica; file_bytes: of its files.

    A load is: import_s once per worker (the runtime server), start_s (the fork), reading the files from the nearest
    place, moving them to the device, warm_s on a device of speed 1.
    """

    variant_id: str
    memory_bytes: int = 4_000_000_000
    file_bytes: int = 3_400_000_000
    import_s: float = 6.0
    start_s: float = 0.3
    warm_s: float = 1.0
    sleeps: bool = False
    declared_bytes: int | None = None
    """What jobs say that it needs, where that is not the truth."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of machine. speed: of each of its devices. disk: its local cache, read; link: its network card, either
    way; to_device, memory: copying to a device and within the host. All in bytes/s. abreast: how many replicas of a
    host, loading ones too, work at full speed beside each other; more share what that yields (0: any number)."""

    name: str = "gpu"
    speed: float = 1.0
    devices: int = 1
    memory_bytes: int = 24_000_000_000
    host_bytes: int = 64_000_000_000
    disk_bytes_per_s: float = 1.5e9
    link_bytes_per_s: float = 1.25e9
    to_device_bytes_per_s: float = 6.0e9
    memory_bytes_per_s: float = 8.0e9
    is_host: bool = False
    abreast: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """A job. row_s: of a request on a device of speed 1 whose replica is full; sigma: of a lognormal spread of that
    (mean kept; 0: all alike). poison kills replicas, hangs never end, outgrows: rows that run out of memory on devices
    of at most so many bytes."""

    rows: int
    model: str
    row_s: float = 0.1
    sigma: float = 0.0
    weight: float = 1.0
    at_s: float = 0.0
    seed: int = 0
    may_hedge: bool = True
    request_timeout_s: float = 600.0
    poison: frozenset[int] = frozenset()
    hangs: frozenset[int] = frozenset()
    outgrows: dict[int, int] = field(default_factory=dict[int, int])

    def seconds(self, index: int) -> float:
        """What a row takes on a device of speed 1."""
        return self.row_s * lognormal(self.seed, index, self.sigma) if self.sigma else self.row_s

    def spares(self, spans: Iterable[tuple[int, int]]) -> bool:
        """Whether none of these rows kills its replica or makes it hang."""
        bad = (*self.poison, *self.hangs, *self.outgrows)
        return not any(start <= index < stop for start, stop in spans for index in bad)

    def total_s(self, start: int, stop: int) -> float:
        """What the rows from `start` to before `stop` take together there."""
        return math.fsum(map(self.seconds, range(start, stop))) if self.sigma else (stop - start) * self.row_s


@dataclass(frozen=True, slots=True)
class Pace:
    """How finely time is cut, and how long messages take.

    step_s: a replica answers as many rows at a time as take so long. report_s: and reports these rows so much later at
    most, many steps together, as long as nothing else happens to it (`sim.steps`); 0: each step. tick_s: between ticks
    of the manager, and of agents while something is due (else they are not ticked); what is overdue is noticed so much
    later at most.
    heard_s: between a worker's signs of life. message_s, jitter_s: a message takes the first and up to the second more.
    notice_s: until a broken connection is noticed; dial_s: until a worker dials again. read_s: a read of input.
    """

    step_s: float = 0.5
    report_s: float = 0.0
    tick_s: float = 0.25
    heard_s: float = 1.0
    message_s: float = 0.001
    jitter_s: float = 0.0
    notice_s: float = 0.01
    dial_s: float = 0.2
    read_s: float = 0.002
    slots: int = 4
    """Rows that a replica wants at least, however long they take."""
    wanted_steps: float = 2.0
    """Of how many steps a replica wants the rows."""
    orphan_s: float = 600.0
    """How long a worker without a manager stays."""
    peers: bool = True
    """Whether workers copy files from each other."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where files come from in the first place: a shared file system, a hub. bytes_per_s: of all readers together."""

    bytes_per_s: float = 2.5e9
    per_reader: float = 1.0e9
    latency_s: float = 0.01
