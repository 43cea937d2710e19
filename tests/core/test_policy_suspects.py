"""A row that ended its replica runs next on another device, of the same worker where that is the only one."""

from __future__ import annotations

from tests.core.world import World


def places_of(world: World, index: int) -> list[str]:
    """Where a poison row died, in order."""
    places: list[str] = []
    for _ in range(4000):
        if world.jobs["job-1"].ended:
            return places
        for name in list(world.workers):
            while world.workers[name].up or world.workers[name].down:
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica_id in list(world.workers[name].replicas):
                if replica_id in world.workers[name].replicas:
                    world.work(name, replica_id)
        job = world.scheduler.state.jobs.get("job-1")
        if job is not None and index in job.died_on:
            places = ["/".join(place) for place in job.died_on[index]]
        world.tick(0.1)
        world.check()
    raise AssertionError("the job did not end")


def test_a_suspect_runs_on_the_other_device_of_its_worker() -> None:
    world = World(devices=2)
    world.add_worker()
    world.submit(40, poison=frozenset({7}))
    alone = places_of(world, 7)[-3:]
    assert len(alone) == 3
    assert alone[0] != alone[1] != alone[2]
    world.check_outputs()


def test_a_suspect_runs_on_the_other_worker() -> None:
    world = World()
    for _ in range(2):
        world.add_worker()
    world.submit(40, poison=frozenset({7}))
    alone = places_of(world, 7)[-3:]
    assert alone[0] != alone[1] != alone[2]
    world.check_outputs()
