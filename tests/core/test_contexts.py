"""What the machines do with contexts: residences, hangs, memory, broken devices."""

from __future__ import annotations

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.allocation import Options
from pilotlight.core.model import Device, DeviceBelief, Variant
from pilotlight.core.policy import retry, scale
from pilotlight.core.transitions import JobState, LeaseState, Level, ReplicaState
from tests.core.world import World, run_quietly


def test_a_hung_replica_is_ended_and_only_its_row_becomes_an_error_row() -> None:
    world = World()
    world.add_worker()
    world.add_worker()
    job = world.submit(30, hangs=frozenset({7}))
    world.settle()
    assert world.jobs[job].output[7] == "timed_out"
    world.check_outputs()
    assert any("request_timeout_s" in note for note in world.notes)


def test_a_new_manager_finds_replicas_live_and_loads_nothing_again() -> None:
    world = World()
    world.with_files = {"v"}
    world.add_worker()
    job = world.submit(20)
    run_quietly(world, lambda: len(world.jobs[job].output) >= 5)
    before = {name: set(worker.replicas) for name, worker in world.workers.items()}
    world.restart_manager()
    world.settle()
    world.check_outputs()
    assert {name: set(worker.replicas) for name, worker in world.workers.items()} == before


def test_files_are_staged_and_parked_before_a_replica_starts_from_them() -> None:
    world = World()
    world.with_files = {"v"}
    name = world.add_worker()
    world.submit(5)
    world.settle()
    agent = world.workers[name].agent
    assert [replica.origin for replica in agent.replicas.values()] == ["parked"]
    worker = world.scheduler.state.workers[name]
    assert set(worker.parked) == set(worker.staged) == {"v"}


def test_a_replica_whose_files_can_not_be_copied_starts_from_where_they_are() -> None:
    world = World()
    world.with_files = {"v"}
    name = world.add_worker()
    job = world.submit(5)
    while world.workers[name].up or world.workers[name].down:
        world.deliver(name, "up")
        world.deliver(name, "down")
    world.copy(name, ok=False)
    world.copy(name, ok=False)
    agent = world.workers[name].agent
    assert [replica.origin for replica in agent.replicas.values()] == ["cold"]
    world.settle()
    assert world.jobs[job].ended is JobState.COMPLETED


def test_a_context_evicted_from_a_device_sleeps_where_it_can_and_wakes_for_the_next_job() -> None:
    world = World(Options(keep_alive_s=-1.0))
    world.sleepers = {"v"}
    name = world.add_worker()
    world.submit(5, "v")
    world.settle()
    (sleeper,) = world.workers[name].replicas
    world.submit(5, "w")
    world.settle()
    assert world.workers[name].agent.replicas[sleeper].state is ReplicaState.ASLEEP
    world.submit(5, "v")
    world.settle()
    assert world.workers[name].agent.replicas[sleeper].state is ReplicaState.LIVE
    world.check_outputs()


def test_a_context_that_fits_one_kind_of_device_uses_that_and_one_that_fits_none_ends_at_once() -> None:
    world = World(Options(workers_expected=2))
    small = world.add_worker("small", 8)
    large = world.add_worker("large", 15)
    world.submit(10)
    world.settle()
    world.check_outputs()
    assert not world.workers[small].replicas
    assert world.workers[large].replicas
    world.declared_bytes = 40
    job = world.submit(10, "huge")
    run_quietly(world, lambda: world.jobs[job].ended)
    assert world.jobs[job].ended is JobState.FAILED
    said = next(note for note in world.notes if note.startswith(f"{job} failed"))
    assert "small" in said
    assert "large" in said


def test_a_pinned_context_is_live_without_a_job_and_evicted_when_asked() -> None:
    world = World(Options(keep_alive_s=0.0))
    name = world.add_worker()
    world.pin("v")
    run_quietly(world, lambda: world.workers[name].replicas)
    for _ in range(100):
        world.tick(1.0)
    assert world.workers[name].replicas
    world.evict("v")
    run_quietly(world, lambda: not world.workers[name].replicas)


def test_a_row_that_runs_out_of_memory_alone_runs_on_a_larger_device() -> None:
    world = World(Options(workers_expected=2))
    small = world.add_worker("small", 12)
    world.add_worker("large", 20)
    job = world.submit(12)
    world.outgrows = {7: 12}
    world.settle()
    world.check_outputs()
    assert world.jobs[job].output[7] == "result"
    assert len([note for note in world.notes if note.startswith(f"{small}'s replica") and "memory" in note]) <= 3


def test_rows_of_a_lost_worker_do_not_wait_behind_later_ones() -> None:
    agent = Agent("w", (Device("d", "kind", 15),), 10.0)
    variant = Variant("v", "v", 10)
    agent.handle(ev.ManagerFound(1), 0.0)
    agent.handle(ev.WantsChanged(1, 1, (("d", variant, Level.LIVE),)), 0.0)
    (replica,) = agent.replicas
    agent.handle(ev.JobDefined("job", "v"), 0.0)
    agent.handle(ev.LeaseGranted(1, "later", "job", ((50, 60),)), 0.0)
    agent.handle(ev.LeaseGranted(1, "first", "job", ((3, 5),)), 0.0)
    fed = [d for d in agent.handle(ev.ReplicaLive(replica, 4, 10), 0.0) if isinstance(d, do.FeedRows)]
    assert [(feed.lease_id, feed.spans) for feed in fed] == [("first", ((3, 5),)), ("later", ((50, 52),))]


