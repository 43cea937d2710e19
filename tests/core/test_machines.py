"""Hypothesis drives scheduler and agents together through faults, then lets them finish."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.transitions import JobState
from tests.core.storm import storm
from tests.core.world import World, run_quietly


class Faults(RuleBasedStateMachine):
    """Any order of submissions, deliveries, work, copies, pins, cuts, kills, drains and new managers keeps every
    invariant; then all jobs end."""

    @initialize(
        devices=st.integers(1, 2),
        workers=st.integers(1, 3),
        with_files=st.sets(st.sampled_from(["v", "w"])),
        sleepers=st.sets(st.sampled_from(["v", "w"])),
    )
    def begin(self, devices: int, workers: int, with_files: set[str], sleepers: set[str]) -> None:
        self.world = World(Options(hedge_after_s=1.0, keep_alive_s=5.0), devices)
        self.world.with_files, self.world.sleepers = with_files, sleepers
        for _ in range(workers):
            self.world.add_worker()

    @rule(
        rows=st.integers(0, 40),
        variant=st.sampled_from(["v", "w"]),
        poison=st.frozensets(st.integers(0, 39), max_size=2),
        hangs=st.frozensets(st.integers(0, 39), max_size=1),
        weight=st.sampled_from([0.5, 1.0, 4.0]),
    )
    def submit(self, rows: int, variant: str, poison: frozenset[int], hangs: frozenset[int], weight: float) -> None:
        def those(indices: frozenset[int]) -> frozenset[int]:
            return frozenset(index for index in indices if index < rows)

        if len(self.world.jobs) < 4:
            self.world.submit(rows, variant, those(poison), those(hangs), weight=weight)

    @precondition(lambda self: len(self.world.workers) < 4)
    @rule(kind=st.sampled_from(["kind", "host"]), host_bytes=st.sampled_from([0, 12, 25]))
    def join(self, kind: str, host_bytes: int) -> None:
        self.world.add_worker(kind, 15, host_bytes)

    @rule(variant=st.sampled_from(["v", "w"]), on=st.booleans())
    def pin(self, variant: str, on: bool) -> None:
        self.world.pin(variant, on=on)

    @rule(variant=st.sampled_from(["v", "w"]))
    def evict(self, variant: str) -> None:
        self.world.evict(variant)

    @rule(data=st.data(), ok=st.booleans())
    def copy(self, data: st.DataObject, ok: bool) -> None:
        if name := self._some_worker(data):
            self.world.copy(name, ok=ok)

    @rule()
    def restart_manager(self) -> None:
        self.world.restart_manager()

    @rule(data=st.data(), direction=st.sampled_from(["up", "down"]), count=st.integers(1, 5))
    def deliver(self, data: st.DataObject, direction: str, count: int) -> None:
        if name := self._some_worker(data):
            for _ in range(count):
                if name in self.world.workers:
                    self.world.deliver(name, direction)

    @rule(data=st.data(), count=st.integers(1, 6))
    def work(self, data: st.DataObject, count: int) -> None:
        if (name := self._some_worker(data)) and (replica := self._some_replica(data, name)):
            for _ in range(count):
                if name in self.world.workers and replica in self.world.workers[name].replicas:
                    self.world.work(name, replica)

    @rule(data=st.data())
    def kill_worker(self, data: st.DataObject) -> None:
        if name := self._some_worker(data):
            self.world.kill_worker(name)

    @rule(data=st.data())
    def kill_replica(self, data: st.DataObject) -> None:
        if (name := self._some_worker(data)) and (replica := self._some_replica(data, name)):
            self.world.kill_replica(name, replica)

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        if name := self._some_worker(data):
            self.world.cut(name)

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        if name := self._some_worker(data):
            self.world.drain(name)

    @rule(seconds=st.floats(0.01, 3.0))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if not self.world.workers:
            self.world.add_worker()
        self.world.add_worker()
        self.world.settle()
        for job in self.world.jobs.values():
            if job.ended is JobState.FAILED and len(job.poison | job.hangs) == job.rows:
                continue
            assert job.ended is JobState.COMPLETED
            assert sorted(job.output) == list(range(job.rows))

    def _some_worker(self, data: st.DataObject) -> str | None:
        names = sorted(self.world.workers)
        return data.draw(st.sampled_from(names)) if names else None

    def _some_replica(self, data: st.DataObject, name: str) -> str | None:
        replicas = sorted(self.world.workers[name].replicas)
        return data.draw(st.sampled_from(replicas)) if replicas else None


TestFaults = Faults.TestCase
TestFaults.settings = settings(
    max_examples=400,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.mark.parametrize("block", range(6))
def test_storms(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        storm(seed)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_poison_rows_alone_become_error_rows(devices: int, workers: int) -> None:
    world = World(devices=devices)
    for _ in range(workers):
        world.add_worker()
    world.submit(100, poison=frozenset({3, 4, 57}))
    world.settle()
    world.check_outputs()


def test_a_bad_device_makes_no_error_rows() -> None:
    world = World()
    bad, _ = world.add_worker(), world.add_worker()
    world.bad_devices.add((bad, "d0"))
    world.submit(200)
    world.settle()
    world.check_outputs()
    assert any("die whatever they run" in note for note in world.notes)


def test_a_device_that_goes_bad_rests_and_makes_no_error_rows() -> None:
    world = World()
    bad, _ = world.add_worker(), world.add_worker()
    world.submit(400)
    while len(world.jobs["job-1"].output) < 100:
        for name in world.workers:
            while world.workers[name].up or world.workers[name].down:
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica in list(world.workers[name].replicas):
                world.work(name, replica)
        world.tick(0.01)
    world.bad_devices.add((bad, "d0"))
    world.settle()
    world.check_outputs()


def test_preemption_costs_no_attempt() -> None:
    world = World()
    job_id = world.submit(30)
    for _ in range(40):
        name = world.add_worker()
        for _ in range(30):
            world.deliver(name, "up")
            world.deliver(name, "down")
            for replica in list(world.workers[name].replicas):
                if not world.workers[name].replicas[replica].live:
                    world.work(name, replica)
        world.kill_worker(name)
        world.check()
    assert not world.jobs[job_id].attempts
    world.add_worker()
    world.settle()
    world.check_outputs()


def test_a_context_that_loads_nowhere_ends_its_job_and_no_other() -> None:
    world = World()
    one = world.add_worker()
    world.unloadable.add((one, "d0"))
    job_id = world.submit(10)
    world.settle()
    assert world.jobs[job_id].ended is JobState.FAILED
    assert "unloadable" in world.notes[-1]


def test_one_worker_that_cannot_load_leaves_the_job_to_the_other() -> None:
    world = World()
    one, _ = world.add_worker(), world.add_worker()
    world.unloadable.add((one, "d0"))
    world.submit(50)
    world.settle()
    world.check_outputs()


def test_a_small_job_beside_a_huge_one_ends_soon() -> None:
    world = World()
    world.add_worker()
    huge = world.submit(3000)
    for _ in range(20):
        world.tick()
    small = world.submit(20)
    for _ in range(400):
        if world.jobs[small].ended:
            break
        for name in world.workers:
            while world.workers[name].up or world.workers[name].down:
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica in list(world.workers[name].replicas):
                world.work(name, replica)
        world.tick()
    assert world.jobs[small].ended is JobState.COMPLETED
    assert len(world.jobs[huge].output) < 200


def test_contexts_that_do_not_fit_together_take_turns() -> None:
    world = World()
    world.add_worker()
    huge = world.submit(3000, "v")
    run_quietly(world, lambda: len(world.jobs[huge].output) > 50)
    small = world.submit(10, "w")
    run_quietly(world, lambda: world.jobs[small].ended)
    assert world.jobs[small].ended is JobState.COMPLETED
    assert not world.jobs[huge].ended
    assert len(world.jobs[huge].output) < 1000
    world.settle()
    world.check_outputs()


def test_a_context_that_turns_out_larger_than_declared_takes_turns_too() -> None:
    world = World()
    world.memory_bytes["v"] = 14
    world.declared_bytes = 5
    world.add_worker()
    huge = world.submit(600, "v")
    run_quietly(world, lambda: len(world.jobs[huge].output) > 50)
    world.submit(10, "w")
    world.settle()
    world.check_outputs()


def test_suspects_do_not_wait_for_another_job() -> None:
    world = World()
    world.add_worker()
    huge = world.submit(3000)
    run_quietly(world, lambda: len(world.jobs[huge].output) > 50)
    small = world.submit(20, poison=frozenset({11}))
    run_quietly(world, lambda: world.jobs[small].ended)
    assert not world.jobs[huge].ended
    assert len(world.jobs[huge].output) < 1500
    world.settle()
    world.check_outputs()


def test_a_reconnect_keeps_idle_contexts_live() -> None:
    world = World()
    name = world.add_worker()
    world.submit(5)
    world.settle()
    (replica_id,) = world.workers[name].replicas
    world.cut(name)
    for _ in range(20):
        run_quietly(world, lambda: not world.workers[name].up and not world.workers[name].down)
        world.tick()
    assert list(world.workers[name].replicas) == [replica_id]


def test_silent_rows_are_run_again_by_an_idle_worker() -> None:
    world = World(Options(hedge_after_s=1.0))
    stuck, other = world.add_worker(), world.add_worker()
    job_id = world.submit(8)
    for _ in range(20):
        for name in (stuck, other):
            for _ in range(10):
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica in list(world.workers[name].replicas):
                if name == other or not world.workers[name].replicas[replica].live:
                    world.work(name, replica)
        world.tick()
        world.check()
    assert world.jobs[job_id].ended is JobState.COMPLETED
    world.check_outputs()


def test_cancelling_with_drain_lets_held_rows_finish() -> None:
    world = World()
    world.add_worker()
    job_id = world.submit(1000)
    for _ in range(3):
        for name in world.workers:
            while world.workers[name].up or world.workers[name].down:
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica in list(world.workers[name].replicas):
                world.work(name, replica)
        world.tick()
    for name in world.workers:
        while world.workers[name].up or world.workers[name].down:
            world.deliver(name, "up")
            world.deliver(name, "down")
    held = sum(len(r.rows) for w in world.workers.values() for r in w.replicas.values())
    before = len(world.jobs[job_id].output)
    world.manager(ev.JobCancelled(job_id, drain=True))
    world.settle()
    assert world.jobs[job_id].ended is JobState.CANCELLED
    assert held > 0
    assert len(world.jobs[job_id].output) == before + held


def test_an_idle_context_whose_replica_dies_comes_back_until_it_is_no_longer_kept() -> None:
    world = World(Options(keep_alive_s=60.0))
    name = world.add_worker()
    world.submit(5)
    world.settle()
    worker = world.workers[name]
    (replica_id,) = worker.replicas
    world.kill_replica(name, replica_id)

    def quiet(seconds: float) -> None:
        for _ in range(int(seconds)):
            while worker.up or worker.down:
                world.deliver(name, "up")
                world.deliver(name, "down")
            for other in list(worker.replicas):
                world.work(name, other)
            world.tick(1.0)
            world.check()

    quiet(5)
    assert [replica.live for replica in worker.replicas.values()] == [True]
    quiet(70)
    assert not worker.replicas
