"""Scheduler and agents in virtual time: replicas that do rows one after the other at a rate, loads that take time.

For tests of policy, where what counts is when things end: no faults, no clock, no random number. Messages take a
millisecond. Everything that was granted, revoked or wanted is kept, so that a test can ask why.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.allocation import Options
from pilotlight.core.model import Device, Variant
from pilotlight.core.ranges import span_count
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import JobState, Level
from pilotlight.sim.said import said

MESSAGE_S = 0.001
TICK_S = 0.25


@dataclass
class Running:
    """A replica: its rows (lease, job, index) in order."""

    variant_id: str
    device_id: str
    rate: float
    rows: deque[tuple[str, str, int]] = field(default_factory=deque)
    busy: bool = False


@dataclass
class Machine:
    """A worker. rate: rows/s of each of its devices, by variant or for all; load_s: by where a replica comes from."""

    agent: Agent
    rate: Mapping[str, float]
    load_s: Mapping[str, float]
    wanted: int
    replicas: dict[str, Running] = field(default_factory=dict[str, Running])
    rows_done: int = 0
    last_row_s: float = 0.0
    copy_s: float = MESSAGE_S


@dataclass
class Submitted:
    """A job's input, and when what came of it."""

    rows: int
    read: int = 0
    done: int = 0
    began_s: float = 0.0
    ended_s: float | None = None
    state: JobState | None = None


