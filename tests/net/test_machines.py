"""A pool over several machines: one port, cuts that heal, machines that come and go, a manager that moves."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.faults.harness import Playground
from tests.net import claims
from tests.net.machines import Machines, machines


def workers(world: Machines) -> list[dict[str, object]]:
    """What `pilotlight workers` says."""
    code, said = world.run(world.net.hosts[0], "workers", "--pool", world.pool, "--json")
    assert code == 0, said
    return [json.loads(line) for line in said.splitlines()]


def joined(world: Machines) -> set[str]:
    """Names of the workers that are there."""
    return {str(worker["worker"]) for worker in workers(world)}


def a_job(world: Machines, rows: int, sleep_s: float) -> tuple[subprocess.Popen[str], Path, Path]:
    """Start a job of echo; its process, its input and its output."""
    source = claims.write(world.ground.folder / "claims.jsonl", rows, sleep_s=sleep_s)
    out = world.ground.folder / "out.jsonl"
    job = world.start(world.net.hosts[0], "run", source, "-o", out, "--runtime", "echo", "--pool", world.pool)
    return job, source, out


def test_one_port_is_all_that_a_worker_needs(ground: Playground) -> None:
    with machines(ground, 2) as world:
        manager, host = world.net.hosts
        host.admit_nothing(dial=(manager.address, world.port))
        world.worker(host)
        job, source, out = a_job(world, 300, 0.001)
        said, _ = job.communicate(timeout=60)
        assert job.returncode == 0, said
        claims.assert_exact(source, out)
        assert manager.listening() == {(manager.address, world.port)}
        world.down()
        world.assert_clean()


def test_a_cut_that_heals_costs_no_load(ground: Playground) -> None:
    with machines(ground, 3) as world:
        _, one, two = world.net.hosts
        world.worker(one, "one")
        world.worker(two, "two")
        job, source, out = a_job(world, 3000, 0.004)
        world.until(lambda: len(world.processes("replica")) == 2, "two replicas load")
        before = set(world.processes("replica"))
        one.cut()
        world.until(lambda: "one" not in joined(world), "the manager misses a worker")
        one.heal()
        world.until(lambda: "one" in joined(world), "a worker comes back")
        said, _ = job.communicate(timeout=60)
        assert job.returncode == 0, said
        assert set(world.processes("replica")) == before
        claims.assert_exact(source, out)


def test_workers_come_and_go_while_a_job_runs(ground: Playground) -> None:
    with machines(ground, 4) as world:
        job, source, out = a_job(world, 4000, 0.004)
        hosts = world.net.hosts[1:]
        for turn in range(6):
            host = hosts[turn % len(hosts)]
            if turn >= len(hosts):
                host.crash()
                host.on()
            for _ in range(2):
                world.worker(host)
            time.sleep(0.7)
        said, _ = job.communicate(timeout=90)
        assert job.returncode == 0, said
        claims.assert_exact(source, out)
        world.down()
        world.assert_clean()


def test_a_manager_moves_to_another_machine(ground: Playground) -> None:
    with machines(ground, 3) as world:
        first, second, host = world.net.hosts
        world.worker(host, "one")
        job, source, out = a_job(world, 2000, 0.005)
        world.until(lambda: world.processes("replica"), "a replica loads")
        time.sleep(1.0)
        replicas = set(world.processes("replica"))
        first.vanish()
        job.wait(10)
        world.up(second)
        said = world.start(second, "run", source, "-o", out, "--runtime", "echo", "--pool", world.pool)
        told, _ = said.communicate(timeout=60)
        assert said.returncode == 0, told
        assert set(world.processes("replica")) == replicas, world.logs()
        claims.assert_exact(source, out)


def test_a_slow_link_is_no_lost_worker(ground: Playground) -> None:
    with machines(ground, 2) as world:
        _, host = world.net.hosts
        host.limit("2mbit")
        worker = world.worker(host, "slow")
        job, source, out = a_job(world, 6000, 0.0005)
        said, _ = job.communicate(timeout=120)
        assert job.returncode == 0, said
        claims.assert_exact(source, out)
        assert "was lost" not in said, said
        assert worker.poll() is None
