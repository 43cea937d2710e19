"""The protocol of a connection's first frame, for both ends: one short body, and then another protocol takes over."""

from __future__ import annotations

import asyncio
from typing import Any

from pilotlight.connection import LENGTH, Connection, frame
from pilotlight.core.errors import LinkClosed


class FirstFrame(asyncio.Protocol):
    """`body` is what the peer said first; it fails with `LinkClosed` where that is longer than `bytes_max`, or where
    more comes before `become` was called."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def transport(self) -> asyncio.Transport:
        """What it runs on, once it is connected."""
        assert self._transport is not None
        return self._transport

    def say(self, body: bytes) -> None:
        """Send one frame."""
        self.transport.write(frame(body))

    def become(self, connection: Connection) -> None:
        """From now on the connection has the socket. Raises `LinkClosed` where that is closed already."""
        if self.transport.is_closing():
            raise LinkClosed("the other end closed the connection")
        self.transport.set_protocol(connection)
        connection.connection_made(self.transport)

    def abort(self) -> None:
        """Close at once, if it was connected."""
        if self._transport is not None:
            self._transport.abort()

    def peer_certificate(self) -> bytes | None:
        """What the peer showed, as DER."""
        tls: Any = self.transport.get_extra_info("ssl_object")
        return tls.getpeercert(binary_form=True)

    # asyncio.Protocol's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._buffer += data
        if len(self._buffer) < LENGTH.size:
            return
        (length,) = LENGTH.unpack_from(self._buffer)
        size = len(self._buffer) - LENGTH.size
        if length > self._bytes_max or size > length or self.body.done():
            self._fail("the other end does not speak Pilotlight's language")
            self.abort()
        elif size == length:
            self.body.set_result(bytes(self._buffer[LENGTH.size :]))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._fail(f"the other end closed the connection before it was let in{f': {exc}' if exc else ''}")

    def _fail(self, reason: str) -> None:
        if not self.body.done():
            self.body.set_exception(LinkClosed(reason))
            self.body.exception()  # seen, should nobody wait for it any more
