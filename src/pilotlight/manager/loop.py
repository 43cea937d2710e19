"""The manager's loop: carries out what `core.scheduler` decides, and tells it what happened.

Events are taken one after another from a queue, so that an effect which succeeds at once never re-enters the machine.
Bytes pass through here unread: from `JobFiles.read` to a worker's `Grant`, from a worker's `Rows` to `JobFiles.write`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.errors import InputError, OutputError, PilotlightError, Superseded
from pilotlight.core.ranges import Span, span_count
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import JobState, Level
from pilotlight.io import rows as row_codec
from pilotlight.manager import facts
from pilotlight.manager.early import EarlyRows
from pilotlight.manager.jobs import JobFiles, PathJob, StreamJob, only, split
from pilotlight.manager.keeper import Keeper
from pilotlight.manager.ledger import Ledger
from pilotlight.manager.offers import Offers
from pilotlight.manager.roll import Roll
from pilotlight.messages import (
    Ack,
    Beat,
    CopyFailed,
    DefineJob,
    Died,
    Drain,
    ForgetJob,
    Grant,
    Join,
    Kept,
    Leaving,
    LoadFailed,
    ManagerMessage,
    Notice,
    Reported,
    Returned,
    Revoke,
    Rows,
    SourceAsked,
    Stopped,
    Want,
    Wants,
    Welcome,
    WorkerMessage,
)
from pilotlight.ports import ManagerLink
from pilotlight.wire import Context, ResultChunk

TICK_S = 0.1
SYNC_S = 0.5
ACK_S = 0.02
FORGET_S = 60.0
"""How often contexts are dropped that the scheduler has forgotten."""


class Watcher(Protocol):
    """Who wants to know: the clients' side of the manager."""

    def notice(self, notice: Notice) -> None:
        """Something a person may want to read."""
        ...

    def ended(self, job: JobFiles, state: JobState, kind: str, message: str) -> None:
        """A job left the scheduler; its files are still open."""
        ...


Record = Callable[[ev.ManagerEvent, list[do.ManagerDecision], float], None]
"""Hears each event with what was decided and when, before that is carried out. Never raises; costs next to nothing."""


