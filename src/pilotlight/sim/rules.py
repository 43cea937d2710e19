"""What a manager must never decide, whatever befalls it: asserted at each of its decisions, where a world is checked.

`core.state.check` says what must hold of a belief; here is what it takes a world to see. Drops are just (who spoke is
not dropped), charges are just (who ran alone), nobody starves, and no deadline passes unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.model import Job
from pilotlight.core.ranges import span_count
from pilotlight.core.transitions import JobState, ReplicaState

if TYPE_CHECKING:
    from pilotlight.sim.cluster import Cluster

TURNS_MAX = 8.0
"""A job that holds nothing sees others of its context get at most so many times what all workers hold at once, times
how much more they weigh."""


class Rules:
    """Watches the manager of one world."""

    def __init__(self, world: Cluster) -> None:
        self._world = world
        self._passed_over: dict[str, float] = {}
        """Rows over weight that went to others of its context while a job had rows to give and none were taken."""

        self._most: dict[str, int] = {}
        """The most that the workers of a context held at once, as far as was seen."""
        self._asked_back: dict[str, list[tuple[str, float]]] = {}
        """Leases of which a worker was asked for rows and has not answered, and when, by worker."""

    def forget(self) -> None:
        """A new manager begins."""
        self._passed_over.clear()
        self._asked_back.clear()

    def decided(self, event: ev.ManagerEvent, decisions: Sequence[do.ManagerDecision]) -> None:
        """The manager took in an event and decided this."""
        charged: dict[tuple[str, int], int] = {}
        self._answers(event)
        for decision in decisions:
            match decision:
                case do.DropWorker(name, reason):
                    self._drops(name, reason)
                case do.RecordAttempts(job_id, attempts):
                    self._charges(event, job_id, attempts, charged)
                case do.WriteFailure(job_id, index, _, _):
                    self._gives_up(job_id, index, charged)
                case do.GrantRows():
                    self._grants(decision)
                case do.RevokeRows(name, lease_id):
                    self._asked_back.setdefault(name, []).append((lease_id, self._world.clock.now))
                case _:
                    pass
        self._waits()
        if isinstance(event, ev.Tick):
            now = self._world.clock.now
            for worker in self._world.scheduler.state.workers.values():
                assert worker.deadline_s > now, f"{worker.worker_id} was due at {worker.deadline_s} and is believed in"
            for name, asked in self._asked_back.items():
                lease_id, asked_s = asked[0]
                late = now - max(asked_s, self._world.manager_woke_s) > self._world.options.silence_s
                assert not late or self._excused(name), f"{name} was asked for rows of {lease_id} and does not answer"

    def _answers(self, event: ev.ManagerEvent) -> None:
        """A revocation is always answered, also where nothing of the lease is left, unless the connection breaks."""
        match event:
            case ev.WorkerJoined(name) | ev.WorkerLost(name):
                self._asked_back.pop(name, None)
            case ev.RowsReturned(name, lease_id):
                asked = self._asked_back.get(name, [])
                answered = next((one for one in asked if one[0] == lease_id), None)
                if answered is not None:
                    asked.remove(answered)
                    if not asked:
                        del self._asked_back[name]
            case _:
                pass

    def _drops(self, name: str, reason: str) -> None:
        self._asked_back.pop(name, None)
        machine = self._world.machines.get(name)
        assert machine is None or self._excused(name), (
            f"{name} was dropped ({reason}) and spoke {self._world.clock.now - machine.heard_s:.1f} s ago"
        )

    def _excused(self, name: str) -> bool:
        """Whether nothing need have been heard of a worker lately: it, or its connection, is not there or was away."""
        world, machine, link = self._world, self._world.machines.get(name), self._world.links.get(name)
        if machine is None or machine.paused or link is None:
            return True
        recently = world.clock.now - world.options.silence_s - world.pace.heard_s
        return max(machine.woke_s, link.opened_s, link.mute_s) > recently

    def _charges(
        self,
        event: ev.ManagerEvent,
        job_id: str,
        attempts: tuple[tuple[int, int], ...],
        charged: dict[tuple[str, int], int],
    ) -> None:
        known = self._world.outputs[job_id].attempts
        for index, count in attempts:
            before = charged.get((job_id, index), known.get(index, 0))
            charged[job_id, index] = count
            if count > before:
                assert isinstance(event, ev.ReplicaDied), f"{job_id}: row {index} was charged for {event}"
                beside = sum(span_count(spans) for spans in event.rows.values())
                assert beside == 1, f"{job_id}: row {index} was charged and ran beside {beside - 1} others: {event}"

    def _gives_up(self, job_id: str, index: int, charged: dict[tuple[str, int], int]) -> None:
        job = self._world.scheduler.state.jobs.get(job_id)
        if job is None:
            return  # it ended in the same step
        count = charged.get((job_id, index), self._world.outputs[job_id].attempts.get(index, 0))
        assert count >= job.attempts_max, f"{job_id}: row {index} was given up after {count} attempts"

    def _grants(self, grant: do.GrantRows) -> None:
        state = self._world.scheduler.state
        job, lease = state.jobs.get(grant.job_id), state.leases.get(grant.lease_id)
        if job is None or grant.isolated or (lease is not None and lease.hedge):
            return
        rows = span_count(grant.spans)
        self._most[job.variant_id] = max(self._most.get(job.variant_id, 1), rows, job.appetite)
        for other in state.jobs_of(job.variant_id):
            if other is not job and other.job_id in self._passed_over:
                self._passed_over[other.job_id] += rows * other.weight / job.weight

    def _waits(self) -> None:
        """Jobs that hold nothing and have something to give are passed over for so long at most."""
        jobs = self._world.scheduler.state.jobs.values()
        self._passed_over = {job.job_id: self._passed_over.get(job.job_id, 0.0) for job in jobs if _waits(job)}
        for job_id, rows in self._passed_over.items():
            most = TURNS_MAX * self._most.get(self._world.scheduler.state.jobs[job_id].variant_id, 1)
            assert rows <= most, f"{job_id} starves: {rows:.0f} rows went to others of its context"


def overdue(agent: Agent, now: float) -> list[str]:
    """What a worker's tick should have ended or asked for again."""
    late: list[str] = []
    for replica in agent.replicas.values():
        hangs = not replica.killed_because and now >= replica.hangs_at_s
        loads = replica.state is ReplicaState.STARTING and now >= replica.load_until_s
        if hangs or loads or (replica.kill_at_s is not None and now >= replica.kill_at_s):
            late.append(str(replica))
    late += [str(copy) for copy in agent.residences.copies.values() if copy.state == "making" and now >= copy.until_s]
    ends = (agent.drain_until_s, agent.orphaned_until_s)
    return late + [f"its end at {until_s}" for until_s in ends if until_s is not None and now >= until_s]


def _waits(job: Job) -> bool:
    return bool(job.pending) and not job.leases and job.state is JobState.RUNNING
