"""kill -9 of any process of a lasting pool at any moment, the manager above all: every job still ends exact."""

from __future__ import annotations

import random
import time

import pytest

from pilotlight.messages import Accepted, Ask, Attach, JobsAnswer
from pilotlight.views import JobView
from tests.faults.harness import Playground
from tests.faults.lasting import Client, LastingPool, lasting_pool, request
from tests.faults.test_lasting import assert_exact

ROUNDS = 12
ROLES = ["manager", "manager", "manager", "worker", "replica", "server", "guardian"]
JOBS = 3


def disturb(pool: LastingPool, choice: random.Random) -> None:
    """Kill something; a manager gets a successor, as the next command would see to it."""
    role = choice.choice(ROLES)
    if role == "manager":
        pool.kill()
        time.sleep(choice.choice([0.0, 0.0, 0.5]))
        pool.up()
    else:
        pool.ground.kill(role, choice)


def views(client: Client) -> list[JobView]:
    """Running jobs and those that ended."""
    client.send(Ask(ticket=99, what="jobs"))
    return client.take(JobsAnswer).jobs


def await_end(client: Client, job: str) -> None:
    """Follow a job to its end, if it is not over already."""
    client.send(Attach(ticket=1, job=job))
    if isinstance(client.answer(), Accepted):
        client.end_of(job)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_kills(ground: Playground, seed: int) -> None:
    choice = random.Random(seed)
    sources = [ground.rows(choice.choice([200, 1500]), name=f"in-{n}.jsonl", sleep_s=0.002) for n in range(JOBS)]
    outs = [ground.folder / f"out-{n}.jsonl" for n in range(JOBS)]
    with lasting_pool(ground, workers=choice.choice([1, 2, 3])) as pool:
        with pool.client() as client:
            jobs = [
                client.submit(request(source, out), detached=True).job
                for source, out in zip(sources, outs, strict=True)
            ]
        for _ in range(choice.choice([1, 2, 3])):
            time.sleep(choice.uniform(0.0, 0.8))
            disturb(pool, choice)
        with pool.client() as client:
            for job in jobs:
                await_end(client, job)
            ended = {view.job: view.state for view in views(client)}
        assert ended == dict.fromkeys(jobs, "completed"), ground.logs()
    for source, out in zip(sources, outs, strict=True):
        assert_exact(source, out)
    ground.assert_clean()
