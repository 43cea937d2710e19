"""The clients' side of the manager: who is connected, what each asked for, what watchers see.

What becomes of jobs is in `submissions.py`, of contexts in `residences.py`. The connection that said it owns the pool
ends a pool that is not lasting when it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from pilotlight import __version__
from pilotlight.connection import Connection, listen
from pilotlight.core.errors import LinkClosed
from pilotlight.core.transitions import JobState
from pilotlight.gate.listening import Gate
from pilotlight.manager import views
from pilotlight.manager.jobs import JobFiles
from pilotlight.manager.journal import PoolJournal
from pilotlight.manager.loop import Manager
from pilotlight.manager.residences import Residences
from pilotlight.manager.submissions import Submissions
from pilotlight.messages import (
    Ask,
    Attach,
    Cancel,
    ClientMessage,
    ContextsAnswer,
    Evict,
    Greeting,
    Hello,
    InputEnd,
    JobsAnswer,
    Notice,
    Pin,
    RowsIn,
    Shutdown,
    Submit,
    WorkersAnswer,
)
from pilotlight.poolfile import mark_ended, socket_path
from pilotlight.wire import VERSION, PoolSpec

OWNER_S_MAX = 30.0
OWNER_LOOK_S = 0.25


@dataclass(eq=False, slots=True)
class _Client:
    connection: Connection
    greeted: bool = False
    owner: bool = False
    watcher: asyncio.Task[None] | None = None


class Clients:
    """Serves clients on the pool's socket and at its gate. `over` is set when the pool shall end; with `paused`, so
    that the next manager goes on with its jobs."""

    def __init__(
        self, pool_dir: str, spec: PoolSpec, manager: Manager, journal: PoolJournal, gate: Gate | None = None
    ) -> None:
        """gate: where clients of other machines come in."""
        self._pool = Path(pool_dir)
        self._gate = gate
        self._spec = spec
        self._manager = manager
        self._clients: set[_Client] = set()
        self._server: asyncio.Server | None = None
        self.submissions = Submissions(spec, manager, journal)
        self._residences = Residences(manager, journal)
        self.over = asyncio.Event()
        self.paused = False
        manager.watcher = self

    async def start(self) -> None:
        """Listen."""
        self._residences.resume()
        path = socket_path(self._pool, self._spec, "client.sock")
        self._server = await listen(path, ClientMessage, self._arrived)
        if self._gate is not None:
            self._gate.open_door("client", ClientMessage, lambda connection, _: self._arrived(connection))

    async def await_owner(self, parent_pid: int) -> None:
        """End a pool whose owner died before it could say hello: its process is gone, or it takes too long."""
        deadline = time.monotonic() + OWNER_S_MAX
        while not any(client.owner for client in self._clients):
            if os.getppid() != parent_pid or time.monotonic() > deadline:
                self.over.set()
                return
            await asyncio.sleep(OWNER_LOOK_S)

    def signalled(self) -> None:
        """The system ends this process, or a user's `kill`: a pool that stays comes back, with its jobs."""
        self.paused = self._spec.lasting
        self.over.set()

    async def stop(self) -> None:
        """End all jobs, tell their clients, and close."""
        await self.submissions.stop(paused=self.paused)
        await self._residences.stop()
        if self._gate is not None:
            self._gate.close_door("client")
        if self._server is not None:
            self._server.close()
        connections = [client.connection for client in self._clients]
        await asyncio.gather(*(connection.end() for connection in connections))

    # --- connections

    def _arrived(self, connection: Connection) -> None:
        client = _Client(connection)
        connection.on_message = lambda message: self._said(client, message)
        connection.on_closed = lambda _: self._gone(client)
        self._clients.add(client)

    def _gone(self, client: _Client) -> None:
        self._clients.discard(client)
        if client.watcher is not None:
            client.watcher.cancel()
        self.submissions.gone(client.connection)
        if client.owner and not self._spec.lasting:
            self.over.set()

    def _said(self, client: _Client, message: ClientMessage) -> None:
        connection = client.connection
        if not client.greeted and not isinstance(message, Hello):
            connection.close("a client must say hello first")
            return
        match message:
            case RowsIn() | InputEnd():
                self.submissions.rows(message)
            case Submit():
                self.submissions.submit(connection, message)
            case Attach():
                self.submissions.attach(connection, message)
            case Cancel():
                self.submissions.cancel(connection, message)
            case Ask(ticket=ticket, what="jobs"):
                connection.send(JobsAnswer(ticket=ticket, jobs=self.submissions.views()))
            case Ask(ticket=ticket, what="workers"):
                connection.send(WorkersAnswer(ticket=ticket, workers=views.workers(self._manager)))
            case Ask(ticket=ticket):
                connection.send(ContextsAnswer(ticket=ticket, contexts=views.contexts(self._manager)))
            case Pin():
                self._residences.pin(connection, message)
            case Evict():
                self._residences.evict(connection, message)
            case Hello():
                self._greet(client, message)
            case Shutdown():
                if self._spec.lasting:
                    mark_ended(self._pool)  # its client may be on a machine that can't
                self.paused = False
                self.over.set()

    def _greet(self, client: _Client, hello: Hello) -> None:
        if client.greeted:
            client.connection.close("a client says hello once")
            return
        greeting = Greeting(
            version=VERSION,
            epoch=self._manager.epoch,
            pid=os.getpid(),
            log_dir=self._spec.log_dir,
            pool=self._spec.name,
            lasting=self._spec.lasting,
            release=__version__,
            python=platform.python_version(),
        )
        client.connection.send(greeting)  # also to another version, so that it can say what is wrong
        if hello.version != VERSION:
            client.connection.close(f"the manager speaks version {VERSION}, the client {hello.version}")
            return
        client.greeted, client.owner = True, hello.owner
        if hello.watch_s > 0:
            client.watcher = asyncio.get_running_loop().create_task(self._watch(client, hello.watch_s))

    # --- what they are told

    async def _watch(self, client: _Client, every_s: float) -> None:
        while not client.connection.closed:
            client.connection.send(views.snapshot(self._manager))
            with contextlib.suppress(LinkClosed):
                await client.connection.drained()  # one that does not read gets no more
            await asyncio.sleep(every_s)

    def notice(self, notice: Notice) -> None:
        """See `loop.Watcher`."""
        for client in self._clients:
            if client.watcher is not None and not client.connection.full:  # one that stands still misses some
                client.connection.send(notice)

    def ended(self, job: JobFiles, state: JobState, kind: str, message: str) -> None:
        """See `loop.Watcher`."""
        self.submissions.ended(job, state, kind, message)
