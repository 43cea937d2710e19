"""State tables: which change is legal, and one line of why for each. The docs' diagrams are drawn from these.

A state changes by `step(TABLE, old, new)` only, so a change that no table allows is an assertion at its source.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar


class ReplicaState(Enum):
    """A replica as its worker reports it."""

    STARTING = "starting"
    LIVE = "live"
    ASLEEP = "asleep"
    STOPPING = "stopping"
    GONE = "gone"


class Level(Enum):
    """How near a worker is to hold a variant, nearest first."""

    LIVE = "live"
    PARKED = "parked"
    STAGED = "staged"


class LeaseState(Enum):
    """A lease as the manager believes it."""

    OPEN = "open"
    REVOKING = "revoking"
    CLOSED = "closed"


class JobState(Enum):
    """A job from submission to its end."""

    RUNNING = "running"
    DRAINING = "draining"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUSPENDED = "suspended"


class WorkerState(Enum):
    """A worker from its join to its loss."""

    LIVE = "live"
    DRAINING = "draining"
    LOST = "lost"


S = TypeVar("S", bound=Enum)
Table = dict[tuple[S, S], str]

REPLICA: Table[ReplicaState] = {
    (ReplicaState.STARTING, ReplicaState.LIVE): "it loaded its context and answered a request of its own",
    (ReplicaState.STARTING, ReplicaState.STOPPING): "nothing wants it any more, or its worker drains",
    (ReplicaState.STARTING, ReplicaState.GONE): "it could not load, or it died while loading",
    (ReplicaState.LIVE, ReplicaState.STOPPING): "its room is wanted for another variant, or its worker drains",
    (ReplicaState.LIVE, ReplicaState.GONE): "it died: its rows become suspects",
    (ReplicaState.LIVE, ReplicaState.ASLEEP): "its room is wanted, and it can wake sooner than it could load",
    (ReplicaState.ASLEEP, ReplicaState.LIVE): "it is wanted again, and gave an answer to its first request",
    (ReplicaState.ASLEEP, ReplicaState.STOPPING): "nothing wants it any more, or its worker drains",
    (ReplicaState.ASLEEP, ReplicaState.GONE): "it died in its sleep, with no row to lose",
    (ReplicaState.STOPPING, ReplicaState.GONE): "it ended as asked, or was killed when it did not",
}

LEASE: Table[LeaseState] = {
    (LeaseState.OPEN, LeaseState.REVOKING): "another worker is idle, the job drains, or the share changed",
    (LeaseState.REVOKING, LeaseState.OPEN): "the worker gave back what had not started",
    (LeaseState.OPEN, LeaseState.CLOSED): "every row came back, or its worker was lost",
    (LeaseState.REVOKING, LeaseState.CLOSED): "every row came back, or its worker was lost",
}

JOB: Table[JobState] = {
    (JobState.RUNNING, JobState.DRAINING): "its client asked to stop; what replicas hold may finish",
    (JobState.RUNNING, JobState.COMPLETED): "every row of the input is in the output",
    (JobState.RUNNING, JobState.FAILED): "its context can't be loaded anywhere, or its input can't be read",
    (JobState.RUNNING, JobState.CANCELLED): "its client asked for an end at once, or is gone",
    (JobState.RUNNING, JobState.SUSPENDED): "its output can't be written; nothing is lost",
    (JobState.DRAINING, JobState.COMPLETED): "the last rows were among those that could finish",
    (JobState.DRAINING, JobState.CANCELLED): "no replica holds a row of it any more",
    (JobState.DRAINING, JobState.FAILED): "its context was lost everywhere while it drained",
    (JobState.DRAINING, JobState.SUSPENDED): "its output can't be written; nothing is lost",
}

WORKER: Table[WorkerState] = {
    (WorkerState.LIVE, WorkerState.DRAINING): "it was warned: a signal, a notice, its walltime's end",
    (WorkerState.LIVE, WorkerState.LOST): "its connection broke, or it was silent too long",
    (WorkerState.DRAINING, WorkerState.LOST): "it left, or was taken before it could",
}


def step(table: Table[S], old: S, new: S) -> S:
    """The new state, if the table has that edge; anything else is a mistake of ours."""
    assert (old, new) in table, f"no way from {old} to {new}"
    return new


def mermaid(table: Table[S]) -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2"]
    lines += [f"    {old.value} --> {new.value}: {why}" for (old, new), why in table.items()]
    return "\n".join(lines)
