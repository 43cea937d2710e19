"""Virtual time and what is shared in it, against cases worked out by hand."""

from __future__ import annotations

import pytest

from pilotlight.sim.chance import Chance, lognormal, scatter
from pilotlight.sim.clock import Clock
from pilotlight.sim.links import Shared


def test_what_is_due_at_one_moment_happens_in_the_order_in_which_it_was_asked_for() -> None:
    clock, seen = Clock(), list[str]()
    clock.after(1.0, lambda: seen.append("late"))
    for name in ("one", "two", "three"):
        clock.after(0.5, lambda name=name: seen.append(name))
    clock.after(0.5, lambda: seen.append("never")).cancel()
    assert not clock.run(lambda: False)
    assert (seen, clock.now, clock.happened) == (["one", "two", "three", "late"], 1.0, 4)


def test_time_passes_up_to_a_moment_and_no_further() -> None:
    clock, seen = Clock(), list[float]()
    for when in (1.0, 2.0, 3.0):
        clock.at(when, lambda when=when: seen.append(when))
    assert not clock.run(lambda: False, until_s=2.5)
    assert (seen, clock.now) == ([1.0, 2.0], 2.5)
    assert clock.run(lambda: len(seen) == 3)


def test_a_moment_that_has_passed_counts_as_now() -> None:
    clock, seen = Clock(), list[float]()
    clock.after(5.0, lambda: clock.at(1.0, lambda: seen.append(clock.now)))
    clock.run(lambda: False)
    assert seen == [5.0]


def ends(reads: list[tuple[float, float]], bytes_per_s: float, per_reader: float = 1e9) -> list[float]:
    """When reads that start at a time and have a size end."""
    clock = Clock()
    shared = Shared(clock, bytes_per_s, per_reader=per_reader)
    done: dict[int, float] = {}
    for number, (start_s, size) in enumerate(reads):
        clock.at(
            start_s,
            lambda number=number, size=size: shared.read(size, lambda: done.__setitem__(number, clock.now)),
        )
    clock.run(lambda: len(done) == len(reads))
    assert shared.readers == 0
    assert shared.moved_bytes == pytest.approx(sum(size for _, size in reads))
    return [done[number] for number in range(len(reads))]


def test_readers_share_what_there_is() -> None:
    assert ends([(0.0, 100.0)], 10.0) == pytest.approx([10.0])
    assert ends([(0.0, 100.0), (0.0, 100.0)], 10.0) == pytest.approx([20.0, 20.0])
    # alone for 5 s (50 bytes), then at 5 bytes/s each: the first ends 10 s later, the second has 50 left
    assert ends([(0.0, 100.0), (5.0, 100.0)], 10.0) == pytest.approx([15.0, 20.0])
    # a small one overtakes a large one
    assert ends([(0.0, 100.0), (0.0, 10.0)], 10.0) == pytest.approx([11.0, 2.0])


def test_one_reader_gets_no_more_than_its_own_limit() -> None:
    assert ends([(0.0, 100.0), (0.0, 100.0)], 100.0, per_reader=10.0) == pytest.approx([10.0, 10.0])
    assert ends([(0.0, 100.0)] * 20, 100.0, per_reader=10.0) == pytest.approx([20.0] * 20)


def test_a_read_that_is_cancelled_frees_its_share() -> None:
    clock, done = Clock(), list[float]()
    shared = Shared(clock, 10.0, latency_s=1.0)
    first = shared.read(100.0, lambda: done.append(-1.0))
    shared.read(100.0, lambda: done.append(clock.now))
    clock.at(11.0, lambda: shared.cancel(first))  # by then both have had 50 of their 100 bytes
    clock.run(lambda: False)
    assert done == pytest.approx([16.0])
    assert shared.moved_bytes == 100.0
    shared.cancel(first)


def test_a_read_may_be_cancelled_before_its_first_byte() -> None:
    clock, done = Clock(), list[float]()
    shared = Shared(clock, 10.0, latency_s=1.0)
    shared.cancel(shared.read(100.0, lambda: done.append(clock.now)))
    clock.run(lambda: False)
    assert done == []
    assert shared.most_readers == 0


def test_chance_is_the_same_for_a_seed_and_as_likely_as_it_says() -> None:
    one, two = Chance(7), Chance(7)
    assert [one.whole(1, 6) for _ in range(50)] == [two.whole(1, 6) for _ in range(50)]
    assert {one.whole(1, 6) for _ in range(500)} == {1, 2, 3, 4, 5, 6}
    assert sorted(one.some_of("abc", 9)) == ["a", "b", "c"]
    assert sum(one.exponential(3.0) for _ in range(20_000)) / 20_000 == pytest.approx(3.0, rel=0.05)
    assert 800 < sum(one.happens(0.1) for _ in range(10_000)) < 1_200


def test_a_spread_keeps_its_mean_and_needs_no_state() -> None:
    factors = [lognormal(3, index, 0.8) for index in range(50_000)]
    assert sum(factors) / len(factors) == pytest.approx(1.0, rel=0.03)
    assert lognormal(3, 41_000, 0.8) == factors[41_000]
    assert len({scatter(1, index) for index in range(10_000)}) == 10_000


def test_reads_from_what_is_gone_fail_once_and_those_that_can_not_go_on() -> None:
    clock, seen = Clock(), list[str]()
    shared = Shared(clock, 100.0, latency_s=1.0)
    shared.read(1000.0, lambda: seen.append("done"))
    shared.read(1000.0, lambda: seen.append("never"), lambda: seen.append("failed"))
    clock.after(5.0, lambda: shared.read(1000.0, lambda: seen.append("never"), lambda: seen.append("failed early")))
    clock.after(5.5, shared.fail)
    clock.after(6.0, shared.fail)
    clock.run(lambda: False)
    assert seen == ["failed", "failed early", "done"]
    assert clock.now == pytest.approx(1.0 + 4.5 + (1000.0 - 4.5 * 50.0) / 100.0)
