"""What a file service and the process that started it say to each other, over a Unix socket between the two.

Lines of JSON; with `Take` and `Listen` comes a descriptor. Only these two hold the socket, so malice is not expected.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Any

import msgspec

FDS_MAX = 64


class Said(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of what is said."""


class Configure(Said, frozen=True, kw_only=True):
    """First word to a service. cache: the cache's folder. key: what its tokens are made with."""

    cache: str
    key: bytes


class Take(Said, frozen=True, kw_only=True):
    """An accepted connection is handed over."""


class Listen(Said, frozen=True, kw_only=True):
    """A listening socket is handed over."""


class Describe(Said, frozen=True, kw_only=True):
    """What does a model's folder (or file) consist of? Answered by `Answer` with the same number. identity: of the
    model that should be there (see `identity`)."""

    number: int
    model: str
    identity: str = ""


Request = Configure | Take | Listen | Describe


class Ready(Said, frozen=True, kw_only=True):
    """A service is there."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A model's files: digest and size in bytes by path. single: it is one file, not a folder."""

    files: dict[str, tuple[str, int]]
    single: bool = False


class Answer(Said, frozen=True, kw_only=True):
    """To `Describe`: the description, or why there is none, as the end of a sentence."""

    number: int
    described: Described | None = None
    error: str = ""


Reply = Ready | Answer


class Control:
    """One end. union: what comes in."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._decode = msgspec.json.Decoder(union).decode
        self._lines: deque[bytes] = deque()
        self._fds: deque[int] = deque()
        self._text = b""
        self._sending = asyncio.Lock()

    async def receive(self) -> Any:
        """What comes next; None when the other end is gone. `taken` has the socket that comes with some messages."""
        while not self._lines:
            await self._readable()
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, FDS_MAX)
            except BlockingIOError:
                continue
            except OSError:
                return None
            if not data:
                return None
            self._fds.extend(fds)
            *lines, self._text = (self._text + data).split(b"\n")
            self._lines.extend(lines)
        return self._decode(self._lines.popleft())

    def taken(self) -> socket.socket | None:
        """The socket that came with the message that was received last; None where there was no descriptor left for
        it, and the kernel closed it."""
        return socket.socket(fileno=self._fds.popleft()) if self._fds else None

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        if self._sock.fileno() < 0:
            return
        loop.add_reader(self._sock, lambda: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            if self._sock.fileno() >= 0:
                loop.remove_reader(self._sock)

    async def send(self, message: Said) -> None:
        """Say something; whoever is gone does not hear it (`receive` tells)."""
        async with self._sending:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._sock, msgspec.json.encode(message) + b"\n")

    def hand_over(self, message: Take | Listen, sock: socket.socket) -> None:
        """Give a socket to the other end as well, unless that is too busy to take it now, or gone."""
        if not self._sending.locked():
            with contextlib.suppress(OSError):
                socket.send_fds(self._sock, [msgspec.json.encode(message) + b"\n"], [sock.fileno()])

    def close(self) -> None:
        """Let the other end know that this one is gone."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
