"""Whole messages over a stream socket: the frames that every conversation is made of.

A frame is its body's length (4 bytes, big-endian) and the body, MessagePack. `Frames` cuts a stream into bodies;
`Connection` is one end in an event loop; `listen`, `dial` and `adopt` make them. What messages mean is not known here.
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

LENGTH = struct.Struct(">I")
"""What begins a frame: how long its body is."""
FRAME_BYTES_MAX = 1 << 30
"""A longer frame is a broken or foreign peer."""
CLOSE_S_MAX = 2.0
"""How long a peer may take to read what was sent before the end."""


class Frames:
    """Cuts a stream of bytes into frame bodies."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """The bodies that are whole now. Raises `LinkClosed` for a length that can't be ours."""
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        at, size = 0, len(buffer)
        while size - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, at)
            if length > FRAME_BYTES_MAX:
                message = f"a frame of {length} bytes is not ours"
                raise LinkClosed(message)
            if size - at - LENGTH.size < length:
                break
            at += LENGTH.size
            bodies.append(bytes(buffer[at : at + length]))
            at += length
        if at:
            del buffer[:at]
        return bodies


def bracketed(host: str) -> str:
    """A host as it stands in URLs and before a port."""
    return f"[{host}]" if ":" in host else host


def frame(body: bytes) -> bytes:
    """A body as it travels."""
    return LENGTH.pack(len(body)) + body


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
        self._frames = Frames()
        self._out: list[bytes] = []
        self._flush_due = False
        self._closed = self._closing = False
        self._reason = "the other end closed the connection"
        self._resume: asyncio.Event = asyncio.Event()
        self._resume.set()
        self.on_message: Receiver = _nobody
        self.on_closed: Closer = _nobody
        self.gone: asyncio.Event = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed or self._closing

    @property
    def ends(self) -> tuple[str, str] | None:
        """Of a TCP connection, the other end's `host:port` and this end's host, as numbers; None of any other."""
        if self._transport is None:
            return None
        there: Any = self._transport.get_extra_info("peername")
        here: Any = self._transport.get_extra_info("sockname")
        if isinstance(there, (str, bytes)) or not there:  # a Unix socket
            return None
        host, port = there[:2]
        return f"{bracketed(host)}:{port}", here[0]

    @property
    def full(self) -> bool:
        """Whether more than a megabyte waits for the peer to read: what it can do without is better left out."""
        return not self._resume.is_set()

    def send(self, message: Any) -> None:
        """Queue a message; a closed connection swallows it (its `on_closed` tells)."""
        if self.closed:
            return
        body = self._encode(message)
        assert len(body) <= FRAME_BYTES_MAX, f"a {type(message).__name__} of {len(body)} bytes is too long to send"
        self._out.append(LENGTH.pack(len(body)))
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
        """Take no more messages, send what is queued, then close; waits for the peer to read (see `abort`)."""
        self._flush()
        self._closing = True
        self._reason = reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once, whatever was queued."""
        self._closing = True
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    async def end(self, within_s: float = CLOSE_S_MAX) -> None:
        """Close, and wait until all is sent; give up on a peer that does not read."""
        self.close()
        try:
            await asyncio.wait_for(self.gone.wait(), within_s)
        except TimeoutError:
            self.abort("the peer does not read")

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
        try:
            messages = [self._decode(body) for body in self._frames.push(data)]
        except LinkClosed as error:
            self.close(str(error))
            return
        except (msgspec.DecodeError, ValueError, RecursionError) as error:  # bytes of any peer may do no more than that
            self.close(f"a frame can't be decoded: {error}")
            return
        for message in messages:
            if self.closed:
                return
            self.on_message(message)

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
