"""An open gate for tests, on a loopback address, and people who come to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pilotlight.connection import Connection, frame
from pilotlight.descriptors import Shortage
from pilotlight.gate import certificate, dialling
from pilotlight.gate.invitation import Invitation, path_of, read_invitation
from pilotlight.gate.keys import Invitations, Keys, bind_port, load_keys
from pilotlight.gate.listening import Gate
from pilotlight.gate.tokens import Role
from pilotlight.messages import ClientMessage, ManagerMessage, WorkerMessage
from pilotlight.wire import PoolSpec

WITHIN_S = 10.0


@dataclass
class Opened:
    """A gate with both doors open, everyone who was let in, and what they said. broken: what the event loop was told
    of mistakes of ours."""

    pool: Path
    gate: Gate
    keys: Keys
    inside: dict[str, Connection] = field(default_factory=dict[str, Connection])
    heard: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    left: list[str] = field(default_factory=list[str])
    broken: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def invitation(self, role: Role = "worker", **changes: Any) -> Invitation:
        """The pool file's content, with changes."""
        return msgspec.structs.replace(read_invitation(path_of(self.pool, role), role), **changes)

    async def dial(self, name: str = "w", ticket: str = "", **changes: Any) -> tuple[Connection, str]:
        """Come as a worker."""
        return await dialling.dial(self.invitation(**changes), name, ticket, ManagerMessage, ignore)

    async def hears(self, name: str, message: Any) -> None:
        """Wait until that one has said this."""
        async with asyncio.timeout(WITHIN_S):
            while (name, message) not in self.heard:
                self.changed.clear()
                await self.changed.wait()

    async def speak(self, *said: bytes, tls: bool, half_close: bool = False) -> bytes:
        """What a stranger gets back that says these things and then listens, until the gate hangs up."""
        return await asyncio.to_thread(self._speak, said, tls=tls, half_close=half_close)

    def _speak(self, said: tuple[bytes, ...], *, tls: bool, half_close: bool) -> bytes:
        answer = b""
        with contextlib.ExitStack() as stack, contextlib.suppress(ConnectionError, ssl.SSLError):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", self.gate.port), WITHIN_S))
            if tls:
                sock = stack.enter_context(certificate.dialler_context().wrap_socket(sock))
            for each in said:
                sock.sendall(each)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(1 << 16):
                answer += part
        return answer

    def _arrived(self, connection: Connection, name: str) -> None:
        def gone(_reason: str) -> None:
            self.left.append(name)
            self.inside.pop(name, None)

        def said(message: Any) -> None:
            self.heard.append((name, message))
            self.changed.set()

        connection.on_message = said
        connection.on_closed = gone
        self.inside[name] = connection


def ignore(connection: Connection) -> None:
    """Callbacks of someone who does not care."""
    connection.on_message = lambda _message: None
    connection.on_closed = lambda _reason: None


def words(message: Any) -> bytes:
    """As it travels before someone is let in."""
    return frame(msgspec.json.encode(message))


@contextlib.asynccontextmanager
async def opened(pool: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[Opened]:
    """An open gate, closed afterwards; no mistake of ours may have been reported meanwhile."""
    keys, spec = load_keys(pool), PoolSpec(workers=0, log_dir="", name="test", listen=listen)
    gate = Gate(bind_port(pool, listen), keys, Shortage("the test", print))
    Invitations(pool, spec, keys, gate.port, 1, lambda _level, _text, _worker: None).write()
    there = Opened(pool, gate, keys)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: there.broken.append(context))
    gate.open_door("worker", WorkerMessage, there._arrived, there.inside.__contains__)
    gate.open_door("client", ClientMessage, there._arrived)
    gate.start()
    try:
        yield there
    finally:
        for connection in list(there.inside.values()):
            connection.abort("the test is over")
        await gate.close()
        await asyncio.sleep(0.05)  # transports close in the loop's next rounds
    assert there.broken == []
