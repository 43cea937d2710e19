"""What an event costs must not grow out of hand with the pool: counted in calls, which no busy machine changes."""

from __future__ import annotations

import cProfile
import pstats

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Device, Variant
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import ReplicaState

ROWS = 1_000_000


class Pool:
    """A scheduler with so many idle workers, and how many calls its last step took."""

    def __init__(self, workers: int) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self.calls = 0
        for number in range(workers):
            self.handle(ev.WorkerJoined(f"w{number}", 1, "host", (Device("d", "gpu", 15),)))

    def handle(self, event: ev.ManagerEvent) -> None:
        profile = cProfile.Profile()
        decisions = profile.runcall(self.scheduler.handle, event, self.now)
        self.calls = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
        for decision in decisions:
            if isinstance(decision, do.ReadRows):
                start = self.scheduler.state.jobs[decision.job_id].read_upto
                self.handle(ev.RowsRead(decision.job_id, start, start + decision.rows, exhausted=False))

    def submit(self, variant_id: str) -> int:
        """A job comes. How many calls the plan takes that gives it devices."""
        self.handle(ev.JobSubmitted(f"job of {variant_id}", "job", Variant(variant_id, variant_id, 10)))
        self.now += 30.0
        for worker in self.scheduler.state.workers.values():
            worker.deadline_s = self.now + 60.0
        self.handle(ev.Tick())
        return self.calls

    def work(self) -> None:
        """All that were asked to load have loaded, and measured how fast they are."""
        for worker in list(self.scheduler.state.workers.values()):
            for variant_id in worker.devices["d"].wants:
                fact = ev.ReplicaFact("d", variant_id, worker.worker_id, ReplicaState.LIVE, 16, 10, load_s=1.0)
                self.handle(ev.ReplicaReported(worker.worker_id, fact))
        for _ in range(2):
            self.now += 1.0
            for lease in list(self.scheduler.state.leases.values()):
                start, stop = lease.open.spans()[0]
                spans = ((start, min(stop, start + 4)),)
                self.handle(ev.RowsWritten(lease.job_id, spans, lease.lease_id, lease.worker_id, "d"))

    def wanting(self, variant_id: str) -> int:
        return self.scheduler.state.census.of(variant_id).wanting


def test_a_plan_over_all_devices_takes_time_in_proportion_to_them() -> None:
    first: dict[int, int] = {}
    second: dict[int, int] = {}
    for workers in (200, 800):
        pool = Pool(workers)
        first[workers] = pool.submit("v")
        assert pool.wanting("v") == workers
        pool.work()
        second[workers] = pool.submit("w")
        assert pool.wanting("w") > workers // 10
        pool.scheduler.check()
    assert first[800] < 6 * first[200]
    assert second[800] < 6 * second[200]


def test_a_job_on_a_context_that_all_hold_is_placed_by_a_glance_at_each_worker() -> None:
    pool = Pool(400)
    pool.submit("v")
    pool.work()
    for job_id in list(pool.scheduler.state.jobs):
        pool.handle(ev.JobCancelled(job_id, drain=False))
    pool.now += 30.0
    calls = pool.submit("v")
    assert pool.wanting("v") == 400
    assert calls < 20 * 400
