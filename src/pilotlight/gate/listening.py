"""The listening side of the gate: one TCP port for workers, clients and files.

A connection's first byte, which is looked at and left there, tells what it is: a TLS greeting leads to the handshake,
an HTTP request goes to the file service, anything else is closed. Strangers are few, short and quick, or they are
closed; nobody's silence holds up anyone else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from pilotlight import descriptors
from pilotlight.connection import Connection
from pilotlight.core.errors import JoinRefused, LinkClosed
from pilotlight.descriptors import Shortage
from pilotlight.gate import sockets
from pilotlight.gate.first import FirstFrame
from pilotlight.gate.handshake import KNOCK_BYTES_MAX, Denied, judge, read_knock
from pilotlight.gate.keys import Keys
from pilotlight.gate.tokens import Role

STRANGER_S_MAX = 10.0
"""Who was not let in by then is closed."""
STRANGERS_MAX = 256
"""Beyond, the one that has waited longest is closed: who knows the way in needs milliseconds."""
STRANGERS_SHARE = 0.25
"""Of this process's descriptors, if that is fewer: who is inside, and jobs, need theirs."""
BACKLOG = 512
FULL_S = 0.1
"""How long to accept nobody when the system has no room for another connection."""
_TLS, _HTTP = b"\x16", frozenset({b"G", b"H"})

Arrived = Callable[[Connection, str], None]


@dataclass(frozen=True)
class _Door:
    union: Any
    arrived: Arrived
    is_taken: Callable[[str], bool]


class Gate:
    """A pool's port. `open_door` says who is let in and what becomes of them; `start` listens, `close` ends that.

    `on_http` gets each accepted socket (non-blocking, nothing read) on which an HTTP request begins, and owns it from
    then on; until it is set, they are closed.
    """

    def __init__(self, listener: socket.socket, keys: Keys, shortage: Shortage) -> None:
        """listener: bound, and closed by `close`."""
        self._listener = listener
        self._keys = keys
        self._shortage = shortage
        self._doors: dict[Role, _Door] = {}
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._strangers_max = min(STRANGERS_MAX, int(STRANGERS_SHARE * descriptors.limit()))
        self._accepting: asyncio.Task[None] | None = None
        self.on_http: Callable[[socket.socket], None] | None = None

    @property
    def port(self) -> int:
        """Which TCP port this is."""
        return int(self._listener.getsockname()[1])

    def open_door(
        self, role: Role, union: Any, arrived: Arrived, is_taken: Callable[[str], bool] = lambda _name: False
    ) -> None:
        """Let that role in. union: what it may say. arrived: is told of each connection, whose callbacks it sets, and
        of the worker's name. is_taken: whether a worker of a name is connected."""
        self._doors[role] = _Door(union, arrived, is_taken)

    def close_door(self, role: Role) -> None:
        """Let nobody of that role in any more."""
        self._doors.pop(role, None)

    def start(self) -> None:
        """Listen."""
        self._listener.listen(BACKLOG)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Accept nobody any more; who was let in is not touched."""
        tasks = [*self._strangers, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # or a peer that is gone already
                if self._shortage.is_why(error):
                    self._close_oldest()
                await asyncio.sleep(FULL_S)
                continue
            if len(self._strangers) >= self._strangers_max:
                self._close_oldest()
            task = loop.create_task(self._meet(sock))
            self._strangers[task] = None
            task.add_done_callback(lambda done: self._strangers.pop(done, None))
            await asyncio.sleep(0)  # let it begin: one that is cancelled before never closes its socket

    def _close_oldest(self) -> None:
        """Make room for someone who may know the way in."""
        if self._strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()

    async def _meet(self, sock: socket.socket) -> None:
        with contextlib.suppress(TimeoutError, OSError, LinkClosed, JoinRefused):
            async with asyncio.timeout(STRANGER_S_MAX):
                with contextlib.ExitStack() as unclaimed:
                    unclaimed.callback(sock.close)
                    first = await _first_byte(sock)
                    if first != _TLS and (first not in _HTTP or self.on_http is None):
                        return
                    unclaimed.pop_all()
                if first in _HTTP:
                    assert self.on_http is not None
                    self.on_http(sock)
                    return
                await self._shake_hands(sock)

    async def _shake_hands(self, sock: socket.socket) -> None:
        stranger = FirstFrame(KNOCK_BYTES_MAX)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: stranger,
                sock,
                ssl=self._keys.context,
                ssl_handshake_timeout=STRANGER_S_MAX,
                ssl_shutdown_timeout=sockets.SHUTDOWN_S_MAX,
            )
            knock = read_knock(await stranger.body)
            door = self._doors.get(knock.role)
            if door is None:
                raise LinkClosed("nobody is let in yet, or any more")
            answer = judge(knock, self._keys.key, time.time(), is_taken=door.is_taken(knock.name))
            stranger.say(msgspec.json.encode(answer))
            if isinstance(answer, Denied):
                stranger.transport.close()
                return
            sockets.tune(stranger.transport.get_extra_info("socket"), knock.role)
            connection = Connection(door.union)
            door.arrived(connection, knock.name)
            stranger.become(connection)
        except BaseException:
            stranger.abort()
            raise


async def _first_byte(sock: socket.socket) -> bytes:
    """The first byte, which stays in the socket; empty where there is none. Raises OSError."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, lambda readable=readable: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(sock)
