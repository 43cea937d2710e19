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
from pilotlight.messages import Accepted, Attach, Cancel, Done, JobEnded, Refused, Submit
from pilotlight.wire import JobRequest, Operation, PathInput, PathOutput, PoolSpec
from tests.manager.test_loop import CONTEXT, Link, NoPilots, quiet

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
def test_who_attaches_to_a_resumed_job_in_time_holds_it(tmp_path: Path, detached: bool) -> None:
    job = remembered(tmp_path, detached=detached)

    async def play(pool: Pool) -> None:
        await pool.submissions.resume()
        client, watcher = Client(), Client()
        pool.attach(client, job)
        assert (await client.take(Accepted)).job == job
        pool.attach(watcher, str(tmp_path / "out.jsonl"))
        await watcher.take(Accepted)
        pool.leave(client)
        if detached:
            pool.submissions.cancel(_connection(watcher), Cancel(job=job, ticket=3))
            await watcher.take(Done)
        assert (await watcher.take(JobEnded)).outcome == "cancelled"

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
