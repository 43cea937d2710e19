"""A pool that outlives its commands: jobs without clients, followers, crashes of the manager, pins, its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilotlight.messages import (
    Accepted,
    Ask,
    Attach,
    Cancel,
    ContextsAnswer,
    Done,
    Evict,
    JobEnded,
    JobsAnswer,
    Pin,
    Refused,
    Shutdown,
    Snapshot,
    Submit,
)
from pilotlight.poolfile import is_up
from pilotlight.views import ContextView
from pilotlight.wire import Context, JobRequest, Operation, StreamInput, StreamOutput
from tests.faults.dialled import ENGINES, pool_over
from tests.faults.harness import Playground
from tests.faults.lasting import ECHO, Client, LastingPool, lasting_pool, request


def assert_exact(source: Path, out: Path) -> None:
    """Line n of the output answers line n of the input."""
    rows, lines = source.read_text().splitlines(), out.read_text().splitlines()
    assert len(lines) == len(rows)
    for index, (line, row) in enumerate(zip(lines, rows, strict=True)):
        assert line == f'{{"index":{index},"result":{row.replace(": ", ":").replace(", ", ",")}}}'


def live(snapshot: Snapshot) -> dict[int, str]:
    """Live replicas: pid -> worker."""
    return {
        replica.pid: worker.worker
        for worker in snapshot.workers
        for replica in worker.replicas
        if replica.state == "live"
    }


def done_rows(snapshot: Snapshot) -> int:
    return sum(job.rows_done for job in snapshot.jobs)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detached_job_survives_its_client(ground: Playground, engine: str) -> None:
    source, out = ground.rows(400, sleep_s=0.005), ground.folder / "out.jsonl"
    with pool_over(engine, ground) as pool:
        with pool.client() as first:
            job = first.submit(request(source, out), detached=True).job
        with pool.client() as second:
            second.send(Attach(ticket=7, job=str(out)))
            ended = second.end_of(job)
            assert (ended.outcome, ended.view.detached) == ("completed", True)
            second.send(Ask(ticket=8, what="jobs"))
            (view,) = second.take(JobsAnswer).jobs
            assert (view.job, view.state, view.rows_done, view.output) == (job, "completed", 400, str(out))
        assert_exact(source, out)
    ground.assert_clean()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_job_ends_with_the_last_client_that_holds_it(ground: Playground, engine: str) -> None:
    source, out = ground.rows(100_000, sleep_s=0.005), ground.folder / "out.jsonl"
    with pool_over(engine, ground, workers=1) as pool, pool.client() as watcher:
        first, second = pool.client(), pool.client()
        job = first.submit(request(source, out)).job
        assert second.submit(request(source, out)).job == job  # an equal request joins it
        watcher.send(Attach(ticket=1, job=job))
        first.close()
        watcher.seen(lambda snapshot: done_rows(snapshot) > 10)
        second.close()
        assert watcher.end_of(job).outcome == "cancelled"
        assert Path(f"{out}.pilotlight").exists()


def test_another_request_for_an_output_that_is_written_is_refused(ground: Playground) -> None:
    source, out = ground.rows(100_000, sleep_s=0.005), ground.folder / "out.jsonl"
    other = ground.rows(5, name="other.jsonl")
    with lasting_pool(ground, workers=1) as pool, pool.client() as client:
        job = client.submit(request(source, out)).job
        client.send(Submit(ticket=2, request=request(other, out)))
        refused = client.take(Refused)
        assert refused.kind == "output_busy"
        assert job in refused.message
        assert "input" in refused.message
        client.send(Cancel(job=job, ticket=3))
        assert job in client.take(Done).text
        assert client.end_of(job).outcome == "cancelled"
        client.send(Cancel(job=job, ticket=4))
        assert "runs no more" in client.take(Refused).message


def test_equal_requests_at_once_are_one_job(ground: Playground) -> None:
    source, out = ground.rows(300, sleep_s=0.004), ground.folder / "out.jsonl"
    link = ground.folder / "link.jsonl"
    link.symlink_to(out)
    with lasting_pool(ground) as pool, pool.client() as first, pool.client() as second:
        for client, path in ((first, out), (second, link)):
            client.send(Submit(ticket=1, request=request(source, path)))
        job = first.take(Accepted).job
        assert second.take(Accepted).job == job
        assert {first.end_of(job).outcome, second.end_of(job).outcome} == {"completed"}
        assert_exact(source, out)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_command_right_after_a_cancel_goes_on(ground: Playground, engine: str) -> None:
    source, out = ground.rows(1000, sleep_s=0.003), ground.folder / "out.jsonl"
    with pool_over(engine, ground) as pool, pool.client() as client:
        job = client.submit(request(source, out)).job
        client.seen(lambda seen: done_rows(seen) > 20)
        client.send(Cancel(job=job))
        client.send(Submit(ticket=2, request=request(source, out)))
        again = client.take(Accepted)
        assert again.job != job
        assert again.rows_done > 0
        assert client.end_of(again.job).outcome == "completed"
        assert_exact(source, out)


def test_clients_that_vanish_while_they_submit_leave_nothing_behind(ground: Playground) -> None:
    source, out = ground.rows(20_000, sleep_s=0.003), ground.folder / "out.jsonl"
    with lasting_pool(ground, workers=1) as pool:
        for _ in range(20):
            client = pool.client()
            client.send(Submit(ticket=1, request=request(source, out)))
            client.close()
        with pool.client() as client:
            other = ground.rows(100, name="other.jsonl")
            job = client.submit(request(other, ground.folder / "other.out")).job
            assert client.end_of(job).outcome == "completed"
            client.seen(lambda seen: not seen.jobs)
            assert not list((pool.folder / "jobs").iterdir())


def test_a_job_that_the_pool_cant_remember_is_refused(ground: Playground) -> None:
    source, out = ground.rows(200), ground.folder / "out.jsonl"
    with lasting_pool(ground, workers=1) as pool, pool.client() as client:
        (pool.folder / "jobs").rmdir()
        (pool.folder / "jobs").write_text("in the way")
        client.send(Submit(ticket=1, request=request(source, out), detached=True))
        refused = client.take(Refused)
        assert refused.kind == "output"
        assert "the pool can't keep" in refused.message
        (pool.folder / "jobs").unlink()
        (pool.folder / "jobs").mkdir()
        assert client.end_of(client.submit(request(source, out), detached=True).job).outcome == "completed"
        assert_exact(source, out)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_crash_after_a_jobs_end_repeats_nothing(ground: Playground, overwrite: bool) -> None:
    source, out = ground.rows(500, sleep_s=0.002), ground.folder / "out.jsonl"
    job_request = request(source, out, overwrite=overwrite)
    with lasting_pool(ground, workers=1) as pool:
        with pool.client() as client:
            job = client.submit(job_request, detached=True).job
            kept = (pool.folder / "jobs" / f"{job}.json").read_bytes()
            assert client.end_of(job).outcome == "completed"
            stamp = out.stat().st_mtime_ns
        pool.kill()
        (pool.folder / "jobs" / f"{job}.json").write_bytes(kept)  # as if it had died before it took the file away
        (pool.folder / "history.jsonl").unlink()
        pool.up()
        with pool.client() as client:
            client.send(Attach(ticket=1, job=job))
            answer = client.answer()
            if isinstance(answer, Refused):
                assert "completed" in answer.message
            else:  # it was closing the files that it had found complete
                assert client.end_of(job).outcome == "completed"
        assert out.stat().st_mtime_ns == stamp
        assert_exact(source, out)


def test_a_stream_job_cant_be_detached(ground: Playground) -> None:
    stream = JobRequest(context=ECHO, operation=Operation(kind="echo"), input=StreamInput(), output=StreamOutput())
    with lasting_pool(ground, workers=1) as pool, pool.client() as client:
        client.send(Submit(ticket=1, request=stream, detached=True))
        assert "detached" in client.take(Refused).message


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_manager_finds_jobs_and_warm_workers(ground: Playground, engine: str) -> None:
    source, out = ground.rows(3000, sleep_s=0.004), ground.folder / "out.jsonl"
    slow = Context(runtime="echo", name="slow", identity="slow", options={"load_s": 0.5})
    with pool_over(engine, ground) as pool:
        with pool.client() as client:
            job = client.submit(request(source, out, context=slow), detached=True).job
            before = live(client.seen(lambda seen: len(live(seen)) == 2 and done_rows(seen) > 50))
            pool.kill()
        pool.up()
        with pool.client() as client:
            assert client.greeting.epoch == 2
            client.send(Attach(ticket=1, job=job))
            after = live(client.seen(lambda seen: len(live(seen)) == 2))
            assert after == before  # the same replicas on the same workers
            ended = client.end_of(job)
            assert (ended.job, ended.outcome, ended.view.rows_done) == (job, "completed", 3000)
            assert ended.totals.loads == {}  # nothing was loaded again
            assert ended.view.rows_resumed > 0
            again = client.submit(request(source, out, context=slow))
            assert again.complete
            assert int(again.job.split("-")[1]) > int(job.split("-")[1])
        assert_exact(source, out)
    of_second = (pool.logs / "events.jsonl").read_text().split('"epoch":2')[-1]
    assert '"lease_id":"lease-1.' in of_second  # what was finished without a manager was taken


def test_workers_that_ended_with_the_manager_are_replaced_under_new_names(ground: Playground) -> None:
    source, out = ground.rows(1000, sleep_s=0.004), ground.folder / "out.jsonl"
    with lasting_pool(ground) as pool:
        with pool.client() as client:
            job = client.submit(request(source, out), detached=True).job
            client.seen(lambda seen: done_rows(seen) > 20)
        pool.kill()
        for pid in ground.by_role()["worker"]:
            os.kill(pid, signal.SIGKILL)
        pool.up()
        with pool.client() as client:
            client.send(Attach(ticket=1, job=job))
            names = {w.worker for w in client.seen(lambda seen: len(seen.workers) == 2).workers}
            assert names == {"worker-2-1", "worker-2-2"}
            assert client.end_of(job).outcome == "completed"
        assert_exact(source, out)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_job_waits_for_its_client(ground: Playground, engine: str) -> None:
    source, out = ground.rows(1500, sleep_s=0.004), ground.folder / "out.jsonl"
    with pool_over(engine, ground) as pool:
        with pool.client() as client:
            job = client.submit(request(source, out)).job
            client.seen(lambda seen: done_rows(seen) > 20)
            pool.kill()
        pool.up()
        with pool.client() as client:
            again = client.submit(request(source, out))
            assert again.job == job
            assert client.end_of(job).outcome == "completed"
        assert_exact(source, out)


def test_a_job_that_cant_be_taken_up_is_told_in_the_history(ground: Playground) -> None:
    source, out = ground.rows(100_000, sleep_s=0.004), ground.folder / "out.jsonl"
    with lasting_pool(ground, workers=1) as pool:
        with pool.client() as client:
            job = client.submit(request(source, out), detached=True).job
            client.seen(lambda seen: done_rows(seen) > 20)
        pool.kill()
        source.unlink()
        (pool.folder / "jobs" / "job-9-torn.json").write_text('{"job": "job-')
        (pool.folder / "history.jsonl").write_text("no line of ours\n")
        pool.up()
        with pool.client() as client:
            client.send(Attach(ticket=1, job=job))
            assert "failed" in client.take(Refused).message
            client.send(Ask(ticket=2, what="jobs"))
            (view,) = client.take(JobsAnswer).jobs
            assert (view.job, view.state) == (job, "failed")
            assert source.name in view.message
        log = (pool.logs / "manager.log").read_text()
        assert "job-9-torn.json can't be read and is passed over" in log
        assert "1 lines can't be read" in log


def contexts(client: Client) -> dict[str, ContextView]:
    client.send(Ask(ticket=99, what="contexts"))
    return {view.name: view for view in client.take(ContextsAnswer).contexts}


@pytest.mark.parametrize("engine", ENGINES)
def test_pins_outlive_the_manager_and_evictions_free_what_no_job_needs(ground: Playground, engine: str) -> None:
    with pool_over(engine, ground, workers=1, keep_alive_s=0.0) as pool:
        with pool.client() as client:
            client.send(Evict(ticket=1, context="nothing"))
            assert "there is none" in client.take(Refused).message
            client.send(Pin(ticket=2, context=ECHO))
            assert "is pinned" in client.take(Done).text
            client.seen(lambda seen: len(live(seen)) == 1)
            pool.kill()
        pool.up()
        with pool.client() as client:
            client.seen(lambda seen: len(live(seen)) == 1)
            view = contexts(client)["echo"]
            assert view.pinned
            assert [residence.level for residence in view.residences] == ["live"]
            client.send(Evict(ticket=3, context="missing"))
            assert f"echo ({ECHO.id})" in client.take(Refused).message
            client.send(Evict(ticket=4, context="echo"))
            client.take(Done)
            client.seen(lambda seen: len(seen.workers) == 1 and not seen.workers[0].replicas)
            assert not contexts(client)["echo"].pinned


def test_a_context_in_use_is_not_evicted(ground: Playground) -> None:
    source, out = ground.rows(100_000, sleep_s=0.005), ground.folder / "out.jsonl"
    with lasting_pool(ground, workers=1) as pool, pool.client() as client:
        job = client.submit(request(source, out)).job
        client.send(Evict(ticket=2, context=ECHO.id))
        assert job in client.take(Refused).message


def test_down_ends_everything_and_keeps_the_history(ground: Playground) -> None:
    source, out = ground.rows(100_000, sleep_s=0.005), ground.folder / "out.jsonl"
    pool = LastingPool(ground, workers=1)
    pool.up()
    with pool.client() as client, pool.client() as other:
        job = client.submit(request(source, out), detached=True).job
        other.send(Attach(ticket=1, job=job))
        client.seen(lambda seen: done_rows(seen) > 10)
        client.send(Shutdown())
        assert other.take(JobEnded).outcome == "cancelled"
        with pytest.raises(ConnectionError):
            other.take(Done)
    assert pool.down() == 0
    assert not is_up(pool.folder)
    left = {path.name for path in pool.folder.iterdir()}
    assert left == {"pool.json", "ended", "epoch", "numbers", "jobs", "history.jsonl", "pilots.json", "manager.lock"}
    ground.assert_clean()
    pool.up()
    with pool.client() as client:
        client.send(Ask(ticket=1, what="jobs"))
        assert [(view.job, view.state) for view in client.take(JobsAnswer).jobs] == [(job, "cancelled")]
    pool.down()


@pytest.mark.parametrize("detached", [False, True])
def test_a_manager_that_the_system_ends_leaves_its_jobs_to_the_next(ground: Playground, detached: bool) -> None:
    source, out = ground.rows(2000, sleep_s=0.002), ground.folder / "out.jsonl"
    pool = LastingPool(ground, workers=1)
    pool.up()
    with pool.client() as client:
        job = client.submit(request(source, out), detached=detached).job
        client.seen(lambda seen: done_rows(seen) > 50)
        pool.send(signal.SIGTERM)
        ended = client.end_of(job)
        assert (ended.outcome, ended.exit_code) == ("suspended", 1)
        assert "goes on when the pool is up again (pilotlight up --pool test)" in ended.message
    assert pool.down() == 0
    ground.assert_clean()
    pool.up()
    with pool.client() as client:
        again = client.submit(request(source, out))  # as the same command does
        assert (again.job, again.joined) == (job, True)
        assert again.rows_done > 50
        assert client.end_of(job).outcome == "completed"
    assert_exact(source, out)
    pool.down()


def test_a_second_manager_is_refused(ground: Playground) -> None:
    with lasting_pool(ground, workers=1) as pool:
        command = [sys.executable, "-P", "-m", "pilotlight.manager", str(pool.folder)]
        second = subprocess.run(command, env=ground.environment, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert "another manager serves the pool" in second.stderr
        with pool.client() as client:
            assert client.greeting.pool == "test"


def test_a_hangup_of_its_terminal_is_nothing_to_it(ground: Playground) -> None:
    with lasting_pool(ground, workers=1) as pool:
        assert pool.manager is not None
        os.kill(pool.manager.pid, signal.SIGHUP)
        with pool.client() as client:
            assert client.greeting.lasting


def test_a_pool_whose_folder_is_removed_ends(ground: Playground) -> None:
    with lasting_pool(ground, workers=1) as pool:
        shutil.rmtree(pool.folder, ignore_errors=True)
        assert pool.manager is not None
        assert pool.manager.wait(30) == 0
        ground.assert_clean()
