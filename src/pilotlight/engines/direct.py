"""The direct engine: workers dial their manager over a stream socket, a Unix one on one machine, TCP and TLS beyond.

The manager's link takes workers from both; who comes through the gate was let in under a name, and joins under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from pilotlight.connection import Connection, dial, listen
from pilotlight.core.errors import ConfigError, LinkClosed
from pilotlight.gate import dialling
from pilotlight.gate.invitation import read_invitation
from pilotlight.gate.listening import Gate
from pilotlight.messages import Join, ManagerMessage, WorkerMessage


class DirectManagerLink:
    """`ports.ManagerLink` over a Unix socket, and through the pool's gate where it has one."""

    def __init__(self, path: str, gate: Gate | None = None) -> None:
        self._path = path
        self._gate = gate
        self._server: asyncio.Server | None = None
        self._workers: dict[str, Connection] = {}
        self._strangers: set[Connection] = set()

    async def start(
        self, on_message: Callable[[str, WorkerMessage], None], on_lost: Callable[[str, str], None]
    ) -> None:
        """See `ports.ManagerLink`."""

        def arrived(connection: Connection, known_as: str = "") -> None:
            worker_id = ""

            def received(message: WorkerMessage) -> None:
                nonlocal worker_id
                if not worker_id:
                    if not isinstance(message, Join) or message.worker != (known_as or message.worker):
                        connection.close("a worker must join first, under its name")
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
        if self._gate is not None:
            self._gate.open_door("worker", WorkerMessage, arrived, self._workers.__contains__)

    def send(self, worker_id: str, message: ManagerMessage) -> None:
        """See `ports.ManagerLink`."""
        connection = self._workers.get(worker_id)
        if connection is not None:
            connection.send(message)

    def drop(self, worker_id: str, reason: str) -> None:
        """See `ports.ManagerLink`."""
        connection = self._workers.pop(worker_id, None)
        if connection is not None:
            connection.abort(reason)

    async def stop(self) -> None:
        """See `ports.ManagerLink`."""
        if self._gate is not None:
            self._gate.close_door("worker")
        if self._server is not None:
            self._server.close()
        connections = [*self._workers.values(), *self._strangers]
        self._workers.clear()
        await asyncio.gather(*(connection.end() for connection in connections))


class DirectWorkerLink:
    """`ports.WorkerLink` to a Unix socket, or with a pool file through that pool's gate; where both are given, the
    socket is tried first.

    The file is read anew at each dial, because another manager may have written it. Who was let in once shows a ticket,
    which does not expire, and from then on only the pool's own manager can turn it away for good.
    """

    def __init__(self, path: str = "", file: Path | None = None, name: str = "") -> None:
        """name: what the worker joins as; needed with a file."""
        assert path or (file is not None and name), "a link needs somewhere to go"
        self._path = path
        self._file = file
        self._name = name
        self._ticket = ""
        self._was_in = False
        self._connection: Connection | None = None

    async def connect(self, on_message: Callable[[ManagerMessage], None], on_lost: Callable[[str], None]) -> None:
        """See `ports.WorkerLink`."""

        def prepare(connection: Connection) -> None:
            connection.on_message, connection.on_closed = on_message, on_lost

        self._connection = await self._dial(prepare)
        self._was_in = True

    async def _dial(self, prepare: Callable[[Connection], None]) -> Connection:
        if self._path:
            try:
                return await dial(self._path, ManagerMessage, prepare)
            except LinkClosed:
                if self._file is None or not self._file.exists():
                    raise
        assert self._file is not None
        try:
            invitation = read_invitation(self._file, "worker")
            connection, self._ticket = await dialling.dial(
                invitation, self._name, self._ticket, ManagerMessage, prepare
            )
        except dialling.TurnedAway:
            raise
        except ConfigError as error:
            if not self._was_in:
                raise
            raise LinkClosed(str(error)) from error
        return connection

    @property
    def ends(self) -> tuple[str, str] | None:
        """See `ports.WorkerLink`."""
        return self._connection.ends if self._connection is not None else None

    def send(self, message: WorkerMessage) -> None:
        """See `ports.WorkerLink`."""
        if self._connection is not None:
            self._connection.send(message)

    def close(self) -> None:
        """See `ports.WorkerLink`."""
        if self._connection is not None:
            self._connection.close()
