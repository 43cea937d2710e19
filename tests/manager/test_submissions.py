"""What becomes of jobs whose client leaves, never comes, or asks while the pool ends."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from pilotlight.connection import Connection
from pilotlight.core.allocation import Options
from pilotlight.core.transitions import JobState
from pilotlight.manager import submissions as submissions_module
from pilotlight.manager.jobs import JobFiles
from pilotlight.manager.journal import JobRecord, PoolJournal
from pilotlight.manager.keeper import Keeper
from pilotlight.manager.loop import Manager
from pilotlight.manager.submissions import Submissions
from pilotlight.messages import Accepted, Ack, Attach, Cancel, Done, JobEnded, Join, Refused, Rows, Submit
from pilotlight.wire import JobRequest, Operation, PathInput, PathOutput, PoolSpec, ResultChunk
from tests.manager.test_loop import CONTEXT, CPU, Link, NoPilots, quiet

M = TypeVar("M")


class Client:
    """What a connection is told."""

    def __init__(self) -> None:
        self.closed = False
        self.told: asyncio.Queue[object] = asyncio.Queue()

    def send(self, message: object) -> None:
        self.told.put_nowait(message)

    async def take(self, kind: type[M]) -> M:
        while True:
            message = await self.told.get()
            if isinstance(message, kind):
                return message


class Pool:
    """A manager without workers, and the jobs of its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = PoolJournal(folder, quiet, keeps=True)
        self.journal.read()
        self.manager = Manager(1, Link(), Keeper(NoPilots(), 0, quiet), Options())
        spec = PoolSpec(workers=0, log_dir=str(folder), lasting=True)
        self.submissions = Submissions(spec, self.manager, self.journal)
        self.manager.watcher = self

    def notice(self, _notice: object) -> None:
        """Nobody watches."""

    def ended(self, job: JobFiles, state: JobState, kind: str, message: str) -> None:
        self.submissions.ended(job, state, kind, message)

    def submit(self, client: Client, *, detached: bool = False) -> None:
        self.submissions.submit(_connection(client), Submit(ticket=1, request=asked(self.folder), detached=detached))

    def attach(self, client: Client, job: str) -> None:
        self.submissions.attach(_connection(client), Attach(ticket=2, job=job))

    def leave(self, client: Client) -> None:
        client.closed = True
        self.submissions.gone(_connection(client))


def _connection(client: Client) -> Connection:
    return cast("Connection", client)


def asked(folder: Path) -> JobRequest:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(10)))
    return JobRequest(
        context=CONTEXT,
        operation=Operation(kind="echo"),
        input=PathInput(paths=[str(source)]),
        output=PathOutput(path=str(folder / "out.jsonl")),
    )


def played(folder: Path, play: Callable[[Pool], Awaitable[None]]) -> None:
    """Run a play against a pool, with a limit for whatever it waits for."""

    async def run() -> None:
        pool = Pool(folder)
        async with asyncio.timeout(30):
            await pool.manager.start()
            try:
                await play(pool)
            finally:
                await pool.submissions.stop()
                await pool.manager.stop()

    asyncio.run(run())


def remembered(folder: Path, *, detached: bool) -> str:
    """A job that a manager before this one left running."""

    async def leave_one(pool: Pool) -> None:
        client = Client()
        pool.submit(client, detached=detached)
        job = (await client.take(Accepted)).job
        jobs.append((job, pool.journal.jobs[job]))

    jobs: list[tuple[str, JobRecord]] = []
    played(folder, leave_one)
    (job, record) = jobs[0]
    PoolJournal(folder, quiet, keeps=True).begin_job(record)  # as if that one had not ended in order
    (folder / "history.jsonl").unlink()
    return job


def test_a_resumed_job_that_nobody_comes_for_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions_module, "ORPHAN_S", 0.05)
    job = remembered(tmp_path, detached=False)

    async def play(pool: Pool) -> None:
        await pool.submissions.resume()
        await pool.submissions._jobs[job].over.wait()
        assert [(view.job, view.state) for view in pool.submissions.views()] == [(job, "cancelled")]
        assert not pool.journal.jobs

    played(tmp_path, play)
    assert (tmp_path / "out.jsonl.pilotlight").exists()


@pytest.mark.parametrize("detached", [False, True])
def test_who_attaches_to_a_resumed_job_keeps_it_and_may_leave(tmp_path: Path, detached: bool) -> None:
    job = remembered(tmp_path, detached=detached)

    async def play(pool: Pool) -> None:
        await pool.submissions.resume()
        client, watcher = Client(), Client()
        pool.attach(client, job)
        assert (await client.take(Accepted)).job == job
        pool.attach(watcher, str(tmp_path / "out.jsonl"))
        await watcher.take(Accepted)
        pool.leave(client)
        assert pool.journal.jobs[job].detached
        assert pool.submissions._jobs[job].orphan is None
        assert job in pool.manager.scheduler.state.jobs
        pool.submissions.cancel(_connection(watcher), Cancel(job=job, ticket=3))
        assert "is cancelled" in (await watcher.take(Done)).text
        assert (await watcher.take(JobEnded)).outcome == "cancelled"

    played(tmp_path, play)


