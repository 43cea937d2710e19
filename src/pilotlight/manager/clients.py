"""The clients' side of the manager: connections, submissions, what watchers see, and how jobs end.

A job belongs to the connection that submitted it: when that closes, the job is cancelled, and what a path job has
written stays for the next time. The connection that said it owns the pool ends the pool when it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pilotlight import __version__
from pilotlight.connection import Connection, listen
from pilotlight.core import events as ev
from pilotlight.core.errors import InputError, LinkClosed, OutputError, PilotlightError, Superseded
from pilotlight.core.transitions import JobState
from pilotlight.manager import build, models, views
from pilotlight.manager.jobs import JobFiles, PathJob, StreamJob
from pilotlight.manager.loop import Manager
from pilotlight.manager.report import made_with
from pilotlight.messages import (
    Accepted,
    Cancel,
    ClientMessage,
    Greeting,
    Hello,
    InputEnd,
    JobEnded,
    Notice,
    Refused,
    RowsIn,
    Shutdown,
    Submit,
)
from pilotlight.poolfile import socket_path
from pilotlight.wire import VERSION, PathInput, PoolSpec

EXIT_CODES = {JobState.COMPLETED: 0, JobState.CANCELLED: 130, JobState.FAILED: 1, JobState.SUSPENDED: 1}
ERROR_ROWS_EXIT_CODE = 3
OWNER_S_MAX = 30.0
OWNER_LOOK_S = 0.25


@dataclass(eq=False, slots=True)
class _Client:
    connection: Connection
    greeted: bool = False
    owner: bool = False
    watcher: asyncio.Task[None] | None = None


class Clients:
    """Serves clients on the pool's socket. `over` is set when the pool shall end."""

    def __init__(self, pool_dir: str, spec: PoolSpec, manager: Manager) -> None:
        self._path = socket_path(Path(pool_dir), spec, "client.sock")
        self._spec = spec
        self._manager = manager
        self._clients: set[_Client] = set()
        self._made = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.over = asyncio.Event()
        manager.watcher = self

    async def start(self) -> None:
        """Listen."""
        self._server = await listen(self._path, ClientMessage, self._arrived)

    async def await_owner(self, parent_pid: int) -> None:
        """End a pool whose owner died before it could say hello: its process is gone, or it takes too long."""
        deadline = time.monotonic() + OWNER_S_MAX
        while not any(client.owner for client in self._clients):
            if os.getppid() != parent_pid or time.monotonic() > deadline:
                self.over.set()
                return
            await asyncio.sleep(OWNER_LOOK_S)

    async def stop(self) -> None:
        """End all jobs, tell their clients, and close."""
        for job in list(self._manager.jobs.values()):
            self._manager.put(ev.JobCancelled(job.job_id, drain=False))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.connection.close("the pool ends")

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
        for job in [job for job in self._manager.jobs.values() if job.owner is client]:
            self._manager.put(ev.JobCancelled(job.job_id, drain=False))
        if client.owner and not self._spec.lasting:
            self.over.set()

    def _said(self, client: _Client, message: ClientMessage) -> None:
        if not client.greeted and not isinstance(message, Hello):
            client.connection.close("a client must say hello first")
            return
        match message:
            case RowsIn() | InputEnd():
                self._input(message)
            case Submit():
                self._run(self._submit(client, message))
            case Cancel(job=job, drain=drain):
                self._manager.put(ev.JobCancelled(job, drain))
            case Hello():
                self._greet(client, message)
            case Shutdown():
                self.over.set()
            case _:
                pass

    def _greet(self, client: _Client, hello: Hello) -> None:
        if hello.version != VERSION:
            client.connection.close(f"the manager speaks version {VERSION}, the client {hello.version}")
            return
        if client.greeted:
            client.connection.close("a client says hello once")
            return
        client.greeted, client.owner = True, hello.owner
        greeting = Greeting(version=VERSION, epoch=self._manager.epoch, pid=os.getpid(), log_dir=self._spec.log_dir)
        client.connection.send(greeting)
        if hello.watch_s > 0:
            client.watcher = asyncio.get_running_loop().create_task(self._watch(client, hello.watch_s))

    async def _watch(self, client: _Client, every_s: float) -> None:
        while not client.connection.closed:
            client.connection.send(views.snapshot(self._manager))
            with contextlib.suppress(LinkClosed):
                await client.connection.drained()  # one that does not read gets no more
            await asyncio.sleep(every_s)

    def _input(self, message: RowsIn | InputEnd) -> None:
        job = self._manager.jobs.get(message.job)
        if not isinstance(job, StreamJob):
            return
        try:
            if isinstance(message, RowsIn):
                job.arrive(message.chunk)
            else:
                job.end_input()
        except InputError as error:
            self._manager.put(ev.JobBroken(job.job_id, suspended=False, kind=error.kind, reason=str(error)))
            return
        self._manager.rows_arrived(job)

    # --- jobs

    async def _submit(self, client: _Client, submit: Submit) -> None:
        ticket = submit.ticket
        self._made += 1
        number = self._made
        try:
            request = await asyncio.to_thread(models.resolve_request, submit.request)
            job = await asyncio.to_thread(build.open_job, request, number, client, client.connection.send)
        except PilotlightError as error:
            refused = Refused(ticket=ticket, kind=error.kind, message=str(error), exit_code=error.exit_code)
            client.connection.send(refused)
            return
        except Exception as error:  # one client's odd request must not end the others' jobs
            traceback.print_exc()
            message = f"the request can't be taken: {type(error).__name__}: {error}"
            client.connection.send(Refused(ticket=ticket, kind="error", message=message, exit_code=1))
            return
        if client.connection.closed or self.over.is_set():
            job.close()
            return
        complete = isinstance(job, PathJob) and job.folder.complete
        client.connection.send(
            Accepted(ticket=ticket, job=job.job_id, rows_done=job.rows_resumed, complete=complete, request=request)
        )
        if complete:
            job.rows_total = job.read_upto = job.rows_resumed
            self._tell_end(job, JobState.COMPLETED, "", "", {})
            job.close()
            return
        attempts = job.folder.attempts if isinstance(job, PathJob) else {}
        done = job.folder.done.spans() if isinstance(job, PathJob) else []
        self._manager.add_job(job, done, dict(attempts))

    def ended(self, job: JobFiles, state: JobState, kind: str, message: str) -> None:
        """See `loop.Watcher`."""
        self._run(self._finish(job, state, kind, message))

    async def _finish(self, job: JobFiles, state: JobState, kind: str, message: str) -> None:
        report: dict[str, Any] = {}
        if isinstance(job, PathJob):
            await self._manager.settled(job.job_id)
            if state is JobState.COMPLETED:
                report = job.folder.report = self._report(job)
                try:
                    await asyncio.to_thread(job.folder.finish, job.read_upto)
                except Superseded as error:
                    state, kind, message = JobState.FAILED, error.kind, str(error)
                except OutputError as error:
                    state, kind, message = JobState.SUSPENDED, error.kind, str(error)
        try:
            await asyncio.to_thread(job.close)
        except OutputError as error:
            state, kind, message = JobState.SUSPENDED, error.kind, str(error)
        self._manager.forget_job(job.job_id)
        self._tell_end(job, state, kind, message, report)

    def _tell_end(self, job: JobFiles, state: JobState, kind: str, message: str, report: dict[str, Any]) -> None:
        view = views.job_view(self._manager, job, state.value)
        exit_code = EXIT_CODES[state]
        if state is JobState.COMPLETED and view.rows_error:
            exit_code = ERROR_ROWS_EXIT_CODE
        job.owner.connection.send(views.snapshot(self._manager))
        job.owner.connection.send(
            JobEnded(
                job=job.job_id,
                outcome=state.value,  # type: ignore[arg-type]
                view=view,
                totals=self._manager.ledger.totals(self._manager.scheduler.state),
                kind=kind,
                message=message,
                exit_code=exit_code,
                report=report,
            )
        )

    def _report(self, job: PathJob) -> dict[str, Any]:
        """What a run's report says, beside what the output's own part of it says (rows, errors, digests)."""
        request = job.request
        assert isinstance(request.input, PathInput)
        wall_s = time.monotonic() - job.began_monotonic_s
        totals = self._manager.ledger.totals(self._manager.scheduler.state)
        context = {k: v for k, v in msgspec.to_builtins(request.context).items() if k != "load"}
        return {
            "pilotlight": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.began_s)),
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_s": round(wall_s, 3),
            "arguments": request.arguments,
            "inputs": request.input.paths,
            "context": {**context, "id": request.context.id},
            "operation": {**msgspec.to_builtins(request.operation), "id": request.operation.id},
            "made_with": made_with(request),
            "rows_resumed": job.rows_resumed,
            "pool": msgspec.to_builtins(totals),
        }

    # --- watchers

    def notice(self, notice: Notice) -> None:
        """See `loop.Watcher`."""
        for client in self._clients:
            if client.watcher is not None:
                client.connection.send(notice)

    def _run(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a client's request broke the manager", "exception": task.exception()}
            )
