"""What is on disk of a job: it outlives every process, but for what a machine that loses its power had not synced."""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core import events as ev
from pilotlight.core.ranges import IndexSet
from pilotlight.core.transitions import JobState
from pilotlight.sim.spec import Work

SYNC_S = 1.0
"""What was written longer ago is safe from a loss of power."""


@dataclass(slots=True)
class Output:
    """What is on disk of a job: it outlives every process."""

    work: Work
    done: IndexSet = field(default_factory=IndexSet)
    errors: dict[int, str] = field(default_factory=dict[int, str])
    attempts: dict[int, int] = field(default_factory=dict[int, int])
    read: int = 0
    began_s: float = 0.0
    ended: JobState | None = None
    ended_s: float | None = None
    message: str = ""
    cancelled: bool = False
    """A client asked for its end."""
    unsynced: list[tuple[float, tuple[ev.Span, ...]]] = field(default_factory=list[tuple[float, tuple[ev.Span, ...]]])
    """(time, rows) of what the disk may not have kept yet; noted where everything is checked."""

    def lose(self, since_s: float) -> None:
        """What was written since then is gone. What has ended was synced."""
        for at_s, spans in self.unsynced if self.ended is None else ():
            if at_s > since_s:
                self.done.discard(spans)
                for start, _ in spans:
                    self.errors.pop(start, None)
        self.unsynced.clear()