def test_a_device_that_rests_a_thousand_times_breaks_nothing() -> None:
    belief = DeviceBelief(Device("d", "kind", 15))
    for _ in range(3000):
        assert retry.quarantine(belief, 0.0) <= retry.QUARANTINE_S_MAX
    assert retry.load_retry_s(3000) > 0
    assert scale.backoff_s(3000) == scale.BACKOFF_S_MAX


def test_a_context_that_kills_its_replicas_fails_also_where_others_worked() -> None:
    world = World()
    world.add_worker()
    world.add_worker()
    world.submit(10, "v")
    world.settle()
    world.declared_bytes = 5
    job = world.submit(200, "w", poison=frozenset(range(200)))
    run_quietly(world, lambda: world.jobs[job].ended, ticks=20_000)
    assert world.jobs[job].ended is JobState.FAILED
    assert len([note for note in world.notes if "replica of w died" in note]) <= 2 * retry.VAIN_DEATHS_MAX


def test_rows_asked_back_in_part_are_all_given_back_when_their_context_leaves() -> None:
    world = World()
    name = world.add_worker()
    job = world.submit(40)
    run_quietly(world, lambda: world.scheduler.state.leases)
    (lease_id,) = list(world.scheduler.state.leases)[:1]
    lease = world.scheduler.state.leases[lease_id]
    world.scheduler.handle(ev.Tick(), world.now)
    lease.state = LeaseState.REVOKING  # part of it was asked for
    belief = world.scheduler.state.workers[name].devices["d0"]
    belief.wants = ()
    start = next(iter(lease.open))[0]
    decisions = world.scheduler.handle(ev.RowsReturned(name, lease_id, ((start, start + 1),)), world.now)
    assert any(isinstance(d, do.RevokeRows) and d.lease_id == lease_id and d.rows is None for d in decisions)
    assert job


def test_a_parked_copy_that_made_room_is_not_made_again_meanwhile() -> None:
    world = World(Options(keep_alive_s=-1.0))
    world.with_files = {"v", "w"}
    name = world.add_worker("host", 15, 15)
    world.submit(5, "v")
    world.settle()
    world.submit(5, "w")
    parked: list[tuple[str, Level]] = []
    for _ in range(30):
        parked += [copy for copy in world.workers[name].copying if copy == ("v", Level.PARKED)]
        for _ in range(20):
            world.deliver(name, "up")
            world.deliver(name, "down")
        for replica in list(world.workers[name].replicas):
            if world.workers[name].replicas[replica].variant_id == "v":
                world.work(name, replica)
        world.tick(0.1)
        world.check()
    assert not parked
    world.settle()
    world.check_outputs()


def test_a_reconnect_gives_the_present_context_its_slice() -> None:
    world = World()
    name = world.add_worker()
    first = world.submit(2000, "v")
    run_quietly(world, lambda: len(world.jobs[first].output) > 5)
    world.submit(2000, "w")
    (before,) = world.workers[name].replicas
    world.cut(name)
    run_quietly(world, lambda: len(world.jobs[first].output) > 20)
    assert set(world.workers[name].replicas) == {before}


def test_a_row_that_runs_out_of_memory_reaches_the_largest_device_even_with_one_attempt() -> None:
    world = World(Options(workers_expected=2))
    world.add_worker("small", 12)
    world.add_worker("large", 20)
    job = world.submit(12, attempts_max=1)
    world.outgrows = {7: 12}
    world.settle()
    assert world.jobs[job].output[7] == "result"


def test_a_job_of_nothing_but_poison_keeps_no_other_job_from_its_first_try() -> None:
    world = World()
    world.add_worker()
    world.submit(1, poison=frozenset({0}))
    other = world.submit(1)
    world.settle()
    assert world.jobs[other].output == {0: "result"}


def test_who_waits_for_files_hears_at_once_that_another_took_the_room() -> None:
    agent = Agent("w", [Device("gpu0", "half", 14)], orphan_timeout_s=600.0, memory_bytes=100)
    large, small = Variant("large", "large", 10, has_files=True), Variant("small", "small", 5, has_files=True)
    wants = tuple(("gpu0", variant, Level.LIVE) for variant in (large, small))
    agent.handle(ev.WantsChanged(1, 1, wants), 0.0)
    agent.handle(ev.SourceNamed(1, "small", ""), 0.0)
    agent.handle(ev.CopyMade("small", Level.STAGED, 5, 1.0), 1.0)
    decided = agent.handle(ev.CopyMade("small", Level.PARKED, 5, 1.0), 2.0)
    assert [decision.variant_id for decision in decided if isinstance(decision, do.StartReplica)] == ["small"]
    refused = [decision for decision in decided if isinstance(decision, do.SendLoadFailed)]
    assert [(decision.variant_id, decision.kind) for decision in refused] == [("large", "crowded")]
    assert agent.handle(ev.Tick(), 2.1) == []
