"""A job's files and bytes: its input as it is read, its rows until they are done, its results as they are written.

Two kinds: a `PathJob` reads and writes files that outlive everyone; a `StreamJob` speaks with its client. Which rows
are done is known by `core.state`, what is on disk by the job's folder; this holds only what lies between.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import accumulate, compress
from typing import Any

import msgspec

from pilotlight.core.errors import InputError
from pilotlight.manager.sampling import seed_of
from pilotlight.messages import RowsOut
from pilotlight.ports import JobOutput, Source
from pilotlight.rowstore import RowStore
from pilotlight.views import Totals
from pilotlight.wire import Chunk, Context, JobRequest, ResultChunk, Span, digest

READ_BYTES_MAX = 64 << 20
"""About how much one read of files takes in, unless a block of rows is more."""
GRANT_BYTES_MAX = 64 << 20
"""Rows of one grant: long ones go in several, so that no message grows out of all bounds."""
HELD_BYTES_MAX = 256 << 20
"""With so many bytes of unfinished rows at hand, files are not read on."""
_ROWS_MIN = 4096


class JobFiles(ABC):
    """What both kinds share: the store of rows at hand, and the sums over finished rows."""

    def __init__(self, job_id: str, request: JobRequest) -> None:
        self.job_id = job_id
        self.request = request
        self.detached = False
        """Whether it goes on without any client."""
        self.variant_id = variant_id_of(request.context)
        self.store = RowStore()
        self.read_upto = 0
        self.known_upto = 0
        """Rows below were handed out by an earlier manager, or may have been: results of theirs may still come."""
        self.rows_total: int | None = None
        self.rows_resumed = 0
        self.rows_done = 0
        self.errors: dict[str, int] = {}
        self.counters: dict[str, float] = {}
        self.began_s = time.time()
        self.began_monotonic_s = time.monotonic()
        self.totals_before = Totals()
        """The pool's sums when it began."""
        self.sent_to: set[str] = set()
        self.waiting = 0
        """Rows asked for and not there yet, or too many for the room that there is; 0 if none were."""

    @abstractmethod
    def read(self, rows: int) -> list[Chunk] | None:
        """The next rows; an empty list at the end of the input; None if none are there yet. Raises `InputError`."""

    @property
    def fraction(self) -> float | None:
        """How much of the input was read."""
        return None

    @property
    def full(self) -> bool:
        """Whether no more is to be read until rows at hand are done."""
        return False

    @abstractmethod
    def write(self, chunk: ResultChunk) -> None:
        """Keep finished rows. Raises `OutputError`."""

    def count(self, chunk: ResultChunk) -> None:
        """Add finished rows to the sums."""
        self.rows_done += chunk.count
        for kind, indices in chunk.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + len(indices)
        for name, value in chunk.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value

    @abstractmethod
    def close(self) -> None:
        """Let go of files, keeping what is unfinished."""


