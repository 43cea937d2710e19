"""The replica: the process that holds one live context on one device, and runs rows.

Its loop has one thread: take what the agent sent, let the model work for a moment, send what finished. The only place
where a row's bytes are decoded and its result encoded (through `io/rows.py`). It ends when its socket does.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotlight.connection import Frames, frame
from pilotlight.core.errors import LinkClosed, LoadError, PilotlightError, RequestError
from pilotlight.ports import Model, Outcome, Row, Runtime
from pilotlight.replica_messages import Failed, Feed, Finished, Forget, Live, Load, Quit, ReplicaMessage, ReplicaReply
from pilotlight.wire import Operation, ResultChunk, Span
from pilotlight.worker import log
from pilotlight.worker.coder import Coder


class Pipe:
    """The replica's end of its socket: whole messages, blocking or not, without an event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ReplicaMessage).decode

    def send(self, message: ReplicaReply) -> None:
        """Send all of it. Raises OSError when the agent is gone."""
        self._sock.sendall(frame(self._encode(message)))

    def receive(self, *, wait: bool) -> list[ReplicaMessage]:
        """The messages that are there; at least one if `wait`. Raises EOFError when the agent is gone, `LinkClosed`
        for what it can't have sent."""
        messages: list[ReplicaMessage] = []
        while True:
            timeout = None if wait and not messages else 0
            if not select.select([self._sock], [], [], timeout)[0]:
                return messages
            data = self._sock.recv(1 << 18)
            if not data:
                raise EOFError
            try:
                messages += [self._decode(body) for body in self._frames.push(data)]
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


class Replica:
    """Rows in, results out, around one model."""

    def __init__(self, pipe: Pipe, model: Model) -> None:
        self._pipe = pipe
        self._model = model
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
                match message:
                    case Quit():
                        return
                    case Forget():
                        self._forgotten.add(message.job)
                    case Feed():
                        self._take(message)
                    case Load():
                        raise AssertionError("a replica loads once")
            began = time.perf_counter()
            outcomes = self._model.step() if self._model.pending else []
            busy_s = time.perf_counter() - began
            for outcome in outcomes:
                self._finish(outcome)
            self._send(busy_s)
            if self._forgotten:
                self._forget()

    def _forget(self) -> None:
        """Drop what belongs to jobs that are over and have no row here any more."""
        for job in self._forgotten - {ticket.job for ticket in self._tickets.values()}:
            self._forgotten.discard(job)
            self._operations.pop(job, None)
            self._coders.pop(job, None)

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

    def _send(self, busy_s: float) -> None:
        if not self._batches:
            return
        total = sum(len(batch.lines) for batch in self._batches.values())
        for (lease, job), batch in self._batches.items():
            indices = sorted(batch.lines)
            batch.counters["busy_s"] = batch.counters.get("busy_s", 0.0) + busy_s * len(indices) / total
            blob = b"\n".join(map(batch.lines.__getitem__, indices))
            chunk = ResultChunk(_spans(indices), blob, batch.errors, batch.counters)
            wanted, started = max(1, self._model.wanted), self._model.started
            self._pipe.send(Finished(lease=lease, job=job, chunk=chunk, wanted=wanted, started=started))
        self._batches = {}


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
        pipe.send(Live(wanted=max(1, model.wanted), memory_bytes=model.memory_bytes, stages=model.stages))
        Replica(pipe, model).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        if model is not None:
            model.close()
