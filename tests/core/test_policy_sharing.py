"""Jobs on one context: a small one beside a huge one ends within seconds, weights count, and nothing thrashes."""

from __future__ import annotations

import pytest

from pilotlight.core import decisions as do
from tests.core.virtual import Virtual


def revokes(world: Virtual) -> int:
    return sum(isinstance(decision, do.RevokeRows) for _, decision in world.said)


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize(("rate", "wanted"), [(100.0, 16), (40.0, 64), (20.0, 16)])
def test_a_small_job_beside_a_huge_one_ends_soon(rate: float, wanted: int, weight: float) -> None:
    world = Virtual()
    for _ in range(4):
        world.add_worker(rate, wanted=wanted)
    world.submit(1_000_000)
    world.pass_s(20)
    small = world.submit(100, weight=weight)
    world.run(lambda: world.ended(small), 300)
    share_s = 100 / (4 * rate * weight / (1 + weight))
    begun_s = wanted / rate
    assert world.took_s(small) <= 1.25 * share_s + begun_s + 0.25
    assert revokes(world) <= 4 * 5


def test_many_small_jobs_at_once_do_not_thrash() -> None:
    world = Virtual()
    for _ in range(4):
        world.add_worker(10, wanted=32)
    world.submit(1_000_000)
    world.pass_s(20)
    jobs = [world.submit(20) for _ in range(40)]
    world.run(lambda: world.ended(*jobs), 300)
    assert max(map(world.took_s, jobs)) < 1.25 * 40 * 20 / 40
    assert revokes(world) < 40


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_huge_jobs_share_by_weight(weight: float) -> None:
    world = Virtual()
    world.add_worker(100, wanted=16)
    first = world.submit(1_000_000)
    world.pass_s(5)
    second = world.submit(1_000_000, weight=weight)
    before = world.jobs[first].done
    world.pass_s(20)
    assert world.jobs[second].done / (world.jobs[first].done - before) == pytest.approx(weight, rel=0.1)


def test_a_job_on_another_context_does_not_count_in_the_share() -> None:
    world = Virtual()
    world.add_worker(100, wanted=16, device_bytes=25)
    first = world.submit(1_000_000, "v")
    world.pass_s(20)
    world.submit(1_000_000, "w")
    world.pass_s(2)
    second = world.submit(1_000_000, "v")
    before = world.jobs[first].done
    world.pass_s(10)
    assert world.jobs[first].done - before > 0.4 * (world.jobs[second].done + world.jobs[first].done - before)
