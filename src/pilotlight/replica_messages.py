"""The messages between an agent, its runtime servers and its replicas, on one machine.

Each direction is one tagged union, as in `messages.py`.
"""

from __future__ import annotations

from pilotlight.messages import Message
from pilotlight.wire import Chunk, Context, DeviceSpec, Operation, ResultChunk

# --- agent -> runtime server and replica ---------------------------------------------------------------------


class Spawn(Message, frozen=True, kw_only=True):
    """To the runtime server, with the replica's socket as an attached descriptor: fork a replica."""

    replica: str
    log_path: str


class Load(Message, frozen=True, kw_only=True):
    """First message to a replica: build this context on this device. Answered by `Live` or `Failed`. The context's
    `model_path` is where its files are nearest: a parked or staged copy, or the model's own folder."""

    context: Context
    device: DeviceSpec


class Sleep(Message, frozen=True, kw_only=True):
    """To a replica that holds no row and can: give the device's memory back and remember. Answered by `Asleep`."""


class Wake(Message, frozen=True, kw_only=True):
    """To a replica that is asleep: be live again. Answered by `Live`."""


class Feed(Message, frozen=True, kw_only=True):
    """To a replica: run these rows. `operation` comes with the first rows of a job."""

    lease: str
    job: str
    chunks: list[Chunk]
    operation: Operation | None = None


class Forget(Message, frozen=True, kw_only=True):
    """To a replica: a job is over. Drop its operation once no row of it is left."""

    job: str


class Quit(Message, frozen=True, kw_only=True):
    """To a replica: end now, in order; rows it holds are not answered."""


ReplicaMessage = Load | Feed | Quit | Forget | Sleep | Wake


# --- runtime server and replica -> agent ---------------------------------------------------------------------


class Forked(Message, frozen=True, kw_only=True):
    """From the server: this replica's process id. An empty replica: the server itself is ready."""

    replica: str
    pid: int


class Exited(Message, frozen=True, kw_only=True):
    """From the server: a replica ended; `status` is negative for a signal."""

    replica: str
    status: int


class Live(Message, frozen=True, kw_only=True):
    """From a replica: loaded and warm, or awake again."""

    wanted: int
    memory_bytes: int
    stages: dict[str, float]
    can_sleep: bool = False


class Asleep(Message, frozen=True, kw_only=True):
    """From a replica: it sleeps, and holds so much of the device."""

    memory_bytes: int


class Working(Message, frozen=True, kw_only=True):
    """From a replica, at most once a second: a step ended and finished no row. wanted: its wish now; 0: as it was."""

    started: int
    wanted: int = 0


class Failed(Message, frozen=True, kw_only=True):
    """From a replica: it can't load, or can't go on with the rows it has (`out_of_memory`); it exits by itself."""

    kind: str
    reason: str


class Finished(Message, frozen=True, kw_only=True):
    """From a replica: rows of one lease are done. `wanted` is its current wish; `started` is how many of the rows that
    it still holds will have been begun by the end of its next step. `memory_bytes` is what it holds of the device now,
    `attachment_bytes` of that the prompt prefixes."""

    lease: str
    job: str
    chunk: ResultChunk
    wanted: int
    started: int
    memory_bytes: int = 0
    attachment_bytes: int = 0


ServerReply = Forked | Exited
ReplicaReply = Live | Asleep | Failed | Finished | Working