class PathJob(JobFiles):
    """Files in, a file out."""

    def __init__(
        self, job_id: str, request: JobRequest, source: Source, folder: JobOutput, *, known_upto: int = 0
    ) -> None:
        super().__init__(job_id, request)
        self.known_upto = known_upto
        self._source = source
        self.folder = folder
        self.rows_resumed = self.rows_done = len(folder.done)
        self.errors = dict(folder.errors)
        self.counters = dict(folder.counters)
        self._row_bytes = READ_BYTES_MAX // _ROWS_MIN

    def read(self, rows: int) -> list[Chunk]:
        """See `JobFiles.read`. Of long rows it reads fewer than asked for."""
        chunks = self._source.read(min(rows, max(_ROWS_MIN, READ_BYTES_MAX // self._row_bytes)))
        if chunks:
            self._row_bytes = 1 + sum(len(chunk.blob) for chunk in chunks) // sum(chunk.count for chunk in chunks)
        return chunks

    @property
    def full(self) -> bool:
        """See `JobFiles.full`."""
        return self.store.bytes_held >= HELD_BYTES_MAX

    @property
    def fraction(self) -> float | None:
        """See `JobFiles.fraction`."""
        return self._source.fraction

    def write(self, chunk: ResultChunk) -> None:
        """See `JobFiles.write`."""
        self.folder.write(chunk)

    def close(self) -> None:
        """See `JobFiles.close`."""
        self._source.close()
        self.folder.close()


class StreamJob(JobFiles):
    """Rows from a client, results back to it."""

    def __init__(self, job_id: str, request: JobRequest, send: Callable[[RowsOut], None]) -> None:
        super().__init__(job_id, request)
        self._send = send
        self._arrived: deque[Chunk] = deque()
        self._arrived_upto = 0
        self._ended = False

    def arrive(self, chunk: Chunk) -> None:
        """Rows came from the client. Raises `InputError` where they do not follow those before."""
        if chunk.start != self._arrived_upto or self._ended:
            raise InputError(f"rows of {self.job_id} came out of order: {chunk.start} after {self._arrived_upto}")
        self._arrived_upto = chunk.stop
        self._arrived.append(chunk)

    def end_input(self) -> None:
        """The client has no more rows."""
        self._ended = True

    def read(self, rows: int) -> list[Chunk] | None:
        """See `JobFiles.read`."""
        if not self._arrived:
            return [] if self._ended else None
        taken: list[Chunk] = []
        while self._arrived and (not taken or taken[-1].stop - taken[0].start + self._arrived[0].count <= rows):
            taken.append(self._arrived.popleft())
        return taken

    def write(self, chunk: ResultChunk) -> None:
        """See `JobFiles.write`."""
        self._send(
            RowsOut(job=self.job_id, chunk=msgspec.structs.replace(chunk, tallies={}) if chunk.tallies else chunk)
        )

    def close(self) -> None:
        """See `JobFiles.close`; it has no files."""


def variant_id_of(context: Context) -> str:
    """A variant's id: its context's, and the runtime that holds it."""
    return f"{context.runtime}-{context.id}"


def identity(request: JobRequest) -> dict[str, Any]:
    """What makes two jobs the same: everything that changes an answer, by the names that a refusal can say.

    Sampling counts where something samples; a seed that follows from all the rest would only say the same again.
    """
    operation = request.operation
    named: dict[str, Any] = {
        "model": request.context.name,
        "model content": request.context.identity,
        "runtime": request.context.runtime,
        **request.context.options,
        **msgspec.structs.asdict(operation),
    }
    named["operation"] = named.pop("kind")
    sampling = named.pop("sampling")
    if operation.kind == "generate":
        named |= msgspec.structs.asdict(sampling)
        if sampling.seed == seed_of(operation):
            del named["seed"]
    if operation.function is not None:
        named["function"] = digest(operation.function)
    return {name: value for name, value in named.items() if value is not None and value not in ([], {}, "")}


def only(chunk: ResultChunk, spans: list[Span]) -> ResultChunk:
    """The part of a chunk whose rows are in `spans` (each within the chunk's). Sums without tallies are shared
    out by number."""
    wanted = {index for start, stop in spans for index in range(start, stop)}
    indices = [index for start, stop in chunk.spans for index in range(start, stop)]
    lines = [line for index, line in zip(indices, chunk.blob.split(b"\n"), strict=True) if index in wanted]
    errors = {kind: [i for i in rows if i in wanted] for kind, rows in chunk.errors.items()}
    part = len(lines) / len(indices)
    kept = [index in wanted for index in indices]
    tallies = {name: list(compress(values, kept)) for name, values in chunk.tallies.items()}
    counters = {name: value * part for name, value in chunk.counters.items()}
    counters |= {name: sum(values) for name, values in tallies.items()}
    return ResultChunk(
        spans,
        b"\n".join(lines),
        {kind: rows for kind, rows in errors.items() if rows},
        counters,
        tallies,
    )


def split(chunks: list[Chunk]) -> tuple[list[Chunk], tuple[Span, ...]]:
    """As many chunks as one grant may hold, one at least, and the spans of the others."""
    sizes = accumulate(len(chunk.blob) for chunk in chunks)
    fit = max(1, sum(size <= GRANT_BYTES_MAX for size in sizes))
    return chunks[:fit], tuple((chunk.start, chunk.stop) for chunk in chunks[fit:])
