"""The replica: the process that holds one live context on one device, and runs rows.

Its loop has one thread: take what the agent sent, let the model work for a moment, send what finished. The only place
where a row's bytes are decoded and its result encoded (through `io/rows.py`). It ends when its socket does.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotlight.connection import Frames, frame
from pilotlight.core.errors import LinkClosed, LoadError, PilotlightError, RequestError
from pilotlight.ports import Model, Outcome, Row, Runtime
from pilotlight.replica_messages import (
    Asleep,
    Failed,
    Feed,
    Finished,
    Forget,
    Live,
    Load,
    Quit,
    ReplicaMessage,
    ReplicaReply,
    Sleep,
    Wake,
    Working,
)
from pilotlight.wire import Operation, ResultChunk, Span
from pilotlight.worker import log
from pilotlight.worker.coder import Coder

WORKING_EVERY_S = 1.0
Clock = Callable[[], float]


class Pipe:
    """The replica's end of its socket: whole messages, blocking or not, without an event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ReplicaMessage).decode
        self._early: list[ReplicaMessage] = []

    def send(self, message: ReplicaReply) -> None:
        """Send all of it. Raises OSError when the agent is gone."""
        self._sock.sendall(frame(self._encode(message)))

    def receive(self, *, wait: bool) -> list[ReplicaMessage]:
        """The messages that are there; at least one if `wait`. Raises EOFError when the agent is gone, `LinkClosed`
        for what it can't have sent."""
        messages, self._early = self._early, []
        while self._ready(None if wait and not messages else 0.0):
            messages += self._read()
        return messages

    def pause(self, seconds: float, clock: Clock) -> None:
        """Do nothing for so long, but end the wait early for a `Quit`. What comes meanwhile is received later. Raises
        as `receive` does."""
        until = clock() + seconds
        while (left := until - clock()) > 0 and not any(isinstance(message, Quit) for message in self._early):
            if self._ready(left):
                self._early += self._read()

    def _ready(self, timeout_s: float | None) -> bool:
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def _read(self) -> list[ReplicaMessage]:
        data = self._sock.recv(1 << 18)
        if not data:
            raise EOFError
        try:
            return [self._decode(body) for body in self._frames.push(data)]
        except msgspec.DecodeError as error:
            raise LinkClosed(f"a message of the agent can't be read: {error}") from error


@dataclass(slots=True)
class _Ticket:
    """A row that the model has: where it came from."""

    lease: str
    job: str
    index: int
    custom_id: Any
    origin: str = ""
    line: int = 0


@dataclass(slots=True)
class _Batch:
    """Finished rows of one lease, until they are sent."""

    lines: dict[int, bytes] = field(default_factory=dict[int, bytes])
    errors: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    counters: dict[str, float] = field(default_factory=dict[str, float])
    tallies: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])


