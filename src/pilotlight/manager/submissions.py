"""Jobs as clients know them: handed in, followed, cancelled, resumed after a crash, and how they end.

A job has followers. Those who submitted it hold it: when the last of them is gone it is cancelled, unless it is
detached; what a path job has written stays for the next time. Those who only attached may come and go. A path job is
in the pool's journal from before its `Accepted` to its end, so the next manager takes it up where one crashed, or was
told by the system to end.
"""

from __future__ import annotations

import asyncio
import functools
import os
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pilotlight.connection import Connection
from pilotlight.core import events as ev
from pilotlight.core.errors import ConfigError, InputError, OutputBusy, OutputError, PilotlightError, Superseded
from pilotlight.core.transitions import JobState
from pilotlight.manager import background, build, models, views
from pilotlight.manager.jobs import JobFiles, PathJob, StreamJob, identity
from pilotlight.manager.journal import JobRecord, PoolJournal
from pilotlight.manager.loop import Manager
from pilotlight.manager.report import run_report
from pilotlight.messages import Accepted, Attach, Cancel, Done, InputEnd, JobEnded, Refused, RowsIn, Submit
from pilotlight.poolfile import command
from pilotlight.views import JobView, exit_code
from pilotlight.wire import JobRequest, PathInput, PathOutput, PoolSpec

ORPHAN_S = 60.0
"""How long a resumed job waits for the client that its old manager's crash cut off."""
_ENDING = "the pool ends: no job can begin in it"
_PAUSED = "pool_paused"
"""The kind of end of jobs that go on in the pool's next manager."""


