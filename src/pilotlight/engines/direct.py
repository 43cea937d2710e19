"""The direct engine: workers dial their manager over a stream socket, a Unix one on one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pilotlight.connection import Connection, dial, listen
from pilotlight.messages import Join, ManagerMessage, WorkerMessage


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
            connection.abort(reason)

    async def stop(self) -> None:
        """See `ports.ManagerLink`."""
        if self._server is not None:
            self._server.close()
        connections = [*self._workers.values(), *self._strangers]
        self._workers.clear()
        await asyncio.gather(*(connection.end() for connection in connections))


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
