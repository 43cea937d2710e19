"""The seams: what the manager and the worker need from the outside, as Protocols with their contracts.

Each port has a conformance kit in `pilotlight.testing` that any implementation must pass. Implementations live in
`engines/` (links), `runtimes/`, `pilots/` and `io/`; they are named in `manager/build.py` and `worker/build.py` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pilotlight.core.ranges import IndexSet
from pilotlight.messages import ManagerMessage, WorkerMessage
from pilotlight.wire import Chunk, Context, DeviceSpec, Operation, ResultChunk

# --- links ---------------------------------------------------------------------------------------------------


class ManagerLink(Protocol):
    """The manager's end of all its workers' connections.

    Messages of one worker arrive in the order sent, or not at all once its connection broke. A worker is known from its
    `Join` on; a second `Join` of the same name replaces the first connection without a word of its loss. Callbacks
    run in the event loop that `start` ran in.
    """

    async def start(
        self, on_message: Callable[[str, WorkerMessage], None], on_lost: Callable[[str, str], None]
    ) -> None:
        """Let workers in. `on_message(worker, message)` begins with `Join`; `on_lost(worker, reason)` comes once."""
        ...

    def send(self, worker_id: str, message: ManagerMessage) -> None:
        """Send, without waiting. To a worker that is gone: nothing happens, `on_lost` tells."""
        ...

    def drop(self, worker_id: str, reason: str) -> None:
        """Close a worker's connection without an `on_lost`."""
        ...

    async def stop(self) -> None:
        """Close everything, after what was sent has left."""
        ...


class WorkerLink(Protocol):
    """A worker's end of its connection; it dials out."""

    async def connect(self, on_message: Callable[[ManagerMessage], None], on_lost: Callable[[str], None]) -> None:
        """One try. Raises `LinkClosed` where no manager answers and another try may help, `ConfigError` where none
        can. May be called again after `on_lost`."""
        ...

    @property
    def ends(self) -> tuple[str, str] | None:
        """Where the manager was reached, as `host:port`, and the address of this machine on that way; None where that
        is no network."""
        ...

    def send(self, message: WorkerMessage) -> None:
        """Send, without waiting. Where the connection is gone nothing happens; `on_lost` tells."""
        ...

    def close(self) -> None:
        """Close after what was sent has left."""
        ...


class PilotProvider(Protocol):
    """Starts and ends the batch jobs that run workers. All calls are quick; `poll` tells what became of them."""

    def submit(self, name: str) -> str:
        """Ask for one more worker of this name; returns the pilot's id. Raises `PilotlightError` with a sentence."""
        ...

    def adopt(self, pilot_id: str) -> bool:
        """Look after a pilot that another manager of this pool submitted; False where it is gone. `poll` tells its end
        from then on. The id alone must do: it is all that a pool's journal keeps."""
        ...

    def poll(self) -> dict[str, str]:
        """Pilots that ended since the last call: id -> how, in words."""
        ...

    def cancel(self, pilot_id: str) -> None:
        """End a pilot, first asking, then by force. Unknown ids are passed over."""
        ...

    def close(self) -> None:
        """End all pilots and wait until they are gone."""
        ...


# --- runtimes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One request on its way through a model.

    ticket: names the request in this model while it runs. index: its place in the job (seeds sampling).
    payload: the decoded JSON object (or the unpickled Python value).
    """

    ticket: int
    index: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one answer to a `Row`: a result (JSON-able; any Python value for a `pickle` operation) or an error.

    error_kind: None for a result; else a snake_case kind such as `bad_row`, `prompt_too_long`, `function_error`.
    counters: `prompt_tokens`, `completion_tokens`, `truncated` (0/1), `length` (1 if cut at max_tokens).
    """

    ticket: int
    result: Any = None
    error_kind: str | None = None
    error: str = ""
    counters: dict[str, float] = field(default_factory=dict[str, float])


