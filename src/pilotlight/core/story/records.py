"""What stories are told from, and what they are made of.

A run's log is a sequence of records: a manager began, a step of its machine (an event and what was decided), or a gap.
A story is lines of plain words. Times are seconds since the first manager of the log began.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotlight.core.decisions import ManagerDecision
from pilotlight.core.events import ManagerEvent


@dataclass(frozen=True, slots=True)
class Began:
    """A manager began. wall_s: Unix time of that. again: what it did before is not in the log any more."""

    at_s: float
    epoch: int
    version: str
    pool: str
    wall_s: float
    again: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """The machine took in an event and decided. `n` counts a manager's steps that were recorded; `because` is the one
    whose decision led to this event. since_s: when the first of rows began to be written that one step sums up."""

    n: int
    at_s: float
    event: ManagerEvent
    decisions: tuple[ManagerDecision, ...] = ()
    because: int | None = None
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gap:
    """So many records are missing, and why."""

    at_s: float
    lost: int
    reason: str


@dataclass(frozen=True, slots=True)
class Named:
    """What people call variants that were heard of before what is left of the log."""

    at_s: float
    names: dict[str, str]


Record = Began | Step | Gap | Named


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of a story. `n`: the step that it tells of; 0 where it tells of several."""

    at_s: float
    text: str
    n: int = 0


@dataclass(slots=True)
class Story:
    """What a thing is and how it fared, in one sentence, and what happened to it, in order."""

    title: str
    lines: list[Line] = field(default_factory=list[Line])
