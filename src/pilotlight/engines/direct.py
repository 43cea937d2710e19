"""The direct engine: frames of MessagePack over stream sockets, Unix ones on one machine.

A frame is its body's length (4 bytes, big-endian) and the body. `Connection` is one end; `listen` and `dial` make them.
Messages sent in one turn of the event loop leave in one system call. What messages mean is not known here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from pilotlight.core.errors import LinkClosed
from pilotlight.messages import Join, ManagerMessage, WorkerMessage

_LENGTH = struct.Struct(">I")
FRAME_BYTES_MAX = 1 << 30
"""A longer frame is a broken or foreign peer."""

Receiver = Callable[[Any], None]
Closer = Callable[[str], None]


class Connection(asyncio.Protocol):
    """One end of a link. Callbacks run in the event loop, in order; `on_closed` comes once, last, with a reason.

    Set `on_message` and `on_closed` before control returns to the loop. `union` is what may be received; a frame that
    does not decode to it closes the connection.
    """

    def __init__(self, union: Any) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._flush_due = False
        self._closed = False
        self._reason = "the other end closed the connection"
        self._resume: asyncio.Event = asyncio.Event()
        self._resume.set()
        self.on_message: Receiver = _nobody
        self.on_closed: Closer = _nobody
        self.gone: asyncio.Event = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed

    def send(self, message: Any) -> None:
        """Queue a message; a closed connection swallows it (its `on_closed` tells)."""
        if self._closed:
            return
        body = self._encode(message)
        self._out.append(_LENGTH.pack(len(body)))
        self._out.append(body)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def drained(self) -> None:
        """Wait until the peer takes more: for senders of bulk. Raises `LinkClosed`."""
        self._flush()
        await self._resume.wait()
        if self._closed:
            raise LinkClosed(self._reason)

    def close(self, reason: str = "closed here") -> None:
        """Send what is queued, then close."""
        self._flush()
        self._reason = reason
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        self._flush_due = False
        if self._out and self._transport is not None and not self._closed:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    # asyncio.Protocol's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 20)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        while size - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > FRAME_BYTES_MAX:
                self.close(f"a frame of {length} bytes is not ours")
                return
            if size - at - 4 < length:
                break
            try:
                message = self._decode(memoryview(buffer)[at + 4 : at + 4 + length])
            except msgspec.DecodeError as error:
                self.close(f"a frame can't be decoded: {error}")
                return
            at += 4 + length
            self.on_message(message)
            if self._closed:
                return
        if at:
            del buffer[:at]

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._resume.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._resume.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._closed:
            return
        self._closed = True
        self._resume.set()
        self._out.clear()
        self.gone.set()
        self.on_closed(str(exc) if exc else self._reason)


def _nobody(_: Any) -> None:
    raise AssertionError("a connection was made whose callbacks nobody set")


async def listen(path: str, union: Any, on_connection: Callable[[Connection], None]) -> asyncio.Server:
    """Accept connections on a Unix socket that only this user may open. `on_connection` sets the callbacks."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)

    def made() -> Connection:
        connection = Connection(union)
        on_connection(connection)
        return connection

    return await asyncio.get_running_loop().create_unix_server(made, sock=listener, backlog=512)


async def dial(path: str, union: Any, prepare: Callable[[Connection], None]) -> Connection:
    """Connect to a Unix socket. `prepare` sets the callbacks. Raises `LinkClosed` where nobody listens."""

    def made() -> Connection:
        connection = Connection(union)
        prepare(connection)
        return connection

    try:
        _, connection = await asyncio.get_running_loop().create_unix_connection(made, path)
    except OSError as error:
        raise LinkClosed(f"nobody answers at {path}: {error.strerror}") from error
    return connection


async def adopt(sock: socket.socket, union: Any, prepare: Callable[[Connection], None]) -> Connection:
    """Speak over a connected socket, such as one of a socketpair."""

    def made() -> Connection:
        connection = Connection(union)
        prepare(connection)
        return connection

    _, connection = await asyncio.get_running_loop().create_connection(made, sock=sock)
    return connection


class DirectManagerLink:
    """`ports.ManagerLink` over a Unix socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._workers: dict[str, Connection] = {}
        self._strangers: set[Connection] = set()

    async def start(
        self, on_message: Callable[[str, WorkerMessage], None], on_lost: Callable[[str, str], None]
    ) -> None:
        """See `ports.ManagerLink`."""

        def arrived(connection: Connection) -> None:
            worker_id = ""

            def received(message: WorkerMessage) -> None:
                nonlocal worker_id
                if not worker_id:
                    if not isinstance(message, Join):
                        connection.close("a worker must join first")
                        return
                    worker_id = message.worker
                    self._strangers.discard(connection)
                    old = self._workers.pop(worker_id, None)
                    if old is not None:
                        old.close("a newer connection took its place")
                    self._workers[worker_id] = connection
                if self._workers.get(worker_id) is connection:
                    on_message(worker_id, message)

            def lost(reason: str) -> None:
                self._strangers.discard(connection)
                if worker_id and self._workers.get(worker_id) is connection:
                    del self._workers[worker_id]
                    on_lost(worker_id, reason)

            self._strangers.add(connection)
            connection.on_message, connection.on_closed = received, lost

        self._server = await listen(self._path, WorkerMessage, arrived)

    def send(self, worker_id: str, message: ManagerMessage) -> None:
        """See `ports.ManagerLink`."""
        connection = self._workers.get(worker_id)
        if connection is not None:
            connection.send(message)

    def drop(self, worker_id: str, reason: str) -> None:
        """See `ports.ManagerLink`."""
        connection = self._workers.pop(worker_id, None)
        if connection is not None:
            connection.close(reason)

    async def stop(self) -> None:
        """See `ports.ManagerLink`."""
        if self._server is not None:
            self._server.close()
        connections = [*self._workers.values(), *self._strangers]
        self._workers.clear()
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.gone.wait()


class DirectWorkerLink:
    """`ports.WorkerLink` to a Unix socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: Connection | None = None

    async def connect(self, on_message: Callable[[ManagerMessage], None], on_lost: Callable[[str], None]) -> None:
        """See `ports.WorkerLink`."""

        def prepare(connection: Connection) -> None:
            connection.on_message, connection.on_closed = on_message, on_lost

        self._connection = await dial(self._path, ManagerMessage, prepare)

    def send(self, message: WorkerMessage) -> None:
        """See `ports.WorkerLink`."""
        if self._connection is not None:
            self._connection.send(message)

    def close(self) -> None:
        """See `ports.WorkerLink`."""
        if self._connection is not None:
            self._connection.close()