class Manager:
    """The event loop around the scheduler. `clients` sets itself as `watcher`, and whoever keeps a log `record`."""

    def __init__(self, epoch: int, link: ManagerLink, keeper: Keeper, options: Options) -> None:
        self.epoch = epoch
        self.scheduler = Scheduler(options)
        self.ledger = Ledger()
        self.jobs: dict[str, JobFiles] = {}
        self.contexts: dict[str, Context] = {}
        self.watcher: Watcher | None = None
        self.record: Record = lambda _event, _decisions, _now: None
        self._link = link
        self._keeper = keeper
        self.offers = Offers(epoch, link, self.note, self.name_of)
        self._events: deque[ev.ManagerEvent] = deque()
        self._handling = False
        self._early = EarlyRows()
        self.roll = Roll()
        self._acks: dict[str, int] = {}
        self._ack_due = False
        self._ticker: asyncio.Task[None] | None = None
        self._syncs: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Let workers in and start the pilots."""
        await self._link.start(self._worker_said, self._worker_gone)
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        self._ticker.add_done_callback(self._ticked)

    async def stop(self) -> None:
        """End all workers. Jobs are to be ended by the caller before."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self.tell_all(Drain(grace_s=0.0))
        try:
            await self._link.stop()
        finally:
            await self.offers.close()
            await asyncio.to_thread(self._keeper.close)

    # --- jobs

    def add_job(self, job: JobFiles, done: list[Span], attempts: dict[int, int]) -> None:
        """A job's files are open: let it begin."""
        request = job.request
        self.jobs[job.job_id] = job
        job.totals_before = self.ledger.totals(self.scheduler.state)
        self.contexts[job.variant_id] = request.context
        variant = facts.variant_of(job.variant_id, request.context)
        self.put(
            ev.JobSubmitted(
                job.job_id,
                request.name,
                variant,
                request.weight,
                request.max_attempts,
                may_hedge=request.operation.kind != "map",
                done=tuple(done),
                attempts=attempts,
            )
        )
        self._take_early(job.job_id)

    def expect_jobs(self, job_ids: Iterable[str]) -> None:
        """These jobs of an earlier manager are being opened: results of theirs wait until `add_job` or `forget_job`."""
        self._early.expect(job_ids)

    def forget_job(self, job_id: str) -> None:
        """A job's files are closed, or can't be opened."""
        self.jobs.pop(job_id, None)
        self._take_early(job_id)

    def _take_early(self, job_id: str) -> None:
        for worker_id, rows in self._early.come(job_id):
            self._results(worker_id, rows)
            self._ack(worker_id, rows.seq)

    def tell_all(self, message: ManagerMessage) -> None:
        """Send to all workers that are here."""
        for worker_id in self.scheduler.state.workers:
            self._link.send(worker_id, message)

    def rows_arrived(self, job: StreamJob) -> None:
        """A client sent rows, or said that there are no more."""
        if job.waiting and job.job_id in self.scheduler.state.jobs:
            self._read(job, job.waiting)

    # --- the machine

    def put(self, event: ev.ManagerEvent) -> None:
        """Take in an event, and all that follow from it."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event, now = self._events.popleft(), time.monotonic()
                decisions = self.scheduler.handle(event, now)
                self.record(event, decisions, now)
                for decision in decisions:
                    self._carry_out(decision)
        finally:
            self._handling = False

    def _carry_out(self, decision: do.ManagerDecision) -> None:
        match decision:
            case do.GrantRows():
                self._grant(decision)
            case do.ReadRows(job_id, rows):
                self._read(self.jobs[job_id], rows)
            case do.RevokeRows(worker_id, lease_id, rows):
                self._link.send(worker_id, Revoke(epoch=self.epoch, lease=lease_id, rows=rows))
            case do.SendWants():
                wants = [
                    Want(
                        device=d,
                        variant=v,
                        context=self.contexts[v],
                        level="parked" if level is Level.PARKED else "live",
                    )
                    for d, v, level in decision.wants
                ]
                message = Wants(epoch=self.epoch, version=decision.version, wants=wants)
                self._link.send(decision.worker_id, message)
            case do.NameSource(worker_id, variant_id, source):
                self.offers.name(worker_id, variant_id, source, self.contexts.get(variant_id))
            case do.WriteFailure():
                self._write_failure(decision)
            case do.RecordAttempts(job_id, attempts):
                job = self.jobs[job_id]
                if isinstance(job, PathJob):
                    self._guarded(job, lambda: job.folder.record_attempts(dict(attempts)))
            case do.EndJob(job_id, state, kind, message):
                self._end(self.jobs[job_id], state, kind, message)
            case do.DropWorker(worker_id, reason):
                self._link.drop(worker_id, reason)
                self.roll.leave(worker_id)
                self._keeper.give_up(worker_id)
                self._forget_worker(worker_id)
                self.offers.forget_worker(worker_id)
            case do.Note():
                self.note(decision.level, decision.text, decision.subject)

    def note(self, level: str, text: str, subject: str = "") -> None:
        """Tell whoever watches."""
        with contextlib.suppress(OSError):  # a full disk under the log must not stop the work
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {level}: {text}\n")
            sys.stderr.flush()
        if self.watcher is not None:
            self.watcher.notice(Notice(level=level, text=text, worker=subject))  # type: ignore[arg-type]

    # --- rows out

    def _grant(self, grant: do.GrantRows) -> None:
        job = self.jobs[grant.job_id]
        if grant.worker_id not in job.sent_to:
            job.sent_to.add(grant.worker_id)
            define = DefineJob(
                job=job.job_id,
                variant=job.variant_id,
                operation=job.request.operation,
                request_timeout_s=job.request.request_timeout_s,
            )
            self._link.send(grant.worker_id, define)
        chunks = job.store.get(grant.spans)
        if not grant.isolated:
            chunks, held_back = split(chunks)
            if held_back:  # as if the worker had given them back: the next grant takes them
                self.put(ev.RowsReturned(grant.worker_id, grant.lease_id, held_back))
        message = Grant(
            epoch=self.epoch,
            lease=grant.lease_id,
            job=grant.job_id,
            chunks=chunks,
            isolated=grant.isolated,
            avoid=list(grant.avoid),
        )
        self._link.send(grant.worker_id, message)

    def _read(self, job: JobFiles, rows: int) -> None:
        job.waiting = rows if job.full else 0
        if job.full:
            return
        start = job.read_upto
        try:
            chunks = job.read(rows)
        except InputError as error:
            self.put(ev.JobBroken(job.job_id, suspended=False, kind=error.kind, reason=str(error)))
            return
        except OutputError as error:
            self._output_failed(job, error)
            return
        if chunks is None:
            job.waiting = rows
            return
        done = self.scheduler.state.jobs[job.job_id].done
        for chunk in chunks:
            if done.covers(chunk.start, chunk.stop):
                continue
            job.store.add(chunk)
            job.store.drop(done.within(chunk.start, chunk.stop))
        stop = chunks[-1].stop if chunks else start
        job.read_upto = stop
        if not chunks:
            job.rows_total = stop
        self.put(ev.RowsRead(job.job_id, start, stop, exhausted=not chunks))

    # --- rows in

    def _rows(self, worker_id: str, rows: Rows) -> None:
        self._ack(worker_id, rows.seq)
        self.ledger.busy_s += rows.chunk.counters.get("busy_s", 0.0)
        self.put(ev.WorkerHeard(worker_id, rows.started))
        if not self._early.hold(worker_id, rows):
            self._results(worker_id, rows)

    def _results(self, worker_id: str, rows: Rows) -> None:
        job = self.jobs.get(rows.job)
        belief = self.scheduler.state.jobs.get(rows.job)
        if job is None or belief is None:
            return
        # An earlier manager of this job may have handed out rows that this one has not read yet.
        upto = max(job.read_upto, job.known_upto)
        fresh: list[Span] = []
        for start, stop in rows.chunk.spans:
            fresh += belief.done.missing(start, min(stop, upto))
        chunk = rows.chunk
        if span_count(fresh) != chunk.count:
            if not fresh:
                return
            chunk = only(chunk, fresh)
        self._write(job, chunk, rows.lease, worker_id, rows.device)

    def _write(
        self,
        job: JobFiles,
        chunk: ResultChunk,
        lease_id: str = "",
        worker_id: str = "",
        device_id: str = "",
    ) -> None:
        try:
            job.write(chunk)
        except OutputError as error:
            self._output_failed(job, error)
            return
        was_full = job.full
        job.count(chunk)
        job.store.drop(chunk.spans)
        self.put(ev.RowsWritten(job.job_id, tuple(chunk.spans), lease_id, worker_id, device_id, chunk.errors))
        if was_full and not job.full and job.waiting and job.job_id in self.scheduler.state.jobs:
            self._read(job, job.waiting)

    def _write_failure(self, failure: do.WriteFailure) -> None:
        job = self.jobs[failure.job_id]
        operation = job.request.operation
        row = job.store.get([(failure.index, failure.index + 1)])[0]
        custom_id = row_codec.custom_id_of(row.blob) if operation.row_format == "json" else None
        line = row_codec.encode_error(failure.index, failure.kind, failure.message, custom_id, operation.result_format)
        spans = [(failure.index, failure.index + 1)]
        self._write(job, ResultChunk(spans, line, {failure.kind: [failure.index]}))

    def _output_failed(self, job: JobFiles, error: OutputError) -> None:
        self.put(ev.JobBroken(job.job_id, suspended=True, kind=error.kind, reason=str(error)))

    def _guarded(self, job: JobFiles, work: Callable[[], None]) -> None:
        try:
            work()
        except OutputError as error:
            self._output_failed(job, error)

    def _ack(self, worker_id: str, seq: int) -> None:
        self._acks[worker_id] = max(seq, self._acks.get(worker_id, 0))
        if not self._ack_due:
            self._ack_due = True
            asyncio.get_running_loop().call_later(ACK_S, self._send_acks)

    def _send_acks(self) -> None:
        self._ack_due = False
        for worker_id, seq in self._acks.items():
            self._link.send(worker_id, Ack(upto=self._early.upto(worker_id, seq)))
        self._acks.clear()

    def _end(self, job: JobFiles, state: JobState, kind: str, message: str) -> None:
        job.waiting = 0
        for worker_id in job.sent_to:
            self._link.send(worker_id, ForgetJob(job=job.job_id))
        if self.watcher is not None:
            self.watcher.ended(job, state, kind, message)

    # --- workers

    def _worker_said(self, worker_id: str, message: WorkerMessage) -> None:
        if self.roll.is_outside(worker_id) and not isinstance(message, Join):
            return
        self.offers.heard(worker_id, message)
        match message:
            case Rows():
                self._rows(worker_id, message)
            case Beat(started=started):
                self.put(ev.WorkerHeard(worker_id, started))
            case Reported(resident=resident):
                self.ledger.resident(worker_id, resident, self.name_of(resident.variant))
                self.put(ev.ReplicaReported(worker_id, facts.replica_fact(resident)))
            case Kept(copy=copy):
                self.put(ev.CopyReported(worker_id, facts.copy_fact(copy)))
            case SourceAsked(variant=variant_id, remote=remote):
                self.put(ev.SourceAsked(worker_id, variant_id, remote))
            case CopyFailed(variant=variant_id, source=source):
                self.put(ev.CopyFailedAt(worker_id, variant_id, source))
            case Returned(lease=lease, spans=spans):
                self.put(ev.RowsReturned(worker_id, lease, tuple(spans)))
            case Died():
                self.ledger.forget_replica(worker_id, message.replica)
                self.put(facts.died(worker_id, message))
            case LoadFailed():
                self.put(facts.load_failed(worker_id, message))
            case Stopped():
                self.ledger.forget_replica(worker_id, message.replica)
                self.put(ev.ReplicaStopped(worker_id, message.device, message.variant))
            case Leaving():
                self.put(ev.WorkerLeaving(worker_id, message.reason, message.grace_s))
            case Join():
                self._joined(message)

    def _joined(self, join: Join) -> None:
        answer = self.roll.take(join, ours=self._keeper.has(join.worker))
        for level, text in answer.notes:
            self.note(level, text, join.worker)
        if answer.no is not None:
            self._link.send(join.worker, answer.no)
            self._keeper.give_up(join.worker)  # should it not understand
            return
        self._forget_worker(join.worker)
        self._link.send(join.worker, Welcome(epoch=self.epoch))
        self._keeper.joined(join.worker, join.host)
        self.ledger.inventory(join.worker, join.residents)
        self.contexts = facts.contexts_in(join) | self.contexts
        self.put(facts.joined(join, self.contexts, answer.verdict))

    def _worker_gone(self, worker_id: str, reason: str) -> None:
        self.roll.leave(worker_id)
        self._forget_worker(worker_id)
        self._keeper.left(worker_id)
        how = self._look_after_pilots(lost=worker_id)
        self.put(ev.WorkerLost(worker_id, how or reason))

    def _forget_worker(self, worker_id: str) -> None:
        """What was kept for a worker's connection is void."""
        self._acks.pop(worker_id, None)
        self._early.forget_worker(worker_id)
        self.ledger.forget_worker(worker_id)
        for job in self.jobs.values():
            job.sent_to.discard(worker_id)

    def _look_after_pilots(self, *, lost: str = "") -> str:
        """Returns how the process of the worker that was lost ended, if it has."""
        ended = self._keeper.look()
        how = ended.pop(lost, "")
        for worker_id, other in ended.items():
            self.put(ev.PilotEnded(worker_id, other))
        return how

    def name_of(self, variant_id: str) -> str:
        """What people call a variant."""
        return self.contexts[variant_id].name if variant_id in self.contexts else variant_id

    # --- time

    async def _tick(self) -> None:
        synced = forgot = time.monotonic()
        while True:
            self._look_after_pilots()
            self.put(ev.Tick())
            if time.monotonic() - forgot >= FORGET_S:
                forgot = time.monotonic()
                self._forget_contexts()
            if time.monotonic() - synced >= SYNC_S:
                synced = time.monotonic()
                for job in self.jobs.values():
                    if isinstance(job, PathJob) and job.job_id not in self._syncs:
                        self._syncs[job.job_id] = asyncio.get_running_loop().create_task(self._sync(job))
            await asyncio.sleep(TICK_S)

    @staticmethod
    def _ticked(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "the manager's clock broke", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _sync(self, job: PathJob) -> None:
        try:
            job.folder.beat()
            await asyncio.to_thread(job.folder.sync)
        except Superseded as error:
            self._output_failed(job, error)
        except OutputError as error:
            self._output_failed(job, error)
        except PilotlightError as error:
            self.note("error", str(error))
        finally:
            self._syncs.pop(job.job_id, None)

    def _forget_contexts(self) -> None:
        """Drop the contexts that the scheduler has forgotten."""
        known = self.scheduler.state.variants
        for variant_id in self.contexts.keys() - known:
            del self.contexts[variant_id]

    async def settled(self, job_id: str) -> None:
        """Wait until nothing writes to a job's files in the background."""
        task = self._syncs.get(job_id)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
