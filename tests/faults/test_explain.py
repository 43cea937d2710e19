"""`pilotlight explain` after real runs: what it says of a killed worker's rows is what happened to them."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pilotlight import poolfile
from pilotlight.core import events as ev
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


def lose_a_worker(ground: Playground) -> None:
    """A run of one poison row and 1,500 others in which one of two workers is killed."""
    source = ground.rows(1500, sleep_s=0.002, poison=frozenset({1400}))
    running = ground.start("run", source, "-o", ground.folder / "out.jsonl", "--runtime", "echo", "--workers", "2")
    deadline = time.monotonic() + 60
    while len(ground.by_role().get("replica", [])) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # some rows are done, others are leased
    assert ground.kill("worker", random.Random(1))
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 3, said


def test_a_killed_worker_and_its_rows_are_explained(ground: Playground) -> None:
    lose_a_worker(ground)
    titles = {story["title"]: story["lines"] for story in stories(ground)}
    assert {"jobs", "workers", "contexts", "what went wrong"} <= set(titles)
    (job,) = titles["jobs"]
    assert "completed after" in job["text"]
    assert "1,500 rows written" in job["text"]
    assert "error rows: 1 killed_replica" in job["text"]
    (lost,) = [line["text"] for line in titles["workers"] if "; lost after" in line["text"]]
    worker = lost.split(" ", 1)[0]

    told = texts(ground, worker)
    found = re.search(r"was lost \((.*)\): (lease-\S+) \(rows? (\d+)", told)
    assert found, told
    reason, lease, row = found.groups()

    told = texts(ground, "row", row)
    assert "was read from the input" in told
    assert f"was leased to {worker} in {lease}" in told
    assert f"{worker} was lost ({reason}) with {lease}: it went back to the queue" in told
    assert "was leased again to worker-" in told
    assert told.count("\nwas answered by worker-") == 1
    assert f"{worker} was lost ({reason}): row" in texts(ground, lease)
    assert f"{worker} was lost ({reason})" in texts(ground, "job-1")
    assert f"{worker} was lost ({reason}), and with it the replica on cpu" in texts(ground, "echo")

    told = texts(ground, "job-1:1400")
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
