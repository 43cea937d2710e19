"""Where contexts go: shares of devices, turns, loads that pay, pins, memory, kinds of device that refuse."""

from __future__ import annotations

import pytest

from pilotlight.core.allocation import Options
from pilotlight.core.events import JobSubmitted
from pilotlight.core.model import Device, DeviceBelief, Replica, Variant, Worker
from pilotlight.core.policy import placement
from pilotlight.core.recovery import job_from
from pilotlight.core.state import State
from pilotlight.core.transitions import ReplicaState
from tests.core.virtual import Virtual


def loads_of(world: Virtual, variant: str) -> int:
    return sum(loaded == variant for _, _, loaded, _ in world.loads)


def test_a_device_is_loaded_only_where_the_work_outlasts_the_load() -> None:
    world = Virtual()
    world.add_worker(10, load_s=30)
    first = world.submit(100)
    world.run(lambda: world.ended(first))
    for _ in range(3):
        world.add_worker(10, load_s=30)
    short = world.submit(100)
    world.run(lambda: world.ended(short))
    assert loads_of(world, "v") == 1
    long = world.submit(10_000)
    world.run(lambda: world.ended(long))
    assert loads_of(world, "v") == 4
    assert world.took_s(long) < 10_000 / 40 + 60


def test_devices_that_stand_by_load_as_soon_as_enough_of_a_long_input_is_read() -> None:
    world = Virtual()
    world.add_worker(10, load_s=20)
    world.submit(1_000_000)
    world.pass_s(30)
    for _ in range(99):
        world.add_worker(10, load_s=20)
    world.pass_s(10)
    assert loads_of(world, "v") == 100


def test_a_first_job_loads_no_more_devices_than_it_has_rows() -> None:
    world = Virtual()
    for _ in range(8):
        world.add_worker()
    job = world.submit(3)
    world.run(lambda: world.ended(job))
    assert loads_of(world, "v") == 3


@pytest.mark.parametrize(("weight", "share"), [(1.0, 4), (3.0, 6), (7.0, 7), (100.0, 7)])
def test_contexts_that_do_not_fit_together_get_devices_by_weight(weight: float, share: int) -> None:
    world = Virtual()
    for _ in range(8):
        world.add_worker(10, load_s=2)
    world.submit(1_000_000, "v")
    world.pass_s(30)
    world.submit(1_000_000, "w", weight=weight)
    world.pass_s(1)
    assert "w" in world.live()
    world.pass_s(100)
    assert world.live().count("w") == share
    assert loads_of(world, "w") == share
    assert loads_of(world, "v") == 8


def test_a_context_that_comes_to_a_full_pool_gets_a_device_at_once() -> None:
    world = Virtual()
    for _ in range(2):
        world.add_worker(10, load_s=20)
    world.submit(1_000_000, "v")
    world.pass_s(22)
    job = world.submit(10, "w")
    world.run(lambda: world.ended(job))
    assert world.took_s(job) < 22
    world.pass_s(30)
    assert world.live() == ["v", "v"]


def test_more_contexts_than_devices_take_turns_and_do_not_thrash() -> None:
    world = Virtual()
    for _ in range(2):
        world.add_worker(10, load_s=1)
    jobs = [world.submit(1_000_000, variant) for variant in "vwx"]
    world.pass_s(320)
    done = [world.jobs[job].done for job in jobs]
    assert min(done) > 0.7 * max(done)
    assert sum(done) > 0.85 * 320 * 20
    assert len(world.loads) < 2 * 320 / 10 + 4


def test_turns_are_in_proportion_to_weight() -> None:
    world = Virtual()
    world.add_worker(10, load_s=1)
    heavy, light = world.submit(1_000_000, "v", weight=3), world.submit(1_000_000, "w")
    world.pass_s(410)
    assert 2.5 < world.jobs[heavy].done / world.jobs[light].done < 3.5


