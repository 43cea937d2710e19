"""The agent's hands: runtime servers, and the replicas that they fork.

`Servers.start` brings up a replica; `on_ended` is called once for each, when its socket has closed (so every
result that it sent has been taken) and its exit status is known, or can't be.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pilotlight import logfiles
from pilotlight.connection import Connection, adopt
from pilotlight.replica_messages import (
    Exited,
    Feed,
    Forget,
    Forked,
    Load,
    Quit,
    ReplicaReply,
    ServerReply,
    Sleep,
    Spawn,
    Wake,
)
from pilotlight.wire import Context, DeviceSpec
from pilotlight.worker import logs

EXIT_STATUS_S_MAX = 1.0
SHORTEN_EVERY_S = 60.0


@dataclass(slots=True)
class Process:
    """A replica's process as the agent holds it."""

    replica_id: str
    context: Context
    log_path: Path
    server: Server | None = None
    connection: Connection | None = None
    pid: int = 0
    forked: asyncio.Event = field(default_factory=asyncio.Event)
    """Its `pid` is known, or never will be."""
    status: int | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    unwanted: bool = False
    """It was to end before it could be told to."""
    wished: bool = False
    """It was asked to end."""
    killed: bool = False
    """It was made to end, by us."""
    asked_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds until it was there: `import` (if it waited for its server) and `start`."""
    operations: set[str] = field(default_factory=set[str])
    """The jobs whose operation it was sent."""


class Server:
    """One runtime server's process and its control socket."""

    def __init__(
        self, runtime: str, log_path: Path, environment: Mapping[str, str], on_reply: Callable[[ServerReply], None]
    ) -> None:
        ours, theirs = socket.socketpair()
        self.runtime = runtime
        self._control = ours
        self._control.setblocking(False)
        self._text = b""
        self._on_reply = on_reply
        self.log_path = log_path
        self.ready_s: float | None = None
        with logs.opened(self.log_path) as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pilotlight.worker.server", runtime, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        theirs.close()
        asyncio.get_running_loop().add_reader(self._control, self._readable)

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._control.fileno() >= 0 and self.process.poll() is None

    def spawn(self, spawn: Spawn, sock: socket.socket) -> None:
        """Ask for a replica. Raises OSError where the server is gone."""
        socket.send_fds(self._control, [msgspec.json.encode(spawn) + b"\n"], [sock.fileno()])

    def _readable(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            reply = msgspec.json.decode(line, type=ServerReply)
            if isinstance(reply, Forked) and not reply.replica:
                self.ready_s = time.monotonic()
            self._on_reply(reply)

    def close(self) -> None:
        """Let it end."""
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()


class Servers:
    """All runtime servers and replicas of one agent."""

    def __init__(
        self,
        log_dir: Path,
        prefix: str,
        on_message: Callable[[str, ReplicaReply], None],
        on_ended: Callable[[str, str], None],
        environment: Callable[[str], Mapping[str, str]],
    ) -> None:
        """environment: what the processes of a runtime find in it."""
        self._environment = environment
        self._logs = logs.Logs(log_dir)
        self._shorten_at_s = 0.0
        self._prefix = prefix
        self._on_message = on_message
        self._on_ended = on_ended
        self._servers: dict[str, Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.processes: dict[str, Process] = {}

    def start(
        self, replica_id: str, context: Context, device: DeviceSpec, find: Callable[[], Awaitable[Path | None]]
    ) -> None:
        """Have a replica forked, and told what to load. find: tells where the context's files are nearest (None: in
        their own folder), while the replica is being forked; it must not raise."""
        process = Process(replica_id, context, self._logs.path(replica_id), asked_s=time.monotonic())
        self.processes[replica_id] = process
        ours, theirs = socket.socketpair()
        try:
            process.server = self._server(context.runtime)
            process.server.spawn(Spawn(replica=replica_id, log_path=str(process.log_path)), theirs)
        except OSError as error:
            ours.close()
            asyncio.get_running_loop().call_soon(self._gone, replica_id, f"its runtime server is gone ({error})")
            return
        finally:
            theirs.close()
        self._run(self._connect(process, ours, device, find))

    def prepare(self, runtime: str) -> None:
        """Have a runtime import its libraries before a replica is started."""
        with contextlib.suppress(OSError):  # `start` will say it
            self._server(runtime)

    async def _connect(
        self, process: Process, ours: socket.socket, device: DeviceSpec, find: Callable[[], Awaitable[Path | None]]
    ) -> None:
        def closed(_: str) -> None:
            process.forked.set()
            self._run(self._after_close(process))

        def prepare(connection: Connection) -> None:
            connection.on_message = lambda message: self._on_message(process.replica_id, message)
            connection.on_closed = closed

        path = await find()
        if path is not None:
            process.context = msgspec.structs.replace(process.context, model_path=str(path))
        process.connection = await adopt(ours, ReplicaReply, prepare)
        await process.forked.wait()  # what it says has meaning only once it is known who says it
        process.connection.send(Load(context=process.context, device=device))
        if process.unwanted:
            process.connection.send(Quit())

    async def _after_close(self, process: Process) -> None:
        if await self._exited(process) or not process.pid:
            self._gone(process.replica_id, self._how(process))
            return
        # It goes on without its socket; or its server died and nobody could tell.
        _kill(process)
        told = await self._exited(process)
        stuck = told or (process.server is not None and process.server.alive)
        reason = f"it closed its connection and did not exit{logs.last_line(process.log_path)}"
        self._gone(process.replica_id, reason if stuck else self._how(process))

    async def _exited(self, process: Process) -> bool:
        """Wait a moment for its exit status."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.exited.wait(), EXIT_STATUS_S_MAX)
        return process.status is not None

    def reap(self) -> None:
        """Take the status of every child that has ended, so that none stays a zombie.

        Beside the servers these are processes that became this one's children when their parents died, because it is
        a subreaper: replicas of a dead server, and what users' functions left behind. To be called now and then, by a
        process that has no children but those.
        """
        if time.monotonic() >= self._shorten_at_s:
            self._shorten_at_s = time.monotonic() + SHORTEN_EVERY_S
            others = (kept.log_path for kept in (*self._servers.values(), *self.processes.values()))
            logfiles.shorten([self._logs.path(self._prefix), *others])
        if sys.platform != "linux":
            return  # nothing else adopts
        servers = {server.process.pid: server.process for server in self._servers.values()}
        replicas = {process.pid: process for process in self.processes.values()}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                server = servers.get(ended.si_pid)
                if server is not None and server.returncode is None:
                    server.poll()
                    continue
                _, status = os.waitpid(ended.si_pid, 0)
                process = replicas.get(ended.si_pid)
                if process is not None:
                    self._ended(process, os.waitstatus_to_exitcode(status))

    def _gone(self, replica_id: str, reason: str) -> None:
        process = self.processes.pop(replica_id, None)
        if process is not None:
            self._logs.ended(process.log_path, wished=process.wished)
            self._on_ended(replica_id, reason)

    def _how(self, process: Process) -> str:
        server = self._servers.get(process.context.runtime)
        if process.pid == 0 and server is not None:
            status = server.process.poll()
            return f"its runtime server could not start (exit {status}){logs.last_line(server.log_path)}"
        status = process.status
        if status is None:
            return "it ended with its runtime server"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            if status == -signal.SIGKILL and process.killed:
                return "it was made to end"
            hint = "; the machine may have run out of memory" if status == -signal.SIGKILL else ""
            return f"killed by {name}{hint}{logs.last_line(process.log_path)}"
        return f"it exited with status {status}{logs.last_line(process.log_path)}"

    def _server(self, runtime: str) -> Server:
        server = self._servers.get(runtime)
        if server is None or not server.alive:
            if server is not None:
                server.close()
            server = self._servers[runtime] = Server(
                runtime,
                self._logs.path(f"{self._prefix}-server-{runtime}"),
                self._environment(runtime),
                self._server_said,
            )
        return server

    def _server_said(self, reply: ServerReply) -> None:
        process = self.processes.get(reply.replica)
        match reply:
            case Forked():
                if process is not None:
                    _forked(process, reply.pid)
            case Exited():
                if process is not None:
                    self._ended(process, reply.status)

    def _ended(self, process: Process, status: int) -> None:
        process.status = status
        process.exited.set()
        if process.connection is None:
            self._gone(process.replica_id, self._how(process))
        else:
            self._run(self._force_close(process))

    async def _force_close(self, process: Process) -> None:
        """A dead replica's socket may live on in a child of it: don't wait for that child."""
        assert process.connection is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.connection.gone.wait(), EXIT_STATUS_S_MAX)
            return
        process.connection.close("its process is gone")

    def feed(self, replica_id: str, feed: Feed) -> None:
        """Send rows to a replica; one that is gone swallows them (`on_ended` tells)."""
        process = self.processes.get(replica_id)
        if process is not None and process.connection is not None:
            process.connection.send(feed)

    def forget(self, job_id: str) -> None:
        """Have every replica that knows a job drop what it knows of it."""
        for process in self.processes.values():
            if job_id in process.operations:
                process.operations.discard(job_id)
                if process.connection is not None:
                    process.connection.send(Forget(job=job_id))

    def sleep(self, replica_id: str) -> None:
        """Have a replica fall asleep."""
        process = self.processes.get(replica_id)
        if process is not None and process.connection is not None:
            process.connection.send(Sleep())

    def wake(self, replica_id: str) -> None:
        """Have a replica wake up."""
        process = self.processes.get(replica_id)
        if process is not None and process.connection is not None:
            process.connection.send(Wake())

    def stop(self, replica_id: str, *, kill: bool) -> None:
        """Ask a replica to end, or kill it."""
        process = self.processes.get(replica_id)
        if process is None:
            return
        process.wished = process.wished or not kill
        if kill and process.pid:
            process.killed = True
            _kill(process)
        elif process.connection is not None:
            process.connection.send(Quit())
        else:
            process.unwanted = True

    def close(self) -> None:
        """Kill what runs. The servers end as their sockets close."""
        for process in self.processes.values():
            _kill(process)
            self._logs.ended(process.log_path, wished=True)
        for server in self._servers.values():
            server.close()
        for server in self._servers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(1.0)
            if server.process.returncode is None:
                server.process.kill()
                server.process.wait()

    def _run(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kill(process: Process) -> None:
    if process.pid and process.status is None:  # else the number may be another's by now
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)


def _forked(process: Process, pid: int) -> None:
    process.pid = pid
    ready_s = process.server.ready_s if process.server is not None else None
    began_s = max(process.asked_s, ready_s or 0.0)
    if began_s > process.asked_s:
        process.stages["import"] = began_s - process.asked_s
    process.stages["start"] = time.monotonic() - began_s
    process.forked.set()