class Replica:
    """Rows in, results out, around one model. speed: below 1, each step takes that much longer than it had to."""

    def __init__(self, pipe: Pipe, model: Model, speed: float = 1.0, clock: Clock = time.perf_counter) -> None:
        self._pipe = pipe
        self._model = model
        self._speed = speed
        self._clock = clock
        self._said_s = clock()
        self._operations: dict[str, Operation] = {}
        self._coders: dict[str, Coder] = {}
        self._forgotten: set[str] = set()
        self._tickets: dict[int, _Ticket] = {}
        self._batches: dict[tuple[str, str], _Batch] = {}
        self._next = 0

    def run(self) -> None:
        """Until the agent says `Quit` or is gone."""
        while True:
            for message in self._pipe.receive(wait=self._model.pending == 0):
                if isinstance(message, Quit):
                    return
                self._hear(message)
            busy_s = self._step() if self._model.pending else 0.0
            self._send(busy_s)
            if self._forgotten:
                self._forget()

    def _hear(self, message: ReplicaMessage) -> None:
        match message:
            case Feed():
                self._take(message)
            case Forget():
                self._forgotten.add(message.job)
            case Sleep():
                assert self._model.can_sleep, "it can't sleep"
                assert not self._model.pending, "it holds rows"
                self._model.sleep()
                self._pipe.send(Asleep(memory_bytes=self._model.memory_bytes))
            case Wake():
                began = self._clock()
                self._model.wake()
                busy_s = slowed(self._pipe, self._clock() - began, self._speed, self._clock)
                self._pipe.send(_live(self._model, {"wake": busy_s}))
            case Load() | Quit():
                raise AssertionError("a replica loads once, and ends once")

    def _step(self) -> float:
        """Let the model work for a moment; returns how long that took, the wait of a slow device included."""
        began = self._clock()
        try:
            outcomes = self._model.step()
        except MemoryError as error:
            self._pipe.send(Failed(kind="out_of_memory", reason=str(error) or "it ran out of memory"))
            raise
        busy_s = slowed(self._pipe, self._clock() - began, self._speed, self._clock)
        for outcome in outcomes:
            self._finish(outcome)
        return busy_s

    def _forget(self) -> None:
        """Drop what belongs to jobs that are over and have no row here any more."""
        for job in self._forgotten - {ticket.job for ticket in self._tickets.values()}:
            self._forgotten.discard(job)
            self._coders.pop(job, None)
            operation = self._operations.pop(job, None)
            if operation is not None and operation not in self._operations.values():
                self._model.forget(operation)

    def _take(self, feed: Feed) -> None:
        if feed.operation is not None:
            self._forgotten.discard(feed.job)
            self._operations[feed.job] = feed.operation
            self._coders[feed.job] = Coder(feed.operation)
        operation = self._operations[feed.job]
        decode = self._coders[feed.job].decode
        rows: list[Row] = []
        for chunk in feed.chunks:
            for offset, line in enumerate(chunk.blob.split(b"\n")):
                index = chunk.start + offset
                number = chunk.line + offset
                try:
                    payload, custom_id = decode(line, chunk.origin, number)
                except RequestError as error:
                    ticket = _Ticket(feed.lease, feed.job, index, None)
                    self._put(ticket, Outcome(0, error_kind=error.kind, error=str(error)))
                    continue
                self._next += 1
                self._tickets[self._next] = _Ticket(feed.lease, feed.job, index, custom_id, chunk.origin, number)
                rows.append(Row(self._next, index, payload))
        if rows:
            self._model.add(operation, rows)

    def _finish(self, outcome: Outcome) -> None:
        self._put(self._tickets.pop(outcome.ticket), outcome)

    def _put(self, ticket: _Ticket, outcome: Outcome) -> None:
        batch = self._batches.get((ticket.lease, ticket.job))
        if batch is None:
            batch = self._batches[ticket.lease, ticket.job] = _Batch()
        coder = self._coders[ticket.job]
        kind, text = outcome.error_kind, outcome.error
        line = b""
        if kind is None:
            try:
                line = coder.result(ticket.index, ticket.custom_id, outcome.result)
            except RequestError as error:
                kind, text = error.kind, str(error)
        if kind is not None:
            if kind == RequestError.kind and ticket.origin:
                text = f"{ticket.origin} line {ticket.line}: {text}"
            line = coder.error(ticket.index, ticket.custom_id, kind, text)
            batch.errors.setdefault(kind, []).append(ticket.index)
        batch.lines[ticket.index] = line
        for name, value in outcome.counters.items():
            batch.counters[name] = batch.counters.get(name, 0) + value
            batch.tallies.setdefault(name, {})[ticket.index] = value

    def _send(self, busy_s: float) -> None:
        model, now = self._model, self._clock()
        if not self._batches:
            if model.pending and now - self._said_s >= WORKING_EVERY_S:
                self._said_s = now
                self._pipe.send(Working(started=model.started, wanted=max(1, model.wanted)))
            return
        self._said_s = now
        total = sum(len(batch.lines) for batch in self._batches.values())
        for (lease, job), batch in self._batches.items():
            indices = sorted(batch.lines)
            batch.counters["busy_s"] = batch.counters.get("busy_s", 0.0) + busy_s * len(indices) / total
            blob = b"\n".join(map(batch.lines.__getitem__, indices))
            tallies = {name: [seen.get(index, 0) for index in indices] for name, seen in batch.tallies.items()}
            finished = Finished(
                lease=lease,
                job=job,
                chunk=ResultChunk(_spans(indices), blob, batch.errors, batch.counters, tallies),
                wanted=max(1, model.wanted),
                started=model.started,
                memory_bytes=model.memory_bytes,
                attachment_bytes=model.attachment_bytes,
            )
            self._pipe.send(finished)
        self._batches = {}


def slowed(pipe: Pipe, busy_s: float, speed: float, clock: Clock) -> float:
    """Make what took `busy_s` take as long as on a device of that speed; returns how long that is."""
    if speed < 1:
        pipe.pause(busy_s * (1 / speed - 1), clock)
    return busy_s / speed


def _live(model: Model, stages: dict[str, float]) -> Live:
    return Live(wanted=max(1, model.wanted), memory_bytes=model.memory_bytes, stages=stages, can_sleep=model.can_sleep)


def _spans(indices: Iterable[int]) -> list[Span]:
    """Sorted indices as spans."""
    spans: list[Span] = []
    start = stop = -1
    for index in indices:
        if index != stop:
            if start >= 0:
                spans.append((start, stop))
            start = index
        stop = index + 1
    if start >= 0:
        spans.append((start, stop))
    return spans


def serve(sock: socket.socket, runtime: Runtime) -> None:
    """A replica's whole life, in the process that the runtime server forked for it."""
    pipe = Pipe(sock)
    model: Model | None = None
    try:
        load, *more = pipe.receive(wait=True)
        if not isinstance(load, Load) or any(isinstance(message, Quit) for message in more):
            return
        if load.device.type == "cuda" or load.device.visible:
            os.environ["CUDA_VISIBLE_DEVICES"] = load.device.visible
        began = time.perf_counter()
        try:
            model = runtime.load(load.context, load.device)
        except PilotlightError as error:
            pipe.send(Failed(kind=error.kind, reason=str(error)))
            return
        except Exception as error:
            log.say_error()
            reason = f"{type(error).__name__}: {error}"
            pipe.send(Failed(kind=LoadError.kind, reason=reason))
            return
        speed = load.device.speed
        slowed(pipe, time.perf_counter() - began, speed, time.perf_counter)
        pipe.send(_live(model, {stage: seconds / speed for stage, seconds in model.stages.items()}))
        Replica(pipe, model, speed).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        if model is not None:
            model.close()
