"""Writes what the machine took in and decided to `events.jsonl`, for stories told later. `io/eventfile.py` reads it.

`record` encodes and returns; a thread of its own writes about each second, so that no disk, full or hanging, holds the
manager up. What can't be written is counted, and the log says so when it can. Steps that say nothing new are left out,
and rows of one lease that come one by one are summed up. Two files of bounded size are kept; a new one begins with
what still stands: who is here, what is live where, which jobs run.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pilotlight import __version__
from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Variant
from pilotlight.core.ranges import IndexSet, Span
from pilotlight.io.eventfile import FORMAT, NAME, OLDER_NAME, Header
from pilotlight.manager.causes import Causes

FILE_BYTES_MAX = 64 << 20
QUEUED_BYTES_MAX = 16 << 20
"""More than a disk that is merely slow leaves waiting."""
FLUSH_S = 1.0
CLOSE_S_MAX = 2.0
NAMES_MAX = 1000
"""So many contexts are known by name after a turn; more would let a lasting pool's log grow."""


class File(Protocol):
    """What the writer needs of an unbuffered file that is open for appending."""

    def write(self, data: memoryview, /) -> int | None:
        """Returns how many bytes were written. Raises `OSError`."""
        ...

    def tell(self) -> int:
        """How many bytes the file has."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


def open_to_append(path: Path) -> File:
    """Raises `OSError`."""
    file = path.open("ab", buffering=0)
    file.seek(0, 2)
    return file


@dataclass(slots=True)
class _Rows:
    """Rows of one lease that came one by one since `since_s`."""

    event: ev.RowsWritten
    since_s: float
    at_s: float
    because: int | None
    spans: list[Span]
    errors: dict[str, list[int]]


@dataclass(slots=True)
class _Standing:
    """The lines that a new file repeats, by what they are about; and what people call variants."""

    names: dict[str, str] = field(default_factory=dict[str, str])
    pins: dict[str, bytes] = field(default_factory=dict[str, bytes])
    jobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    workers: dict[str, bytes] = field(default_factory=dict[str, bytes])
    wants: dict[str, bytes] = field(default_factory=dict[str, bytes])
    leaving: dict[str, bytes] = field(default_factory=dict[str, bytes])
    held: dict[tuple[str, str, str], bytes] = field(default_factory=dict[tuple[str, str, str], bytes])
    """By worker, variant, and the device of a replica or the level of a copy."""

    def lines(self) -> list[bytes]:
        """Workers before what is on them."""
        told = (self.pins, self.jobs, self.workers, self.wants, self.held, self.leaving)
        return [line for lines in told for line in lines.values()]

    def meet(self, *variants: Variant) -> None:
        """Names outlive what brought them, as replicas do; the last ones heard are kept."""
        for variant in variants:
            self.names.pop(variant.variant_id, None)
            self.names[variant.variant_id] = variant.name
        while len(self.names) > NAMES_MAX:
            del self.names[next(iter(self.names))]

    def lose_worker(self, worker_id: str) -> None:
        """What was on it is gone with it."""
        for lines in (self.workers, self.wants, self.leaving):
            lines.pop(worker_id, None)
        for key in [key for key in self.held if key[0] == worker_id]:
            del self.held[key]


class EventLog:
    """One manager's log in `folder`. `record` never raises and never waits; `close` waits for a moment at most."""

    def __init__(
        self,
        folder: Path,
        *,
        epoch: int,
        pool: str = "",
        file_bytes_max: int = FILE_BYTES_MAX,
        open_file: Callable[[Path], File] = open_to_append,
    ) -> None:
        self._began_s = time.monotonic()
        self._header = Header(log=FORMAT, pilotlight=__version__, pool=pool, epoch=epoch, began=time.time())
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._n = 0
        self._causes = Causes()
        self._standing = _Standing()
        self._resident: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._rows: dict[tuple[str, str, str], _Rows] = {}
        self._lines: list[bytes] = []
        self._flush_at_s = self._began_s + FLUSH_S
        self._bytes = _size(folder / NAME)
        self._bytes_max = file_bytes_max
        self._header_again = self._encode(msgspec.structs.replace(self._header, again=True))
        self._writer = _Writer(folder, self._began_s, open_file, self._header_again)
        self._put(self._encode(self._header))

    # --- what is worth a line

    def record(self, event: ev.ManagerEvent, decisions: Sequence[do.ManagerDecision], now: float) -> None:
        """A step of the machine, at `now` on the monotonic clock."""
        match event:
            case ev.RowsWritten():
                self._rows_written(event, decisions, now)
            case ev.Tick() | ev.WorkerHeard() | ev.SourceAsked() if not decisions:
                pass
            case ev.ReplicaReported() if not decisions and self._is_known(event):
                pass
            case _:
                self._flush_rows()
                self._step(event, decisions, now)
        if now >= self._flush_at_s:
            self.flush(now)

    def _rows_written(self, event: ev.RowsWritten, decisions: Sequence[do.ManagerDecision], now: float) -> None:
        key = (event.job_id, event.lease_id, event.device_id)
        rows = self._rows.get(key)
        if rows is None:
            self._rows[key] = rows = _Rows(event, now, now, self._causes.of(event), [], {})
        rows.at_s = now
        rows.spans += event.spans
        for kind, indices in event.errors.items():
            rows.errors[kind] = rows.errors.get(kind, []) + indices
        if decisions:
            del self._rows[key]
            if not all(isinstance(decision, do.GrantRows | do.ReadRows) for decision in decisions):
                self._flush_rows()
            self._write_rows(rows, decisions)

    def _flush_rows(self) -> None:
        """Rows that are being summed up came before what comes now."""
        if self._rows:
            for rows in self._rows.values():
                self._write_rows(rows, ())
            self._rows.clear()

    def _write_rows(self, rows: _Rows, decisions: Sequence[do.ManagerDecision]) -> None:
        event = rows.event
        if len(rows.spans) > len(event.spans):
            spans = tuple(IndexSet(rows.spans).spans())
            event = ev.RowsWritten(
                event.job_id, spans, event.lease_id, event.worker_id, event.device_id, errors=rows.errors
            )
        since_s = rows.since_s if rows.since_s < rows.at_s else None
        self._step(event, decisions, rows.at_s, because=rows.because, since_s=since_s)

    def _is_known(self, event: ev.ReplicaReported) -> bool:
        """Whether a report says only that a replica holds or wants more or less."""
        fact = event.fact
        key = (event.worker_id, fact.device_id, fact.variant_id)
        told = (fact.replica_id, fact.state.value)
        if self._resident.get(key) == told:
            return True
        self._resident[key] = told
        return False

    # --- lines

    def _step(
        self,
        event: ev.ManagerEvent,
        decisions: Sequence[do.ManagerDecision],
        now: float,
        *,
        because: int | None = None,
        since_s: float | None = None,
    ) -> None:
        self._n += 1
        if because is None:
            because = self._causes.of(event)
        line: dict[str, Any] = {"n": self._n, "t": round(now - self._began_s, 4)}
        if since_s is not None:
            line["since"] = round(since_s - self._began_s, 4)
        if because is not None:
            line["because"] = because
        line["event"] = {type(event).__name__: event}
        if decisions:
            line["do"] = [{type(decision).__name__: decision} for decision in decisions]
            self._causes.learn(self._n, decisions)
        self._put(self._encoded(line))
        self._stand(event, decisions, line)

    def _encoded(self, line: Any) -> bytes:
        try:
            return self._encode(line)
        except (UnicodeEncodeError, ValueError, TypeError):  # a process's last words may be anything
            plain = msgspec.to_builtins(line, enc_hook=str, str_keys=True)
            return json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")

    def _stand(self, event: ev.ManagerEvent, decisions: Sequence[do.ManagerDecision], line: dict[str, Any]) -> None:
        standing = self._standing
        match event:
            case ev.JobSubmitted():
                standing.meet(event.variant)
                standing.jobs[event.job_id] = self._again(line)
            case ev.VariantPinned(variant, on):
                standing.meet(variant)
                standing.pins.pop(variant.variant_id, None)
                if on:
                    standing.pins[variant.variant_id] = self._again(line)
            case _:
                self._stand_on_worker(event, line)
        for decision in decisions:
            match decision:
                case do.EndJob(job_id):
                    standing.jobs.pop(job_id, None)
                case do.SendWants(worker_id) if worker_id in standing.workers:
                    standing.wants[worker_id] = self._again(line, wants=decision)
                case _:
                    pass

    def _stand_on_worker(self, event: ev.ManagerEvent, line: dict[str, Any]) -> None:
        standing = self._standing
        match event:
            case ev.WorkerJoined():
                standing.meet(*event.variants)
                standing.lose_worker(event.worker_id)
                standing.workers[event.worker_id] = self._again(line)
            case ev.WorkerLeaving(worker_id) if worker_id in standing.workers:
                standing.leaving[worker_id] = self._again(line)
            case ev.WorkerLost():
                standing.lose_worker(event.worker_id)
                for key in [key for key in self._resident if key[0] == event.worker_id]:
                    del self._resident[key]
            case ev.ReplicaReported(worker_id, fact):
                standing.held[worker_id, fact.variant_id, fact.device_id] = self._again(line)
            case ev.CopyReported(worker_id, fact):
                key = (worker_id, fact.variant_id, f"a copy, {fact.level.value}")
                standing.held.pop(key, None)
                if fact.bytes:
                    standing.held[key] = self._again(line)
            case ev.ReplicaStopped() | ev.ReplicaDied() | ev.LoadFailed():
                standing.held.pop((event.worker_id, event.variant_id, event.device_id), None)
                self._resident.pop((event.worker_id, event.device_id, event.variant_id), None)
            case _:
                pass

    def _again(self, line: dict[str, Any], *, wants: do.SendWants | None = None) -> bytes:
        """What happened still stands; what was decided then is done, but for what a worker is to hold."""
        again: dict[str, Any] = {"again": True, "n": line["n"], "t": line["t"]}
        if wants is not None:
            return self._encoded({**again, "event": {"Tick": ev.Tick()}, "do": [{"SendWants": wants}]})
        return self._encoded({**again, "event": line["event"]})

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line) + 1

    # --- on the way out

    def flush(self, now: float) -> None:
        """Hand over to the writer what there is."""
        self._flush_at_s = now + FLUSH_S
        self._flush_rows()
        if self._lines:
            self._writer.put(self._lines)
            self._lines = []
        if self._bytes > self._bytes_max:
            self._bytes = 0
            self._writer.turn()
            self._put(self._header_again)
            if self._standing.names:
                self._put(self._encoded({"t": round(now - self._began_s, 4), "names": self._standing.names}))
            for line in self._standing.lines():
                self._put(line)

    def close(self) -> None:
        """Write out what there is, for a moment at most."""
        self.flush(time.monotonic())
        self._writer.close()


