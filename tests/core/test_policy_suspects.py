"""A row that ended its replica runs next on another device, of the same worker where that is the only one."""

from __future__ import annotations

import pytest

from tests.core.world import World


def places(world: World) -> dict[int, list[str]]:
    """Where the poison rows of the one job died, in order, the last two times that could be seen: alone."""
    seen: dict[int, list[str]] = {}
    for _ in range(4000):
        if world.jobs["job-1"].ended:
            return {index: where[-2:] for index, where in seen.items() if index in world.jobs["job-1"].poison}
        for name in list(world.workers):
            while world.workers[name].up or world.workers[name].down:
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica_id in list(world.workers[name].replicas):
                if replica_id in world.workers[name].replicas:
                    world.work(name, replica_id)
        for job in world.scheduler.state.jobs.values():
            seen.update({index: ["/".join(place) for place in where] for index, where in job.died_on.items()})
        world.tick(0.1)
        world.check()
    raise AssertionError("the job did not end")


@pytest.mark.parametrize(("workers", "devices"), [(1, 2), (2, 1)])
def test_a_suspect_runs_on_another_device_than_it_died_on(workers: int, devices: int) -> None:
    for first in range(20):
        world = World(devices=devices)
        for _ in range(workers):
            world.add_worker()
        world.submit(40, poison=frozenset({first, first + 7, 39}))
        for index, (one, two) in places(world).items():
            assert one != two, f"row {index} died on {one} and, alone, there again"
        world.check_outputs()


def test_a_row_too_large_for_all_devices_does_not_wait_for_any_of_them() -> None:
    world = World()
    for _ in range(3):
        world.add_worker("small", 12)
    job = world.submit(12)
    world.outgrows = {7: 12}
    world.settle()
    assert world.jobs[job].output[7] == "out_of_memory"
    assert [answer for answer in world.jobs[job].output.values() if answer != "result"] == ["out_of_memory"]
