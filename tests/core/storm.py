"""A seeded storm over the machines: random submissions, deliveries, work and faults; then calm, and every job must end.

`python -m tests.core.storm SEED` replays one and tells its story; the tests run a fixed number of seeds.
"""

from __future__ import annotations

import random
import sys

from pilotlight.core.allocation import Options
from pilotlight.core.planning import Pace
from pilotlight.core.transitions import JobState
from tests.core.world import World

STEPS = 150
PACES = (Pace(), Pace(few_devices=0, changed_s_per_device=0.01, contended_s_per_device=0.1, round_s=2.0))
"""A small pool plans at once; the second one goes the ways of a large pool."""
_USUAL = ["deliver", "work", "tick", "copy", "submit", "join", "pin", "evict"]
_FAULTS = ["kill worker", "kill replica", "cut", "drain", "restart", "fail copy", "lose answer", "old answer"]


def storm(seed: int) -> World:
    """Run one seed. Raises AssertionError where an invariant breaks or a job does not end as it should."""
    choice = random.Random(seed)
    hedge_after_s = choice.choice([0.5, 2.0, 50.0])
    world = World(
        Options(hedge_after_s=hedge_after_s, keep_alive_s=choice.choice([0.0, 5.0, -1.0]), pace=PACES[seed % 2]),
        choice.choice([1, 1, 2]),
    )
    world.with_files = set(choice.choice(["", "v", "vw"]))
    world.sleepers = set(choice.choice(["", "v", "vw"]))
    for _ in range(choice.randint(1, 3)):
        _join(world, choice)
    calm = choice.choice([0.0, 0.5, 0.9])
    """How likely a fault is left out."""
    for _ in range(STEPS):
        _step(world, choice, calm)
        world.check()
    if not world.workers:
        world.add_worker()
    world.add_worker()
    world.settle()
    for job_id, job in world.jobs.items():
        if job.ended is JobState.FAILED and len(job.poison | job.hangs) == job.rows:
            continue  # nothing but poison, and no device that ever had a result: nobody can tell which is to blame
        if job.ended is JobState.FAILED and _was_too_large(world, job_id):
            continue  # only small workers were there
        assert job.ended is JobState.COMPLETED, f"{job_id} {job.ended}: {world.notes[-10:]}"
        assert sorted(job.output) == list(range(job.rows))
        errors = {index for index, answer in job.output.items() if answer != "result"}
        bad = job.poison | job.hangs
        assert bad <= errors, f"{job_id}: poison {bad - errors} was answered"
    return world


def _was_too_large(world: World, job_id: str) -> bool:
    return any(note.startswith(f"{job_id} failed") and "small has" in note for note in world.notes)


def _step(world: World, choice: random.Random, calm: float) -> None:
    what = choice.choices(
        [*_USUAL, *_FAULTS],
        [40, 40, 10, 10, 3, 2, 1, 1, *[1, 2, 2, 1, 1, 2, 1, 1]],
    )[0]
    if what in _FAULTS and choice.random() < calm:
        return
    if what == "submit":
        if len(world.jobs) < 5:
            rows = choice.choice([0, 1, 5, 30, 100])
            poison = frozenset(choice.sample(range(rows), min(rows, choice.choice([0, 0, 1, 2]))))
            hangs = frozenset(choice.sample(range(rows), min(rows, choice.choice([0, 0, 0, 1]))))
            world.submit(rows, choice.choice(["v", "v", "w"]), poison, hangs, weight=choice.choice([1.0, 1.0, 4.0]))
        return
    if what == "join":
        if len(world.workers) < 5:
            _join(world, choice)
        return
    if what == "pin":
        world.pin(choice.choice("vw"), on=choice.random() < 0.5)
        return
    if what == "evict":
        world.evict(choice.choice("vw"))
        return
    if what == "restart":
        world.restart_manager()
        return
    if what == "tick":
        world.tick(choice.choice([0.01, 0.25, 2.0]))
        return
    if world.workers:
        _at_worker(world, choice, what, choice.choice(sorted(world.workers)))


def _join(world: World, choice: random.Random) -> None:
    """A worker of some kind; the small ones can hold nothing."""
    kind = choice.choice(["kind", "kind", "host", "small"])
    world.add_worker(
        kind,
        8 if kind == "small" else choice.choice([15, 22]),
        choice.choice([0, 12, 25]),
        host=choice.choice(["host", "other", "third"]),
        serves=choice.random() < 0.7,
    )


def _at_worker(world: World, choice: random.Random, what: str, name: str) -> None:
    """Something happens to a worker or to one of its replicas."""
    worker = world.workers[name]
    replica_id = choice.choice(sorted(worker.replicas)) if worker.replicas else ""
    if what == "deliver":
        direction = choice.choice(["up", "down"])
        for _ in range(choice.randint(1, 8)):
            if name in world.workers:
                world.deliver(name, direction)
    elif what == "work":
        for _ in range(choice.randint(1, 6)):
            if name in world.workers and replica_id in world.workers[name].replicas:
                world.work(name, replica_id)
    elif what == "copy":
        world.copy(name)
    elif what == "fail copy":
        world.copy(name, ok=False)
    elif what == "lose answer":
        world.lose_answers(name)
    elif what == "old answer":
        world.old_answer(name, choice.choice("vw"))
    elif what == "kill replica" and replica_id:
        world.kill_replica(name, replica_id)
    elif what == "kill worker":
        world.kill_worker(name)
    elif what == "cut":
        world.cut(name)
    elif what == "drain":
        world.drain(name)


def main() -> None:
    """Replay the seeds given, or look for one that fails."""
    for seed in map(int, sys.argv[1:]) if sys.argv[1:] else range(100_000):
        try:
            storm(seed)
        except AssertionError:
            sys.stderr.write(f"seed {seed}\n")
            raise


if __name__ == "__main__":
    main()