@dataclass(eq=False, slots=True)
class _Followed:
    files: JobFiles
    output: str
    """A path job's output, by its real path."""
    holders: set[Connection] = field(default_factory=set[Connection])
    watchers: set[Connection] = field(default_factory=set[Connection])
    orphan: asyncio.TimerHandle | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Submissions:
    """All jobs of a pool, from the clients' side. Methods take the connection that asks, and answer on it."""

    def __init__(self, spec: PoolSpec, manager: Manager, journal: PoolJournal) -> None:
        self._spec = spec
        self._manager = manager
        self._journal = journal
        self._jobs: dict[str, _Followed] = {}
        self._opening: dict[str, asyncio.Event] = {}
        self._resuming: asyncio.Task[None] | None = None
        self._asked: dict[asyncio.Task[None], Connection | None] = {}
        """Submissions, and the client with which each ends."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False

    # --- asked for

    def submit(self, client: Connection, submit: Submit) -> None:
        """Answered by `Accepted` or `Refused`."""
        if self._over:
            refuse(client, submit.ticket, ConfigError(_ENDING))
            return
        task = self._run(self._submit(client, submit))
        self._asked[task] = None if submit.detached else client
        task.add_done_callback(lambda task: self._asked.pop(task, None))

    def attach(self, client: Connection, attach: Attach) -> None:
        """Answered by `Accepted` or `Refused`."""
        self._run(self._attach(client, attach))

    def cancel(self, client: Connection, cancel: Cancel) -> None:
        """Answered where there is a ticket."""
        self._run(self._cancel(client, cancel))

    def rows(self, message: RowsIn | InputEnd) -> None:
        """Rows for a stream job."""
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

    def gone(self, client: Connection) -> None:
        """A client left: what only it held is over."""
        for task, asker in list(self._asked.items()):
            if asker is client:
                task.cancel()
        for job_id, job in list(self._jobs.items()):
            job.watchers.discard(client)
            if client in job.holders:
                job.holders.discard(client)
                if not job.holders and not job.files.detached:
                    self._manager.put(ev.JobCancelled(job_id, drain=False))

    def views(self) -> list[JobView]:
        """Jobs that ended lately and those that run, oldest first; those whose files are being opened are known too."""
        running = [
            msgspec.structs.replace(views.job_view(self._manager, job.files, "finishing"), holders=len(job.holders))
            for job in self._jobs.values()
        ]
        opening = [
            views.unopened_job(record, "", "opening")
            for job, record in self._journal.jobs.items()
            if job not in self._jobs
        ]
        return [*self._journal.history, *opening, *running]

    # --- the pool's begin and end

    def resume(self) -> asyncio.Task[None]:
        """Take up what the manager before this one left; done when all of it is open again, or told as lost."""
        self._manager.expect_jobs(self._journal.jobs)

        async def resume_all() -> None:
            await asyncio.gather(*(self._resume(record) for record in list(self._journal.jobs.values())))

        self._resuming = self._run(resume_all())
        return self._resuming

    async def stop(self, *, paused: bool = False) -> None:
        """End all jobs and tell their followers. `paused`: jobs between files go on in the pool's next manager."""
        self._over = True
        for task in list(self._asked):
            task.cancel()
        if self._resuming is not None:
            self._resuming.cancel()  # what is not open stays in the journal
        for job_id, job in list(self._jobs.items()):
            if paused and self._may_go_on(job_id):
                until = "" if job.files.detached else f", if its command comes back for it within {ORPHAN_S:.0f} s"
                up = f"the pool is up again ({command('up', self._spec.name)})"
                reason = f"the pool's manager was told to end; the job goes on when {up}{until}"
                self._manager.put(ev.JobBroken(job_id, suspended=True, kind=_PAUSED, reason=reason))
            else:
                self._manager.put(ev.JobCancelled(job_id, drain=False))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _may_go_on(self, job_id: str) -> bool:
        belief = self._manager.scheduler.state.jobs.get(job_id)  # one that drains was cancelled by somebody
        return job_id in self._journal.jobs and belief is not None and belief.state is JobState.RUNNING

    # --- submission

    async def _submit(self, client: Connection, submit: Submit) -> None:
        try:
            job = await self._taken(client, submit)
        except PilotlightError as error:
            refuse(client, submit.ticket, error)
            return
        except Exception as error:  # one client's odd request must not end the others' jobs
            traceback.print_exc()
            refuse(client, submit.ticket, PilotlightError(f"the request can't be taken: {_odd(error)}"))
            return
        if submit.detached:
            self._detach(job)
        self._accept(client, submit.ticket, job)
        self._begin(job)
        self._hold(client, job)

    async def _taken(self, client: Connection, submit: Submit) -> _Followed:
        """The job that this asks for: a new one, or one that runs already. Raises `PilotlightError`."""
        build.check_request(submit.request)
        stream = not isinstance(submit.request.output, PathOutput)
        if submit.detached and stream:
            raise ConfigError("a job whose rows come from its client ends with it: it can't be detached")
        request = await background.begin(lambda: models.resolve_request(submit.request))
        if stream:
            number = await background.begin(self._journal.next_number)
            return self._add(build.stream_job(request, number, client.send), "")
        assert isinstance(request.output, PathOutput)
        output = _real(request.output.path)
        while (busy := self._busy(output)) is not None:
            await busy.wait()
        if (running := self._writer(output)) is not None:
            _check_same(running, request)
            return running
        return await self._opened(request, output, detached=submit.detached)

    def _busy(self, output: str) -> asyncio.Event | None:
        """What to wait for before an output can be opened or followed: another opening of it, or its job's end."""
        job = self._writer(output)
        if job is None:
            return self._opening.get(output)
        belief = self._manager.scheduler.state.jobs.get(job.files.job_id)
        return None if belief is not None and belief.state is JobState.RUNNING else job.over

    def _writer(self, output: str) -> _Followed | None:
        return next((job for job in self._jobs.values() if job.output == output), None)

    async def _opened(
        self, request: JobRequest, output: str, *, detached: bool, record: JobRecord | None = None
    ) -> _Followed:
        """Open a path job and remember it; `record`: open it again as the journal has it. Raises `PilotlightError`."""
        opening = self._opening[output] = asyncio.Event()

        def opened(_: asyncio.Future[PathJob]) -> None:
            del self._opening[output]
            opening.set()

        def too_late(future: asyncio.Future[PathJob]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._put_back(future.result(), journaled=record is not None)

        future = background.begin(functools.partial(self._open, request, detached=detached, record=record))
        try:
            files = await asyncio.shield(future)
            if self._over:
                self._put_back(files, journaled=record is not None)
                raise ConfigError(_ENDING)
            files.detached = detached
            job = self._add(files, output)
        except asyncio.CancelledError:
            future.add_done_callback(too_late)
            future.add_done_callback(opened)
            raise
        except BaseException:
            opened(future)
            raise
        opened(future)  # only now, so that whoever looks finds either the opening or the job
        return job

    def _open(self, request: JobRequest, *, detached: bool, record: JobRecord | None) -> PathJob:
        """Blocks."""
        if record is not None:
            files = build.open_path_job(request, record.job, again=True)
            files.began_s = record.began_s
            return files
        files = build.open_path_job(request, build.path_job_id(request, self._journal.next_number()))
        if files.folder.complete:
            return files
        begun = JobRecord(job=files.job_id, detached=detached, began_s=files.began_s, request=request)
        try:
            self._journal.begin_job(begun)
        except BaseException:
            files.close()
            raise
        return files

    def _put_back(self, files: PathJob, *, journaled: bool) -> None:
        """Nobody wants a job that was just opened."""
        files.close()
        if not journaled:
            self._journal.drop_job(files.job_id)

    def _add(self, files: JobFiles, output: str) -> _Followed:
        job = self._jobs[files.job_id] = _Followed(files, output)
        return job

    def _begin(self, job: _Followed) -> None:
        """Let a new job run; one that is complete ends at once, one that runs already goes on."""
        files = job.files
        if files.job_id in self._manager.jobs or job.over.is_set():
            return
        if isinstance(files, PathJob) and files.folder.complete:
            files.rows_total = files.read_upto = files.rows_resumed
            self._run(self._finish(files, JobState.COMPLETED, "", "", complete=True))
            return
        attempts = files.folder.attempts if isinstance(files, PathJob) else {}
        done = files.folder.done.spans() if isinstance(files, PathJob) else []
        self._manager.add_job(files, done, dict(attempts))

    # --- followers

    def _accept(self, client: Connection, ticket: int, job: _Followed) -> None:
        files = job.files
        complete = isinstance(files, PathJob) and files.folder.complete
        client.send(
            Accepted(
                ticket=ticket,
                job=files.job_id,
                rows_done=files.rows_resumed,
                complete=complete,
                joined=files.job_id in self._manager.jobs,
                request=files.request,
            )
        )

    def _hold(self, client: Connection, job: _Followed) -> None:
        if job.orphan is not None:
            job.orphan.cancel()
            job.orphan = None
        job.holders.add(client)
        if client.closed:  # it is leaving
            self.gone(client)

    def _detach(self, job: _Followed) -> None:
        if job.files.detached:
            return
        job.files.detached = True
        record = self._journal.jobs.get(job.files.job_id)
        if record is not None:
            again = JobRecord(job=record.job, detached=True, began_s=record.began_s, request=record.request)
            try:
                self._journal.begin_job(again)
            except OutputError as error:
                self._manager.note("warning", str(error))

    async def _attach(self, client: Connection, attach: Attach) -> None:
        try:
            job = await self._find(attach.job)
        except PilotlightError as error:
            refuse(client, attach.ticket, error)
            return
        if client.closed:  # it was gone before its job was found
            return
        if job.orphan is not None:  # somebody looks after it, and must be able to leave without ending it
            job.orphan.cancel()
            job.orphan = None
            self._detach(job)
        job.watchers.add(client)
        self._accept(client, attach.ticket, job)

    async def _cancel(self, client: Connection, cancel: Cancel) -> None:
        try:
            job = await self._find(cancel.job)
        except PilotlightError as error:
            if cancel.ticket:
                refuse(client, cancel.ticket, error)
            return
        job_id = job.files.job_id
        if job_id not in self._manager.scheduler.state.jobs:
            text = f"{job_id} has come to its end already and only closes its files"
        else:
            self._manager.put(ev.JobCancelled(job_id, cancel.drain))
            how = "stops when what its replicas hold is finished" if cancel.drain else "is cancelled"
            text = f"{job_id} {how}; what it has written stays"
        if cancel.ticket:
            client.send(Done(ticket=cancel.ticket, text=text))

    async def _find(self, named: str) -> _Followed:
        """A running job, by its id or its output. Raises `ConfigError`."""
        if named not in self._jobs and self._resuming is not None and not self._over:
            await asyncio.wait({self._resuming})
        job = self._jobs.get(named) or self._writer(_real(named))
        if job is not None and not job.over.is_set():
            return job
        ended = next((view for view in reversed(self._journal.history) if named in {view.job, view.output}), None)
        if ended is not None:
            raise ConfigError(f"{ended.job} runs no more: it ended as {ended.state}")
        running = ", ".join(self._jobs) or "none"
        raise ConfigError(f"there is no job {named} in this pool (running: {running})")

    # --- resumption

    async def _resume(self, record: JobRecord) -> None:
        request = record.request
        try:
            if not isinstance(request.output, PathOutput) or not isinstance(request.input, PathInput):
                raise ConfigError("only jobs on files can be taken up again")
            output = _real(request.output.path)
            job = await self._opened(request, output, detached=record.detached, record=record)
        except Exception as error:
            if not isinstance(error, PilotlightError):
                traceback.print_exc()
            message = f"it could not be taken up after its manager ended: {error}"
            self._manager.note("error", f"{record.job} is given up: {message}")
            self._journal.end_job(views.unopened_job(record, message))
            self._manager.forget_job(record.job)
            return
        done = job.files.rows_resumed
        self._manager.note("info", f"{record.job} goes on after its manager ended; {done:,} rows are done")
        self._begin(job)
        if not job.files.detached:
            job.orphan = asyncio.get_running_loop().call_later(ORPHAN_S, self._orphaned, job)

    def _orphaned(self, job: _Followed) -> None:
        job.orphan = None
        job_id = job.files.job_id
        self._manager.note("warning", f"{job_id} is stopped: no client came for it in {ORPHAN_S:.0f} s")
        self._manager.put(ev.JobCancelled(job_id, drain=True))

    # --- the end

    def ended(self, files: JobFiles, state: JobState, kind: str, message: str) -> None:
        """See `loop.Watcher`."""
        self._run(self._finish(files, state, kind, message))

    async def _finish(
        self, files: JobFiles, state: JobState, kind: str, message: str, *, complete: bool = False
    ) -> None:
        """Close a job's files and tell its end. `complete`: it was so from the beginning."""
        report: dict[str, Any] = {}
        goes_on = kind == _PAUSED
        if isinstance(files, PathJob) and not complete:
            await self._manager.settled(files.job_id)
            if state is JobState.COMPLETED:
                totals = self._manager.ledger.totals(self._manager.scheduler.state)
                report = files.folder.report = run_report(files, self._spec, totals)
                try:
                    await asyncio.to_thread(files.folder.finish, files.read_upto)
                except Superseded as error:
                    state, kind, message = JobState.FAILED, error.kind, str(error)
                except OutputError as error:
                    state, kind, message = JobState.SUSPENDED, error.kind, str(error)
        try:
            await asyncio.to_thread(files.close)
        except OutputError as error:
            state, kind, message = JobState.SUSPENDED, error.kind, str(error)
        self._manager.forget_job(files.job_id)
        job = self._jobs[files.job_id]
        view = views.job_view(self._manager, files, state.value, message)
        if not goes_on:
            self._journal.end_job(view)
        del self._jobs[files.job_id]
        if job.orphan is not None:
            job.orphan.cancel()
        self._tell_end(job, view, state, kind, message, report)
        job.over.set()

    def _tell_end(
        self, job: _Followed, view: JobView, state: JobState, kind: str, message: str, report: dict[str, Any]
    ) -> None:
        ended = JobEnded(
            job=view.job,
            outcome=state.value,  # type: ignore[arg-type]
            view=view,
            totals=self._manager.ledger.totals(self._manager.scheduler.state),
            kind=kind,
            message=message,
            exit_code=exit_code(state.value, view.rows_error),
            report=report,
        )
        snapshot = views.snapshot(self._manager)
        for client in job.holders | job.watchers:
            client.send(snapshot)
            client.send(ended)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a client's request broke the manager", "exception": task.exception()}
            )


def refuse(client: Connection, ticket: int, error: PilotlightError) -> None:
    """Say why something is not done."""
    client.send(Refused(ticket=ticket, kind=error.kind, message=str(error), exit_code=error.exit_code))


def _check_same(job: _Followed, request: JobRequest) -> None:
    """Raise `OutputBusy` unless a running job does what this asks for."""
    running = job.files.request
    theirs, ours = identity(running), identity(request)
    if running.input == request.input and theirs == ours:
        return
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if running.input != request.input:
        names.insert(0, "input")
    raise OutputBusy(
        f"{job.output} is being written by {job.files.job_id}, which was asked for something else "
        f"({', '.join(names)}): wait for it, cancel it, or choose another output"
    )


def _real(path: str) -> str:
    """What an output is called, whatever links lead to it."""
    return os.path.realpath(path)


def _odd(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