def test_a_job_about_to_end_is_let_finish() -> None:
    world = Virtual()
    world.add_worker(10, load_s=10)
    first = world.submit(500, "v")
    world.run(lambda: world.jobs[first].done > 450)
    world.submit(10, "w")
    world.run(lambda: world.ended(first))
    assert world.live() == ["v"]
    world.run(world.ended)


def test_a_job_that_fits_only_some_devices_uses_those_and_others_the_rest() -> None:
    world = Virtual()
    for _ in range(2):
        world.add_worker(10, kind="large", device_bytes=80)
    for _ in range(2):
        world.add_worker(10, kind="small", device_bytes=15)
    world.submit(1_000_000, "v", need=12)
    world.pass_s(60)
    world.submit(1_000_000, "w", need=70)
    world.pass_s(120)
    assert [world.wants(f"worker-{n}") for n in range(1, 5)] == [("w",), ("w",), ("v",), ("v",)]


def test_contexts_that_fit_together_share_devices() -> None:
    world = Virtual()
    world.add_worker(10, device_bytes=25)
    jobs = [world.submit(100, "v"), world.submit(100, "w")]
    world.run(lambda: world.ended(*jobs))
    assert world.live() == ["v", "w"]
    assert len(world.loads) == 2


def test_the_idle_context_that_is_cheaper_to_bring_back_goes_first() -> None:
    world = Virtual(Options(keep_alive_s=-1))
    world.add_worker(10, device_bytes=25, load_s=1)
    for variant in ("v", "v", "w"):
        job = world.submit(10, variant)
        world.run(lambda job=job: world.ended(job))
    world.submit(10, "x")
    world.run(world.ended)
    assert world.live() == ["v", "x"]


def test_a_pinned_context_is_live_without_a_job_and_gives_way_to_one() -> None:
    world = Virtual(Options(keep_alive_s=0))
    name = world.add_worker(10, host_bytes=100)
    world.pin("p", has_files=True)
    world.pass_s(5)
    assert world.live() == ["p"]
    job = world.submit(200, "v")
    world.pass_s(10)
    assert world.live() == ["v"]
    assert world.parked(name) == {"p"}
    world.run(lambda: world.ended(job))
    world.pass_s(5)
    assert world.live() == ["p"]
    assert world.loads[-1][2:] == ("p", "parked")


def test_two_pinned_contexts_divide_devices() -> None:
    world = Virtual()
    for _ in range(4):
        world.add_worker()
    world.pin("p")
    world.pass_s(5)
    world.pin("q")
    world.pass_s(5)
    assert world.live() == ["p", "p", "p", "q"]


def test_what_leaves_a_device_is_parked_until_it_is_no_longer_kept() -> None:
    world = Virtual(Options(keep_alive_s=60))
    name = world.add_worker(10, host_bytes=100, load_s=4)
    for variant in "vw":
        world.submit(10, variant, has_files=True)
        world.run(world.ended)
    assert world.parked(name) == {"v"}
    world.submit(10, "v", has_files=True)
    world.run(world.ended)
    assert world.loads[-1][2:] == ("v", "parked")
    assert world.parked(name) == {"w"}
    world.pass_s(61)
    assert world.live() == []
    assert world.parked(name) == set()


def test_memory_holds_what_is_worth_most() -> None:
    world = Virtual(Options(keep_alive_s=-1))
    name = world.add_worker(10, host_bytes=12, load_s={"cold": 4, "staged": 2, "parked": 1})
    for variant in "vvwxy":
        world.submit(10, variant, has_files=True)
        world.run(world.ended)
    assert world.parked(name) == {"v"}


def state_with(*kinds: tuple[str, int], need: int = 10) -> State:
    """Workers with one device each, and a variant."""
    state = State()
    state.learn(Variant("v", "model", need))
    for n, (kind, size) in enumerate(kinds):
        name = f"w{n}"
        state.add_worker(Worker(name, 1, "host", {"d0": DeviceBelief(Device("d0", kind, size))}, 1e9), 0.0)
    return state


