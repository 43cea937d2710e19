"""What a simulated machine stands on and is surrounded by: its host, the clock, and the way to the manager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pilotlight.core import events as ev
from pilotlight.sim.clock import Clock
from pilotlight.sim.links import Shared
from pilotlight.sim.meter import Meter
from pilotlight.sim.process import Results
from pilotlight.sim.spec import Kind, Model, Pace, Work

if TYPE_CHECKING:
    from pilotlight.sim.machine import Machine


@dataclass(slots=True)
class Host:
    """The machine below workers: what its disk holds outlives them. `staged`: bytes by variant."""

    name: str
    kind: Kind
    disk: Shared
    uplink: Shared
    staged: dict[str, float] = field(default_factory=dict[str, float])
    machines: list[Machine] = field(default_factory=list["Machine"])
    """The workers on it."""

    def slowness(self) -> float:
        """How much longer a step takes that begins now, for all that the host does."""
        if not self.kind.abreast:
            return 1.0
        busy = sum(process.busy for machine in self.machines for process in machine.processes.values())
        return max(1.0, busy / self.kind.abreast)


@dataclass(slots=True)
class Surroundings:
    """What machines share, and how they reach the manager. `source`: whose uplink serves files, by worker ("": the
    origin); None where that worker is gone. `holds`: whether a worker has all of a variant's files. `left_s`: how long
    all that is left of a job takes all who are there."""

    clock: Clock
    pace: Pace
    meter: Meter
    models: dict[str, Model]
    works: dict[str, Work]
    source: Callable[[str], Shared | None]
    holds: Callable[[str, str], bool]
    send: Callable[[Machine, ev.ManagerEvent | Results], None]
    left: Callable[[Machine, str], None]
    coin: Callable[[], bool]
    left_s: Callable[[str], float]
    checking: bool = False


@dataclass(slots=True)
class Link:
    """A connection of a worker: what it carries arrives in order, or not at all once it is closed."""

    opened_s: float = float("-inf")
    open: bool = True
    broken: bool = False
    """The worker hears nothing more of it; the manager may still read what arrived."""
    up_s: float = 0.0
    down_s: float = 0.0
    """When what was said last arrives."""
    mute_s: float = float("-inf")
    """Until when it carries nothing."""
