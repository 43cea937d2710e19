"""kill -9 of manager, worker, replica and whole machines, in random order, during one job: its output stays exact."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from tests.faults.harness import Playground
from tests.net import claims
from tests.net.lan import Host
from tests.net.machines import Machines, machines

ROUNDS = 30
WHAT = ["manager", "manager", "worker", "worker", "replica", "replica", "power", "power", "vanish", "cut", "guardian"]


class Disturber:
    """What befalls the machines of one round, as its seed says."""

    def __init__(self, world: Machines, choice: random.Random) -> None:
        self._world = world
        self._choice = choice
        self._healing: list[tuple[float, Host]] = []

    def strike(self) -> None:
        """One death or cut. A machine comes back with a new worker, a manager by the command that began it."""
        world, what = self._world, self._choice.choice(WHAT)
        host = self._choice.choice(world.net.hosts[1:])
        match what:
            case "manager":
                world.kill("manager", self._choice)
                time.sleep(self._choice.choice([0.0, 0.0, 1.0]))
                world.up()
            case "power" | "vanish":
                if host not in [cut for _, cut in self._healing]:
                    host.crash() if what == "power" else host.vanish()
                    time.sleep(self._choice.uniform(0.0, 0.5))
                    host.heal()
                    host.on()
                    world.worker(host)
            case "cut":
                host.cut()
                self._healing.append((time.monotonic() + self._choice.choice([0.5, 2.0, 5.0]), host))
            case _:
                world.kill(what, self._choice)

    def mend(self, *, everything: bool = False) -> None:
        """Heal links whose time has come, and replace workers that are gone."""
        now = time.monotonic()
        for at_s, host in list(self._healing):
            if everything or now >= at_s:
                host.heal()
                self._healing.remove((at_s, host))
        for host in self._world.net.hosts[1:]:
            if not self._world.processes("worker", [host]):
                self._world.worker(host)


def finish(world: Machines, job: subprocess.Popen[str], command: list[str]) -> None:
    """Wait for the job, by the same command again where its client ended with the manager."""
    for _ in range(4):
        said, _ = job.communicate(timeout=90)
        if job.returncode == 0:
            return
        job = world.start(world.net.hosts[0], *command)
    raise AssertionError(f"{command} does not end well: {said}\n{world.logs()}")


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_deaths(ground: Playground, seed: int) -> None:
    choice = random.Random(seed)
    rows = choice.choice([400, 2000])
    source = claims.write(ground.folder / "claims.jsonl", rows, sleep_s={400: 0.02, 2000: 0.004}[rows])
    out = ground.folder / "out.jsonl"
    with machines(ground, 1 + choice.choice([2, 3])) as world:
        for host in world.net.hosts[1:]:
            world.worker(host)
        command = ["run", str(source), "-o", str(out), "--runtime", "echo", "--pool", str(world.pool)]
        job = world.start(world.net.hosts[0], *command)
        disturber = Disturber(world, choice)
        for _ in range(choice.choice([1, 2, 3])):
            time.sleep(choice.uniform(0.2, 1.5))
            disturber.strike()
            disturber.mend()
        disturber.mend(everything=True)
        finish(world, job, command)
        world.down()
        world.assert_clean()
    claims.assert_exact(source, out)
    assert not (ground.folder / "out.jsonl.pilotlight").exists()