class Virtual:
    """Add workers, submit jobs, `run`."""

    def __init__(self, options: Options | None = None) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(options or Options())
        self.machines: dict[str, Machine] = {}
        self.jobs: dict[str, Submitted] = {}
        self.said: list[tuple[float, do.ManagerDecision]] = []
        self.loads: list[tuple[float, str, str, str]] = []
        """When, on which worker, which variant was loaded, and from where."""
        self.copies: list[tuple[float, str, str, Level, str]] = []
        """When, by which worker, which variant was staged or parked, and from which other worker."""
        self.variants: dict[str, Variant] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0
        self.after(TICK_S, self._tick)

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        self._made += 1
        heapq.heappush(self._heap, (self.now + seconds, self._made, what))

    def run(self, until: Callable[[], object], within_s: float = 1e4) -> None:
        """Let time pass until something holds."""
        end = self.now + within_s
        while not until():
            self.now, _, what = heapq.heappop(self._heap)
            assert self.now <= end, f"it did not come to that within {within_s} s"
            what()

    def pass_s(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        self.run(lambda: self._heap[0][0] > end)

    # --- what a test does

    def add_worker(
        self,
        rate: float | Mapping[str, float] = 10.0,
        *,
        kind: str = "gpu",
        devices: int = 1,
        device_bytes: int = 15,
        host_bytes: int = 0,
        load_s: float | Mapping[str, float] = 1.0,
        wanted: int = 4,
        host: str = "host",
        serves: bool = False,
        copy_s: float = MESSAGE_S,
    ) -> str:
        name = f"worker-{len(self.machines) + 1}"
        facts = tuple(Device(f"d{n}", kind, device_bytes) for n in range(devices))
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys("pqvwxyz", rate)
        loads = load_s if isinstance(load_s, Mapping) else {"cold": load_s, "staged": load_s, "parked": load_s / 4}
        self.machines[name] = Machine(Agent(name, facts, 10.0, host_bytes), rates, loads, wanted, copy_s=copy_s)
        self.manager(ev.WorkerJoined(name, 1, host, facts, memory_bytes=host_bytes, serves_files=serves))
        self.agent(name, ev.ManagerFound(1))
        return name

    def kill_worker(self, name: str) -> None:
        """It is gone, and so is whatever it was about to do."""
        del self.machines[name]
        self.manager(ev.WorkerLost(name, "killed"))

    def submit(
        self, rows: int, variant: str = "v", *, weight: float = 1.0, need: int = 10, has_files: bool = False
    ) -> str:
        job_id = f"job-{len(self.jobs) + 1}"
        self.jobs[job_id] = Submitted(rows, began_s=self.now)
        self.variants[variant] = Variant(variant, variant, need, has_files)
        self.manager(ev.JobSubmitted(job_id, job_id, self.variants[variant], weight))
        return job_id

    def pin(self, variant: str, need: int = 10, *, has_files: bool = False) -> None:
        self.variants[variant] = Variant(variant, variant, need, has_files)
        self.manager(ev.VariantPinned(self.variants[variant], on=True))

    def ended(self, *job_ids: str) -> bool:
        return all(self.jobs[job_id].state is not None for job_id in job_ids or self.jobs)

    def took_s(self, job_id: str) -> float:
        job = self.jobs[job_id]
        assert job.ended_s is not None
        return job.ended_s - job.began_s

    def wants(self, name: str, device_id: str = "d0") -> tuple[str, ...]:
        return self.scheduler.state.workers[name].devices[device_id].wants

    def live(self) -> list[str]:
        """The variants of all live or loading replicas, sorted."""
        return sorted(r.variant_id for machine in self.machines.values() for r in machine.replicas.values())

    # --- carrying out

    def manager(self, event: ev.ManagerEvent) -> None:
        for decision in self.scheduler.handle(event, self.now):
            self.said.append((self.now, decision))
            self._manager_does(decision)

    def _manager_does(self, decision: do.ManagerDecision) -> None:
        match decision:
            case do.SendWants(name, version, wants, _):
                self._down(
                    name, ev.WantsChanged(1, version, tuple((d, self.variants[v], level) for d, v, level in wants))
                )
            case do.GrantRows(name, lease_id, job_id, spans, isolated, _, avoid):
                self._down(name, ev.JobDefined(job_id, self.scheduler.state.jobs[job_id].variant_id))
                self._down(name, ev.LeaseGranted(1, lease_id, job_id, spans, isolated, avoid))
            case do.RevokeRows(name, lease_id, rows):
                self._down(name, ev.LeaseRevoked(1, lease_id, rows))
            case do.NameSource(name, variant_id, source):
                self._down(name, ev.SourceNamed(1, variant_id, source))
            case do.ReadRows(job_id, rows):
                job = self.jobs[job_id]
                start, job.read = job.read, min(job.rows, job.read + rows)
                read = ev.RowsRead(job_id, start, job.read, job.read == job.rows)
                self.after(MESSAGE_S, lambda: self.manager(read))
            case do.EndJob(job_id, state):
                self.jobs[job_id].state, self.jobs[job_id].ended_s = state, self.now
                for name in self.machines:
                    self._down(name, ev.JobForgotten(job_id))
            case _:
                pass

    def _down(self, name: str, event: ev.AgentEvent) -> None:
        self.after(MESSAGE_S, lambda: self.agent(name, event))

    def _up(self, event: ev.ManagerEvent) -> None:
        self.after(MESSAGE_S, lambda: self.manager(event))

    def agent(self, name: str, event: ev.AgentEvent) -> None:
        machine = self.machines.get(name)
        if machine is None:
            return
        for decision in machine.agent.handle(event, self.now):
            self._agent_does(name, machine, decision)

    def _agent_does(self, name: str, machine: Machine, decision: do.AgentDecision) -> None:
        match decision:
            case do.StartReplica(replica_id, device_id, variant_id, origin):
                machine.replicas[replica_id] = Running(variant_id, device_id, machine.rate[variant_id])
                self.loads.append((self.now, name, variant_id, origin))
                self.after(machine.load_s[origin], lambda: self._live(name, replica_id, machine.load_s[origin]))
            case do.StopReplica(replica_id):
                if machine.replicas.pop(replica_id, None) is not None:
                    self.after(MESSAGE_S, lambda: self.agent(name, ev.ReplicaExited(replica_id, "stopped")))
            case do.FeedRows(replica_id, lease_id, job_id, spans):
                rows = [(lease_id, job_id, index) for start, stop in spans for index in range(start, stop)]
                machine.replicas[replica_id].rows.extend(rows)
                self._serve(name, replica_id)
            case do.MakeCopy(variant_id, level, source):
                self.copies.append((self.now, name, variant_id, level, source))
                made = ev.CopyMade(variant_id, level, self.variants[variant_id].memory_bytes, 0.0)
                self.after(machine.copy_s, lambda: self._copied(name, made, source))
            case do.DropCopy(variant_id):
                self.after(MESSAGE_S, lambda: self.agent(name, ev.CopyGone(variant_id, Level.PARKED)))
            case do.SendResident(replica_id):
                self._up(ev.ReplicaReported(name, self._fact(machine, replica_id)))
            case do.DropRows():
                pass
            case _:
                assert not isinstance(decision, do.SendDied | do.SendLeaving), decision
                event = said(name, decision)
                assert event is not None, decision
                self._up(event)

    def _fact(self, machine: Machine, replica_id: str) -> ev.ReplicaFact:
        held = machine.agent.residences.replicas[replica_id]
        load_s = machine.load_s[held.origin] if held.wanted else 0.0
        return ev.ReplicaFact(
            held.device_id,
            held.variant.variant_id,
            replica_id,
            held.state,
            held.wanted,
            held.memory_bytes,
            origin=held.origin,
            load_s=load_s,
        )

    def _live(self, name: str, replica_id: str, load_s: float) -> None:
        machine = self.machines.get(name)
        if machine is not None and replica_id in machine.replicas:
            need = self.variants[machine.replicas[replica_id].variant_id].memory_bytes
            self.agent(name, ev.ReplicaLive(replica_id, machine.wanted, need))

    def _copied(self, name: str, made: ev.CopyMade, source: str) -> None:
        if source and source not in self.machines:
            self.agent(name, ev.CopyFailed(made.variant_id, made.level, f"{source} does not answer"))
        else:
            self.agent(name, made)

    def _serve(self, name: str, replica_id: str) -> None:
        replica = self.machines[name].replicas.get(replica_id)
        if replica is not None and replica.rows and not replica.busy:
            replica.busy = True
            self.after(1.0 / replica.rate, lambda: self._row_done(name, replica_id))

    def _row_done(self, name: str, replica_id: str) -> None:
        machine = self.machines[name]
        replica = machine.replicas.get(replica_id)
        if replica is None:
            return
        replica.busy = False
        lease_id, job_id, index = replica.rows.popleft()
        started = min(1, len(replica.rows))
        machine.rows_done += 1
        machine.last_row_s = self.now
        spans = ((index, index + 1),)
        self.agent(name, ev.RowsFinished(replica_id, lease_id, spans, machine.wanted, started))
        self.after(MESSAGE_S, lambda: self._written(ev.RowsWritten(job_id, spans, lease_id, name, replica.device_id)))
        self._serve(name, replica_id)

    def _written(self, event: ev.RowsWritten) -> None:
        belief = self.scheduler.state.jobs.get(event.job_id)
        if belief is None or event.spans[0][0] in belief.done:
            return
        self.jobs[event.job_id].done += span_count(event.spans)
        self.manager(event)

    def _tick(self) -> None:
        for name, machine in self.machines.items():
            self.manager(ev.WorkerHeard(name, machine.agent.started))
            self.agent(name, ev.Tick())
        self.manager(ev.Tick())
        self.scheduler.check()
        self.after(TICK_S, self._tick)

    # --- what was said

    def grants(self) -> list[do.GrantRows]:
        return [decision for _, decision in self.said if isinstance(decision, do.GrantRows)]

    def parked(self, name: str) -> set[str]:
        """What a worker was last asked to park."""
        last = [d for _, d in self.said if isinstance(d, do.SendWants) and d.worker_id == name][-1]
        return {variant_id for _, variant_id, level in last.wants if level is Level.PARKED}