class Model(Protocol):
    """A live context on one device, in a replica process. One thread calls it.

    `add` hands over rows that may wait inside; `step` works on some of them for at most about a second (or one
    request, if that takes longer) and returns what finished. On a device that was made slower (`DeviceSpec.speed`) the
    replica waits after each step, so a step works for that fraction of the time. Each added row is answered by exactly
    one Outcome, whatever is wrong with it: a row's own fault never raises. What does raise ends the replica. Out of
    memory halves the model's own budget and goes on.
    """

    @property
    def wanted(self) -> int:
        """How many requests this model would like to hold now (running and waiting), so that it never starves."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Device (or host, on CPU) memory that it holds now, attachments included."""
        ...

    @property
    def attachment_bytes(self) -> int:
        """What of that are attachments: prompt prefixes' caches, which it may drop at any time."""
        ...

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` and `wake` may be called."""
        ...

    def sleep(self) -> None:
        """Give back the device's memory and remember in host memory what `wake` needs. Only while nothing pends."""
        ...

    def wake(self) -> None:
        """Be as before `sleep`."""
        ...

    def forget(self, operation: Operation) -> None:
        """No row of this operation is pending, and no job here needs it: drop what was kept for it."""
        ...

    @property
    def stages(self) -> dict[str, float]:
        """Seconds that the load took by stage: `read`, `to_device`, `warm`."""
        ...

    def add(self, operation: Operation, rows: Sequence[Row]) -> None:
        """Take rows. Operations of several jobs may alternate."""
        ...

    def step(self) -> list[Outcome]:
        """Do some work. An empty list does not mean that nothing is left; `pending` says that."""
        ...

    @property
    def pending(self) -> int:
        """Rows added and not answered yet."""
        ...

    @property
    def started(self) -> int:
        """At most so many of the pending rows will have been begun by the end of the next step: what a death costs."""
        ...

    def close(self) -> None:
        """Free the device. Called once, also after an error."""
        ...


class Runtime(Protocol):
    """A library that runs models. `preload` is called in the runtime server, the rest in replicas.

    `preload` imports what every replica needs; it must not compute, tokenise, start threads or touch a device,
    because the process forks afterwards. Optional packages are imported inside methods, and a missing one raises
    `MissingExtra` that names the extra to install.
    """

    name: str

    def preload(self) -> None:
        """Import, nothing else."""
        ...

    def load(self, context: Context, device: DeviceSpec) -> Model:
        """Build the live context and warm it by one request of its own. Raises `LoadError` with one clear sentence."""
        ...

    def preview(self, context: Context, operation: Operation, payloads: Sequence[Any]) -> list[dict[str, Any]]:
        """What would be run, without weights: per row `{"prompt": text, "prompt_tokens": n, "token_ids": [...]}` or
        `{"error_kind": ..., "error": ...}`. For `--dry-run`."""
        ...


# --- input and output ----------------------------------------------------------------------------------------


class Source(Protocol):
    """A job's input, read once from the front. Owned by the manager's job; called from one thread."""

    def read(self, rows_max: int) -> list[Chunk]:
        """The next rows, about `rows_max`, in chunks of at most 1,024 rows and about 256 KiB (a longer row stands
        alone). An empty list means the end, for good. Raises `InputError` with one sentence."""
        ...

    @property
    def fraction(self) -> float | None:
        """How much of the input was read, 0 to 1, if that can be told."""
        ...

    def close(self) -> None:
        """Release files. Idempotent."""
        ...


class Sink(Protocol):
    """Where a job's finished rows go. Rows arrive in any order, each index once (the caller removes repeats)."""

    def write(self, chunk: ResultChunk) -> None:
        """Keep these rows: when it returns they survive the death of this process. Raises `OutputError` (full disk,
        folder gone, superseded by a newer manager)."""
        ...

    def sync(self) -> None:
        """Make everything written survive a power cut. Called about once a second, maybe from another thread."""
        ...

    def finish(self, rows: int) -> None:
        """All `rows` indices 0 <= i < rows are written: put them in order where the user wants them."""
        ...

    def close(self) -> None:
        """Let go of files and locks, keeping what is unfinished. Idempotent."""
        ...


class JobOutput(Sink, Protocol):
    """A sink that remembers its job, so that the next manager can go on where this one was killed.

    epoch: unique and growing per output. done, errors, counters: which rows are in it, error rows among them by kind,
    sums over them; they grow with `write`. attempts: charged so far, of rows that are not done. complete: this very
    request has made it already, and nothing may be written. report: what `finish` puts beside the output.
    """

    epoch: int
    done: IndexSet
    errors: dict[str, int]
    counters: dict[str, float]
    attempts: dict[int, int]
    complete: bool
    report: dict[str, Any]

    def record_attempts(self, counts: Mapping[int, int]) -> None:
        """Remember how many attempts rows were charged in all. Raises `OutputError`."""
        ...

    def beat(self) -> None:
        """Give a sign of life; to be called about once a second. Raises `Superseded`."""
        ...
