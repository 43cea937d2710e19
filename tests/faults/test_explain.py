"""`pilotlight explain` after real runs: what it says of a killed worker's rows is what happened to them."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilotlight import poolfile
from pilotlight.core import events as ev
from pilotlight.core.model import Variant
from pilotlight.core.story.ends import with_ends
from pilotlight.core.story.records import Step
from pilotlight.core.story.scene import Scene
from pilotlight.io import eventfile
from pilotlight.manager.eventlog import EventLog
from pilotlight.wire import PoolSpec
from tests.faults.harness import Playground


def stories(ground: Playground, *arguments: str) -> list[dict[str, Any]]:
    """What `explain --json` says."""
    code, said = ground.run("explain", *arguments, "--json")
    assert code == 0, said
    return [json.loads(line) for line in said.splitlines()]


def texts(ground: Playground, *arguments: str) -> str:
    """The one story that there is, as text."""
    (story,) = stories(ground, *arguments)
    return "\n".join([story["title"], *(line["text"] for line in story["lines"])])


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds, for a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.02)


def lose_a_worker(ground: Playground) -> None:
    """A run of one poison row and 4,000 others in which one of two workers, which both have done rows, is killed."""
    source = ground.rows(4000, sleep_s=0.002, poison=frozenset({3900}))
    running = ground.start("run", source, "-o", ground.folder / "out.jsonl", "--runtime", "echo", "--workers", "2")

    def both_wrote() -> bool:
        events = [step.event for step in steps(ground)]
        return len({event.worker_id for event in events if isinstance(event, ev.RowsWritten)} - {""}) == 2

    eventually(both_wrote, "rows of both workers in the log")
    assert ground.kill("worker", random.Random(1))
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 3, said


def steps(ground: Playground) -> list[Step]:
    """What the log of the one run says by now."""
    return [
        record
        for log in ground.folder.glob("home/**/events.jsonl")
        for record in with_ends(eventfile.read(log.parent))
        if isinstance(record, Step)
    ]


def bereaved(ground: Playground, worker: str) -> tuple[str, str, int]:
    """Why a worker was lost, and a lease and a row of it that no other worker had at that moment."""
    scene = Scene()
    for step in steps(ground):
        moment = scene.take(step)
        if isinstance(step.event, ev.WorkerLost) and step.event.worker_id == worker:
            moved = next(moved for moved in moment.moved if moved.freed() and not moved.lease.isolated)
            return step.event.reason, moved.lease.lease_id, next(moved.freed().indices())
    raise AssertionError(f"the log does not say that {worker} was lost")


def test_a_killed_worker_and_its_rows_are_explained(ground: Playground) -> None:
    lose_a_worker(ground)
    titles = {story["title"]: story["lines"] for story in stories(ground)}
    assert {"jobs", "workers", "contexts", "what went wrong"} <= set(titles)
    (job,) = titles["jobs"]
    assert "completed after" in job["text"]
    assert "4,000 rows written" in job["text"]
    assert "error rows: 1 killed_replica" in job["text"]
    (lost,) = [line["text"] for line in titles["workers"] if "; lost after" in line["text"]]
    worker = lost.split(" ", 1)[0]
    reason, lease, row = bereaved(ground, worker)
    assert reason == "killed by SIGKILL"
    assert f"was lost ({reason}): " in texts(ground, worker)

    told = texts(ground, "row", str(row))
    assert "was read from the input" in told
    assert f" to {worker} in {lease}" in told
    assert f"{worker} was lost ({reason}) with {lease}: it went back to the queue" in told
    assert "was leased again to worker-" in told
    assert told.count("\nwas answered by worker-") == 1
    assert f"{worker} was lost ({reason}): row" in texts(ground, lease)
    assert f"{worker} was lost ({reason})" in texts(ground, "job-1")
    assert f"{worker} was lost ({reason}), and with it the replica on cpu" in texts(ground, "echo")

    told = texts(ground, "job-1:3900")
    assert [told.count(f"attempt {n} of 3 charged") for n in (1, 2, 3)] == [1, 1, 1]
    assert "got the error row killed_replica" in told


def test_the_run_of_an_output_is_found_by_its_report(ground: Playground) -> None:
    lose_a_worker(ground)
    output = ground.folder / "out.jsonl"
    log_dir = json.loads((ground.folder / "out.jsonl.report.json").read_text())["log_dir"]
    assert stories(ground, "-o", str(output)) == stories(ground, "--run", log_dir)


def leave_a_log(folder: Path) -> None:
    """What a run leaves in which one worker joined and nothing else happened."""
    folder.mkdir(parents=True)
    log = EventLog(folder, epoch=1, pool="mine")
    log.record(ev.WorkerJoined("worker-1", 1, "here", ()), (), time.monotonic())
    log.close()


def test_a_lasting_pool_goes_by_its_name(ground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(ground.folder / "state"))
    ground.environment["PILOTLIGHT_STATE_DIR"] = str(ground.folder / "state")
    leave_a_log(ground.folder / "logs")
    pool = poolfile.pool_folder("mine")
    pool.mkdir(parents=True)
    poolfile.write_spec(pool, PoolSpec(workers=1, log_dir=str(ground.folder / "logs"), name="mine", lasting=True))
    assert "joined from here" in texts(ground, "worker-1", "--pool", "mine")
    code, told = ground.run("explain", "--pool", "mine")
    assert code == 0
    assert told.startswith("pool mine, run of ")


def test_what_ran_last_may_be_a_lasting_pool(ground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(ground.folder / "state"))
    ground.environment["PILOTLIGHT_STATE_DIR"] = str(ground.folder / "state")
    ground.environment["PILOTLIGHT_LOG_DIR"] = str(ground.folder / "logs")
    command, earlier, later = (
        ground.folder / "logs" / "20260101-000000-1-x",
        poolfile.pool_folder("mine") / "logs" / "20260101-000000-1-x",
        poolfile.pool_folder("mine") / "logs" / "20260102-000000-1-x",
    )
    for at_s, folder in enumerate((earlier, later, command), 1_000_000):
        leave_a_log(folder)
        os.utime(folder / eventfile.NAME, (at_s, at_s))
    assert {story["log"] for story in stories(ground)} == {str(command)}
    os.utime(later / eventfile.NAME, (2_000_000, 2_000_000))
    assert {story["log"] for story in stories(ground)} == {str(later)}
    code, told = ground.run("explain")
    assert code == 0
    assert told.startswith("pool mine, run of ")


def test_a_row_of_an_output_is_one_of_its_job(ground: Playground) -> None:
    folder, output = ground.folder / "logs", ground.folder / "out.jsonl"
    folder.mkdir()
    log = EventLog(folder, epoch=1)
    for job_id in ("job-1-a", "job-2-b"):
        log.record(ev.JobSubmitted(job_id, "out.jsonl", Variant("v", "v")), (), time.monotonic())
        log.record(ev.RowsRead(job_id, 0, 9, exhausted=True), (), time.monotonic())
    log.close()
    Path(f"{output}.report.json").write_text(json.dumps({"job": "job-2-b", "log_dir": str(folder)}))
    assert len(stories(ground, "row", "3", "--run", str(folder))) == 2
    assert texts(ground, "row", "3", "-o", str(output)).startswith("row 3 of job-2-b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wroker-1"], "is called 'wroker-1'; near it are worker-1"),
        (["lamp"], "is called 'lamp'; `pilotlight explain` alone lists what there is"),
        (["--run", "/nowhere"], "/nowhere has no event log"),
        (["--run", "/nowhere", "-o", "x"], "give one of them"),
        (["--pool", "nobodys"], "no pool nobodys is known on this machine"),
        (["-o", "nothing.jsonl"], "nothing.jsonl has no report beside it"),
    ],
)
def test_what_is_not_there_is_one_sentence(ground: Playground, arguments: list[str], said: str) -> None:
    leave_a_log(ground.folder / "logs" / "20260101-000000-1-x")
    ground.environment["PILOTLIGHT_LOG_DIR"] = str(ground.folder / "logs")
    code, told = ground.run("explain", *arguments)
    assert code == 2
    assert said in told
    assert len(told.splitlines()) == 1


def test_without_any_run_it_says_where_it_looked(ground: Playground) -> None:
    code, told = ground.run("explain")
    assert code == 2
    assert "no run has left an event log in" in told
