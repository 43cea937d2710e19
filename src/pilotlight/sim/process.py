"""A simulated replica's process: what it works on, waits for while it loads, and says of what it did."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pilotlight.core import events as ev
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
    origin: str = ""
    """What it is being built from."""
    timers: list[Timer] = field(default_factory=list[Timer])
    reads: list[tuple[Shared, Transfer]] = field(default_factory=list[tuple[Shared, Transfer]])
    load_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict[str, float])
    answered: int = 0

    def runs_any(self, indices: Iterable[int]) -> bool:
        """Whether one of these rows of its job is in its step."""
        spans = self.step[2] if self.step is not None else []
        return any(start <= index < stop for index in indices for start, stop in spans)

    @property
    def busy(self) -> bool:
        """Whether it works on rows or loads, rather than sleeps or waits."""
        loads = bool(self.reads) or any(timer.what is not None for timer in self.timers)
        return self.step is not None or (not self.live and loads)


@dataclass(frozen=True, slots=True)
class Results:
    """Results on their way to the manager, their number for the acknowledgement, and how many rows the worker has
    begun beside."""

    written: ev.RowsWritten
    number: int
    started: int


def variant_of(model: Model) -> ev.Variant:
    """A variant as jobs describe it."""
    declared = model.memory_bytes if model.declared_bytes is None else model.declared_bytes
    return ev.Variant(model.variant_id, model.variant_id, declared, has_files=model.file_bytes > 0)
