"""A simulated replica's process: what it works on, and what it waits for while it loads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pilotlight.core.ranges import IndexSet, Span
from pilotlight.sim.clock import Timer
from pilotlight.sim.links import Shared, Transfer
from pilotlight.sim.spec import Model


@dataclass(slots=True)
class Process:
    """A replica's process. `held`: (lease, job, rows) in the order in which they came, but jobs take turns."""

    replica_id: str
    device_id: str
    model: Model
    live: bool = False
    held: deque[tuple[str, str, IndexSet]] = field(default_factory=deque[tuple[str, str, IndexSet]])
    step: tuple[str, str, list[Span], float] | None = None
    """What it works on: lease, job, rows, seconds on a device of speed 1."""
    began_s: float = 0.0
    speed: float = 0.0
    """Of the step that is under way."""
    timers: list[Timer] = field(default_factory=list[Timer])
    reads: list[tuple[Shared, Transfer]] = field(default_factory=list[tuple[Shared, Transfer]])
    load_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict[str, float])
    answered: int = 0

    @property
    def busy(self) -> bool:
        """Whether it works on rows or loads, rather than sleeps or waits."""
        loads = bool(self.reads) or any(timer.what is not None for timer in self.timers)
        return self.step is not None or (not self.live and loads)
