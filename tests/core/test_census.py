"""In a large pool no usual event walks all workers, and small steps lead where one plan over all would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.census import Census
from pilotlight.core.model import Device, DeviceBelief, Replica, Worker
from pilotlight.core.planning import Pace
from pilotlight.core.transitions import ReplicaState, WorkerState
from tests.core.virtual import Virtual

WORKERS = 80
LARGE = Options(pace=Pace(few_devices=16))
DEVICES = (Device("d0", "gpu", 15),)


class NotWalked(dict[str, Worker]):
    """Workers that may be looked up by name only."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all workers were walked")

    def values(self) -> object:  # type: ignore[override]
        raise AssertionError("all workers were walked")

    items = values  # type: ignore[assignment]


def busy(options: Options = LARGE) -> Virtual:
    world = Virtual(options)
    for _ in range(WORKERS):
        world.add_worker()
    world.submit(1_000_000)
    world.pass_s(20)
    assert len(world.live()) == WORKERS
    return world


def test_no_usual_event_walks_all_workers() -> None:
    world = busy()
    scheduler, now = world.scheduler, world.now
    scheduler.handle(ev.Tick(), now)
    scheduler.state.workers = NotWalked(scheduler.state.workers)
    for n in range(1, 20):
        name = f"worker-{n}"
        lease_id = next(iter(scheduler.state.workers[name].leases))
        start, stop = scheduler.state.leases[lease_id].open.spans()[0]
        scheduler.handle(ev.RowsWritten("job-1", ((start, start + 1),), lease_id, name, "d0"), now)
        scheduler.handle(ev.RowsReturned(name, lease_id, ((stop - 1, stop),)), now)
        scheduler.handle(ev.LoadFailed(name, "d0", "other", permanent=False, reason="broken"), now)
        scheduler.handle(ev.ReplicaDied(name, "d0", "v", {}, 0, "killed"), now)
        scheduler.handle(ev.WorkerLost(name, "preempted"), now)
        scheduler.handle(ev.WorkerJoined(f"new-{n}", 1, "host", DEVICES), now)


def test_a_worker_that_joins_a_large_pool_is_told_at_once_what_to_hold() -> None:
    world = busy()
    decisions = world.scheduler.handle(ev.WorkerJoined("new", 1, "host", DEVICES), world.now)
    (wants,) = [decision for decision in decisions if isinstance(decision, do.SendWants)]
    assert wants.worker_id == "new"
    assert [variant_id for _, variant_id, _ in wants.wants] == ["v"]


@pytest.mark.parametrize("options", [LARGE, Options(pace=Pace(few_devices=1000))])
def test_a_large_pool_ends_a_job_as_soon_as_a_small_one_would(options: Options) -> None:
    world = Virtual(options)
    for n in range(WORKERS):
        world.add_worker([5.0, 10.0, 20.0][n % 3])
    rates = sum(machine.rate["v"] for machine in world.machines.values())
    job = world.submit(int(20 * rates))
    world.run(world.ended)
    assert world.took_s(job) < 1.1 * 21


def test_the_fastest_is_known_to_six_percent() -> None:
    census = Census()
    for n, rate in enumerate([0.001, 3.0, 70.0, 1e6]):
        belief = DeviceBelief(DEVICES[0], wants=("v",))
        belief.replicas["v"] = Replica("r", "v", ReplicaState.LIVE, wanted=4)
        worker = Worker(f"w{n}", 1, "host", {"d0": belief}, 0.0, rate={"v": rate})
        census.look(worker, 0.0)
        assert 0.93 * rate < census.of("v").fastest <= rate
    worker.state = WorkerState.DRAINING
    census.look(worker, 0.0)
    assert 65 < census.of("v").fastest <= 70