def _size(path: Path) -> int:
    """How long the file is that a manager before this one left."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Writer:
    """The thread that writes. It opens the file when it first has something for it, and again after a failure."""

    def __init__(self, folder: Path, began_s: float, open_file: Callable[[Path], File], header_again: bytes) -> None:
        self._folder = folder
        self._began_s = began_s
        self._header_again = header_again
        self._open = open_file
        self._file: File | None = None
        self._torn = False
        self._lost = 0
        self._why = ""
        self._queue: queue.SimpleQueue[list[bytes] | str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._overflow = 0
        self._thread = threading.Thread(target=self._run, name="event log", daemon=True)
        self._thread.start()

    # --- the manager's side

    def put(self, lines: list[bytes]) -> None:
        """Write these, or count them as lost where too much waits already."""
        size = sum(map(len, lines))
        with self._lock:
            if self._queued_bytes + size > QUEUED_BYTES_MAX:
                self._overflow += len(lines)
                return
            self._queued_bytes += size
        self._queue.put(lines)

    def turn(self) -> None:
        """Begin a new file."""
        self._queue.put("turn")

    def close(self) -> None:
        """Wait until all is written, for a moment at most."""
        self._queue.put("end")
        self._thread.join(CLOSE_S_MAX)

    # --- the thread's side

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, list):
                self._write(item)
                with self._lock:
                    self._queued_bytes -= sum(map(len, item))
            else:
                self._let_go()
                if item == "end":
                    return
                with contextlib.suppress(OSError):
                    (self._folder / NAME).replace(self._folder / OLDER_NAME)

    def _write(self, lines: list[bytes]) -> None:
        with self._lock:
            if self._overflow:
                self._lost, self._overflow = self._lost + self._overflow, 0
                self._why = self._why or "the disk was too slow"
        try:
            if self._lost:
                t = round(time.monotonic() - self._began_s, 4)
                gap = msgspec.json.encode({"t": t, "lost": self._lost, "why": self._why})
                self._append(self._header_again + b"\n" + gap + b"\n")  # the first header may be among the lost
                self._lost, self._why = 0, ""
            self._append(b"\n".join(lines) + b"\n")
        except OSError as error:
            self._lost += len(lines)
            self._why = f"the log could not be written: {error.strerror or error}"
            self._let_go()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._open(self._folder / NAME)
            if self._torn or self._file.tell():
                data = b"\n" + data  # after a line that was torn, by us or by whoever wrote here before
        self._torn = True
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self._torn = False

    def _let_go(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
