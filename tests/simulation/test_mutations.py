"""The hunt bites: each of these faults, planted in the core, is found within 200 seeds, and most within a few."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from pilotlight.core import agent, fetches, files, recovery, residence, scheduler
from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.model import Job, Lease
from pilotlight.core.policy import sharing
from pilotlight.core.state import State
from pilotlight.sim.hunt import failure
from pilotlight.sim.plan import plan

SEEDS = 200


def lost_void_lease(patch: pytest.MonkeyPatch) -> None:
    """The rows of a lost worker's lease are forgotten."""
    void = State.void

    def mutant(self: State, lease: Lease) -> None:
        pending = self.jobs[lease.job_id].pending.copy()
        void(self, lease)
        self.jobs[lease.job_id].pending = pending

    patch.setattr(State, "void", mutant)


def double_completion(patch: pytest.MonkeyPatch) -> None:
    """A row that is done stays in the queue, so that it is done again."""
    finish = State.finish_rows

    def mutant(self: State, job: Job, spans: Any, lease: Lease | None) -> None:
        finish(self, job, spans, lease)
        if len(job.done) % 7 == 0:
            job.pending.update(spans)

    patch.setattr(State, "finish_rows", mutant)


def eviction_in_use(patch: pytest.MonkeyPatch) -> None:
    """A replica that is not wanted any more ends, whatever it is at."""

    def mutant(self: residence.Residences) -> None:
        for held in list(self.replicas.values()):
            if not self.wanted_live(held):
                self._send_off(held)
        settle(self)

    settle = residence.Residences.settle
    patch.setattr(residence.Residences, "settle", mutant)


def wait_without_deadline(patch: pytest.MonkeyPatch) -> None:
    """A copy may take for ever."""
    patch.setattr(files, "LOAD_S_MAX", math.inf)


def silence_without_end(patch: pytest.MonkeyPatch) -> None:
    """A worker that lost its power is waited for."""
    tick = scheduler.Scheduler._tick

    def mutant(self: scheduler.Scheduler) -> None:
        for worker in self.state.workers.values():
            worker.deadline_s = max(worker.deadline_s, self._now + 1.0)
        tick(self)

    patch.setattr(scheduler.Scheduler, "_tick", mutant)


def preemption_is_charged(patch: pytest.MonkeyPatch) -> None:
    """Rows are charged an attempt because their worker went away."""
    void = State.void

    def mutant(self: State, lease: Lease) -> None:
        job = self.jobs[lease.job_id]
        for index in lease.open.indices():
            job.attempts[index] = min(job.attempts_max, job.attempts.get(index, 0) + 1)
        void(self, lease)

    patch.setattr(State, "void", mutant)
    lost = scheduler.Scheduler._worker_lost

    def recorded(self: scheduler.Scheduler, event: ev.WorkerLost) -> None:
        lost(self, event)
        for job in self.state.jobs.values():
            if job.attempts:
                self._out.append(do.RecordAttempts(job.job_id, tuple(job.attempts.items())))

    patch.setattr(scheduler.Scheduler, "_worker_lost", recorded)


def old_epoch_is_obeyed(patch: pytest.MonkeyPatch) -> None:
    """A late command of a manager that is gone counts."""
    handle = agent.Agent.handle

    def mutant(self: agent.Agent, event: ev.AgentEvent, now: float) -> Any:
        if isinstance(event, (ev.WantsChanged, ev.LeaseRevoked, ev.LeaseGranted)):
            event = dataclasses.replace(event, epoch=max(event.epoch, self.epoch))
        return handle(self, event, now)

    patch.setattr(agent.Agent, "handle", mutant)


def share_that_starves(patch: pytest.MonkeyPatch) -> None:
    """The job that came first gets all."""

    def mutant(jobs: list[Job], rows: int, clock: float, most: Any) -> list[tuple[Job, int]]:
        first = min(jobs, key=lambda job: int(job.job_id.split("-")[1]))
        return [(first, min(rows, len(first.pending)))]

    patch.setattr(sharing, "divide", mutant)


def done_is_forgotten_in_a_crash(patch: pytest.MonkeyPatch) -> None:
    """A manager that takes over does not look at the output."""
    patch.setattr(scheduler, "job_from", lambda event: recovery.job_from(dataclasses.replace(event, done=())))


def fan_out_without_bound(patch: pytest.MonkeyPatch) -> None:
    """Everyone is sent to one source at once."""
    patch.setattr(fetches, "choose", lambda *_args, **_more: "")


FOUND_BY = {
    lost_void_lease: 0,
    double_completion: 0,
    eviction_in_use: 0,
    wait_without_deadline: 0,
    silence_without_end: 3,
    preemption_is_charged: 3,
    share_that_starves: 4,
    done_is_forgotten_in_a_crash: 9,
    old_epoch_is_obeyed: 110,
    fan_out_without_bound: 13,
}
"""Each fault, and the first seed that found it when this was written: tried first, to save time."""


@pytest.mark.parametrize("mutant", FOUND_BY, ids=lambda mutant: mutant.__name__)
def test_a_planted_fault_is_found(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [FOUND_BY[mutant], *range(SEEDS)]
    assert failure(plan(seeds[0])) is None, "the core fails without the planted fault"
    mutant(monkeypatch)
    assert any(failure(plan(seed)) for seed in seeds), f"{mutant.__name__} was not found in {SEEDS} seeds"