def test_a_kind_of_device_that_two_workers_gave_up_is_not_asked_again() -> None:
    state = state_with(("a", 20), ("a", 20), ("a", 20), ("b", 20))
    assert not placement.failed_everywhere(state, "v")
    for name in ("w0", "gone"):
        state.refusals.setdefault(("v", "a"), {})[name] = "it breaks"
    state.workers["w0"].devices["d0"].load_failures["v"] = placement.LOAD_TRIES_MAX
    state.pinned.add("v")
    plans = {worker.worker_id: plan.devices["d0"].wants for worker, plan in placement.plan(state, 0.0, 600.0)}
    assert plans == {"w0": (), "w1": (), "w2": (), "w3": ("v",)}
    assert not placement.failed_everywhere(state, "v")
    state.workers["w3"].devices["d0"].load_failures["v"] = placement.LOAD_TRIES_MAX
    assert placement.failed_everywhere(state, "v")


def test_a_device_that_holds_a_variant_keeps_it_whatever_others_of_its_kind_say() -> None:
    state = state_with(("a", 20), ("a", 20))
    belief = state.workers["w1"].devices["d0"]
    belief.replicas["v"] = Replica("r1", "v", ReplicaState.LIVE, wanted=4)
    belief.wants = ("v",)
    state.pinned.add("v")
    state.refusals["v", "a"] = {"w0": "it breaks", "gone": "it broke"}
    state.workers["w0"].devices["d0"].load_failures["v"] = placement.LOAD_TRIES_MAX
    plans = {worker.worker_id: plan.devices["d0"].wants for worker, plan in placement.plan(state, 0.0, 600.0)}
    assert plans == {"w0": (), "w1": ("v",)}
    assert not placement.failed_everywhere(state, "v")


def test_what_was_crowded_out_beside_others_gets_the_device_to_itself_in_turn() -> None:
    state = state_with(("a", 20), need=0)
    state.learn(Variant("w", "other", 0))
    for name in "vw":
        job = JobSubmitted(f"job-{name}", name, state.variants[name])
        state.jobs[job.job_id] = job_from(job)
        state.jobs[job.job_id].read_upto = 10
        state.jobs[job.job_id].pending.add(0, 10)
    belief = state.workers["w0"].devices["d0"]
    belief.wants = ("v",)
    belief.replicas["v"] = Replica("r1", "v", ReplicaState.LIVE, wanted=4)

    def wanted(now: float) -> tuple[str, ...]:
        ((_, plan),) = placement.plan(state, now, 600.0)
        return plan.devices["d0"].wants

    assert wanted(1.0) == ("v", "w")
    belief.retry_at_s["w"] = 2.0
    assert wanted(1.0) == ("v",)
    assert wanted(3.0) == ("v",)
    assert wanted(6.0) == ("w",)


def test_one_broken_device_does_not_speak_for_its_kind() -> None:
    state = state_with(("a", 20), ("a", 20))
    state.refusals["v", "a"] = {"w0": "it breaks"}
    state.workers["w0"].devices["d0"].load_failures["v"] = placement.LOAD_TRIES_MAX
    assert not placement.failed_everywhere(state, "v")
    state.drop_worker(state.workers["w1"], 0.0)
    assert placement.failed_everywhere(state, "v")


def test_what_fits_nowhere_is_explained() -> None:
    state = state_with(("a", 8 * 10**9), ("b", 16 * 10**9), need=40 * 10**9)
    said = placement.explain_no_fit(state, "v")
    assert said == "model needs about 40.0 GB and a has 8.0 GB, b has 16.0 GB"
    assert placement.explain_no_fit(state_with(("a", 20)), "v") == ""


def test_a_plan_tells_why() -> None:
    state = state_with(("a", 20))
    state.pinned.add("v")
    ((_, plan),) = placement.plan(state, 0.0, 600.0)
    assert plan.why == "it is pinned"