def test_who_is_gone_before_its_job_is_found_follows_nothing(tmp_path: Path) -> None:
    job = remembered(tmp_path, detached=False)

    async def play(pool: Pool) -> None:
        resumed = pool.submissions.resume()
        gone = Client()
        pool.attach(gone, job)
        pool.leave(gone)
        await resumed
        follower = Client()
        pool.attach(follower, job)  # its turn comes after
        await follower.take(Accepted)
        followed = pool.submissions._jobs[job]
        assert (followed.watchers, followed.holders) == ({_connection(follower)}, set())
        assert gone.told.empty()

    played(tmp_path, play)


@pytest.mark.parametrize("detached", [False, True])
def test_jobs_of_a_pool_that_pauses_are_remembered(tmp_path: Path, detached: bool) -> None:
    jobs: list[str] = []

    async def play(pool: Pool) -> None:
        client = Client()
        pool.submit(client, detached=detached)
        jobs.append((await client.take(Accepted)).job)
        await pool.submissions.stop(paused=True)
        ended = await client.take(JobEnded)
        assert ended.outcome == "suspended"
        assert "goes on when the pool is up again (pilotlight up" in ended.message

    played(tmp_path, play)

    async def again(pool: Pool) -> None:
        assert list(pool.journal.jobs) == jobs
        await pool.submissions.resume()
        assert [(view.job, view.state, view.detached) for view in pool.submissions.views()] == [
            (jobs[0], "running", detached)
        ]

    played(tmp_path, again)
    assert not PoolJournal(tmp_path, quiet, keeps=True).jobs


def test_a_job_that_was_cancelled_does_not_come_back_after_a_pause(tmp_path: Path) -> None:
    async def play(pool: Pool) -> None:
        client = Client()
        pool.submit(client, detached=True)
        job = (await client.take(Accepted)).job
        belief = pool.manager.scheduler.state.jobs[job]
        belief.state = JobState.DRAINING  # as while a replica finishes what it began
        await pool.submissions.stop(paused=True)
        assert (await client.take(JobEnded)).outcome == "cancelled"
        assert not pool.journal.jobs

    played(tmp_path, play)


def test_what_only_closes_its_files_is_not_said_to_be_cancelled(tmp_path: Path) -> None:
    async def play(pool: Pool) -> None:
        client = Client()
        pool.submit(client)
        job = (await client.take(Accepted)).job
        for ticket in (1, 2):
            pool.submissions.cancel(_connection(client), Cancel(job=job, ticket=ticket))
        assert "is cancelled" in (await client.take(Done)).text
        assert "has come to its end already" in (await client.take(Done)).text

    played(tmp_path, play)


def test_results_of_a_job_that_is_being_opened_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = remembered(tmp_path, detached=True)
    go_on = threading.Event()
    really = submissions_module.build.open_path_job

    def slowly(request: JobRequest, job_id: str, **more: Any) -> Any:
        go_on.wait(30)
        return really(request, job_id, **more)

    monkeypatch.setattr(submissions_module.build, "open_path_job", slowly)

    async def play(pool: Pool) -> None:
        link = cast("Link", pool.manager._link)
        acks: asyncio.Queue[int] = asyncio.Queue()
        link.send = lambda _worker, message: acks.put_nowait(message.upto) if isinstance(message, Ack) else None
        resumed = pool.submissions.resume()
        link.say("w", Join(worker="w", pid=1, host="h", devices=[CPU]))
        chunk = ResultChunk([(3, 5)], b'{"index":3}\n{"index":4}')
        link.say("w", Rows(seq=7, lease="lease-0.1", job=job, device="cpu", chunk=chunk))
        link.say("w", Rows(seq=8, lease="lease-0.2", job="job-9-other", device="cpu", chunk=chunk))
        assert await acks.get() == 6
        go_on.set()
        await resumed
        assert pool.manager.scheduler.state.jobs[job].done.spans() == [(3, 5)]
        assert await acks.get() == 8

    played(tmp_path, play)


def test_a_request_that_takes_long_ends_with_its_client_and_with_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    looked_at = threading.Semaphore(0)

    def resolve(request: JobRequest) -> JobRequest:
        looked_at.release()
        never.wait(60)
        return request

    monkeypatch.setattr(submissions_module.models, "resolve_request", resolve)

    async def play(pool: Pool) -> None:
        leaves, stays, late = Client(), Client(), Client()
        pool.submit(leaves)
        pool.submit(stays, detached=True)
        for _ in range(2):
            await asyncio.to_thread(looked_at.acquire)
        pool.leave(leaves)
        await pool.submissions.stop()
        pool.submit(late)
        assert "the pool ends" in (await late.take(Refused)).message
        assert leaves.told.empty()
        assert not pool.journal.jobs

    played(tmp_path, play)
    never.set()


def test_an_opening_that_nobody_waits_for_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    really = submissions_module.build.open_path_job

    def slowly(request: JobRequest, job_id: str, **more: Any) -> Any:
        begun.set()
        go_on.wait(30)
        return really(request, job_id, **more)

    monkeypatch.setattr(submissions_module.build, "open_path_job", slowly)

    async def play(pool: Pool) -> None:
        leaves, comes = Client(), Client()
        pool.submit(leaves)
        await asyncio.to_thread(begun.wait)
        pool.leave(leaves)
        pool.submit(comes)  # must wait until the output is free again
        go_on.set()
        accepted = await comes.take(Accepted)
        assert list(pool.journal.jobs) == [accepted.job]
        assert leaves.told.empty()

    played(tmp_path, play)
