"""Devices of different speed end together, and little is done twice for it."""

from __future__ import annotations

import pytest

from pilotlight.core import decisions as do
from pilotlight.core.policy import sizing
from tests.core.virtual import Virtual


def rows_done(world: Virtual) -> int:
    return sum(machine.rows_done for machine in world.machines.values())


@pytest.mark.parametrize(
    ("rates", "rows"),
    [([40.0, 10.0], 1000), ([40.0, 10.0], 100), ([10.0, 10.0], 400), ([40.0, 40.0, 10.0], 900), ([40.0, 4.0], 440)],
)
@pytest.mark.parametrize("wanted", [1, 4, 16])
def test_fast_and_slow_devices_end_together(rates: list[float], rows: int, wanted: int) -> None:
    world = Virtual()
    for rate in rates:
        world.add_worker(rate, wanted=wanted)
    job = world.submit(rows)
    world.run(world.ended)
    bound_s = 1.0 + rows / sum(rates)
    ends = [machine.last_row_s for machine in world.machines.values()]
    assert world.took_s(job) <= 1.1 * bound_s
    assert max(ends) - min(ends) <= 1.1 / min(rates)
    assert rows_done(world) <= rows + 2 * len(rates)


def test_a_worker_that_slows_down_at_the_end_is_relieved() -> None:
    world = Virtual()
    slow, fast = world.add_worker(20.0, wanted=8), world.add_worker(20.0, wanted=8)
    job = world.submit(400)
    world.run(lambda: world.jobs[job].done > 380)
    for replica in world.machines[slow].replicas.values():
        replica.rate = 0.05
    world.run(world.ended)
    assert world.took_s(job) < 1 + 10 + 5
    assert world.machines[fast].rows_done > 190


def test_a_worker_that_joins_late_takes_its_part_of_what_was_not_started() -> None:
    world = Virtual()
    world.add_worker(10.0, wanted=50)
    job = world.submit(100)
    world.pass_s(2)
    world.add_worker(10.0, wanted=50)
    world.run(world.ended)
    assert world.took_s(job) < 2 + 1 + 8
    assert any(isinstance(decision, do.RevokeRows) for _, decision in world.said)


def test_the_last_rows_go_where_they_end_soonest() -> None:
    fast, slow = (0, 40.0), (0, 10.0)
    assert sizing.last_rows(50, fast, 50.0, 40.0) == 41
    assert sizing.last_rows(50, slow, 50.0, 40.0) == 10
    assert sizing.last_rows(1 + 4, (4, 10.0), 50.0, 40.0) == 0
    assert sizing.last_rows(1 + 4, fast, 50.0, 40.0) > 0
    assert sizing.last_rows(1, (0, 1.0), 3.0, 1.0) == 1
