"""A world of pure machines: one scheduler, several agents, and messages that may be cut off between them.

Time is a number. Every message is delivered in order per connection, or lost with its connection. Replicas are lists of
rows that finish when the test says so. It keeps the one truth that counts: which rows are in the output, how often.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.allocation import Options
from pilotlight.core.model import Device, Variant
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import JobState, ReplicaState

WANTED = 4


@dataclass
class Replica:
    """Rows that a replica holds: (lease, job, index), oldest first."""

    variant_id: str
    device_id: str
    live: bool = False
    rows: list[tuple[str, str, int]] = field(default_factory=list)


@dataclass
class Worker:
    """A worker's process: its machine, its replicas, and the two directions of its connection."""

    agent: Agent
    up: deque[object] = field(default_factory=deque)
    down: deque[object] = field(default_factory=deque)
    replicas: dict[str, Replica] = field(default_factory=dict)
    connected: bool = True
    variants: dict[str, Variant] = field(default_factory=dict)


@dataclass
class Input:
    """A job's input and what came of it."""

    rows: int
    poison: frozenset[int] = frozenset()
    read: int = 0
    output: dict[int, str] = field(default_factory=dict)
    ended: JobState | None = None
    attempts: dict[int, int] = field(default_factory=dict)


class World:
    """Drive it by `submit`, `add_worker`, `step`, `kill…`; `check` after each."""

    def __init__(self, options: Options | None = None, devices: int = 1) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(options or Options())
        self.workers: dict[str, Worker] = {}
        self.jobs: dict[str, Input] = {}
        self.variants: dict[str, Variant] = {}
        self.bad_devices: set[tuple[str, str]] = set()
        self.declared_bytes = 10
        """What jobs say that a variant needs; devices have 15."""
        self.memory_bytes: dict[str, int] = {}
        """What variants really need, where that is another number."""
        self.unloadable: set[tuple[str, str]] = set()
        self.devices = devices
        self.notes: list[str] = []
        self._made = 0
        self._todo: deque[ev.ManagerEvent] = deque()
        self._busy = False

    # --- what a test does

    def submit(self, rows: int, variant: str = "v", poison: frozenset[int] = frozenset(), **more: object) -> str:
        job_id = f"job-{len(self.jobs) + 1}"
        self.jobs[job_id] = Input(rows, poison)
        self.variants[variant] = Variant(variant, variant, self.declared_bytes)
        self.manager(ev.JobSubmitted(job_id, job_id, self.variants[variant], **more))  # type: ignore[arg-type]
        return job_id

    def add_worker(self) -> str:
        self._made += 1
        name = f"worker-{self._made}"
        facts = tuple(Device(f"d{n}", "kind", 15) for n in range(self.devices))
        self.workers[name] = Worker(Agent(name, facts, 10.0))
        self.workers[name].up.append(self._join(name))
        self.to_agent(name, ev.ManagerFound(1))
        return name

    def _join(self, name: str) -> ev.WorkerJoined:
        worker = self.workers[name]
        facts = tuple(
            ev.ReplicaFact(
                r.device_id,
                r.variant_id,
                replica_id,
                ReplicaState.LIVE if r.live else ReplicaState.STARTING,
                WANTED,
                self._really(r.variant_id),
                load_s=0.1,
            )
            for replica_id, r in worker.replicas.items()
            if replica_id in worker.agent.replicas and worker.agent.replicas[replica_id].kill_at_s is None
        )
        return ev.WorkerJoined(name, 1, "host", tuple(slot.device for slot in worker.agent.slots.values()), facts)

    def kill_worker(self, name: str) -> None:
        del self.workers[name]
        self.manager(ev.WorkerLost(name, "killed"))

    def cut(self, name: str) -> None:
        """The connection breaks; both ends notice; the worker dials again."""
        worker = self.workers[name]
        finished = [e for e in worker.up if isinstance(e, ev.RowsWritten)]
        worker.up.clear()
        worker.down.clear()
        self.manager(ev.WorkerLost(name, "cut"))
        self.to_agent(name, ev.ManagerLost())
        self.to_agent(name, ev.ManagerFound(1))
        worker.up.appendleft(self._join(name))
        worker.up.extend(finished)  # kept until acknowledged

    def kill_replica(self, name: str, replica_id: str) -> None:
        worker = self.workers[name]
        del worker.replicas[replica_id]
        self.to_agent(name, ev.ReplicaExited(replica_id, "killed by SIGKILL"))

    def drain(self, name: str) -> None:
        self.to_agent(name, ev.DrainAsked(5.0, "asked"))

    def tick(self, seconds: float = 0.25) -> None:
        self.now += seconds
        for name in list(self.workers):
            self.manager(ev.WorkerHeard(name, self.workers[name].agent.started))
            self.to_agent(name, ev.Tick())
        self.manager(ev.Tick())

    def deliver(self, name: str, direction: str) -> None:
        """One message of a connection arrives."""
        worker = self.workers[name]
        if direction == "up" and worker.up:
            event = worker.up.popleft()
            if isinstance(event, ev.RowsWritten):
                self.results(event)
            else:
                self.manager(event)  # type: ignore[arg-type]
        elif direction == "down" and worker.down:
            self.to_agent(name, worker.down.popleft())  # type: ignore[arg-type]

    def work(self, name: str, replica_id: str) -> None:
        """A replica does something: goes live, or finishes its oldest row, or dies of it."""
        worker = self.workers[name]
        replica = worker.replicas[replica_id]
        if not replica.live:
            if (name, replica.device_id) in self.unloadable:
                self.to_agent(name, ev.ReplicaFailed(replica_id, "load_failed", "unloadable"))
                del worker.replicas[replica_id]
                self.to_agent(name, ev.ReplicaExited(replica_id, "it can't load"))
                return
            replica.live = True
            self.to_agent(name, ev.ReplicaLive(replica_id, WANTED, self._really(replica.variant_id)))
            return
        if not replica.rows:
            return
        lease_id, job_id, index = replica.rows[0]
        if index in self.jobs[job_id].poison or (name, replica.device_id) in self.bad_devices:
            self.kill_replica(name, replica_id)
            return
        replica.rows.pop(0)
        spans = ((index, index + 1),)
        self.to_agent(name, ev.RowsFinished(replica_id, lease_id, spans, WANTED, 1))
        worker.up.append(ev.RowsWritten(job_id, spans, lease_id, name, replica.device_id))

    def settle(self, rounds: int = 4000) -> None:
        """No more faults: let everything happen until every job has ended."""
        for _ in range(rounds):
            if all(job.ended for job in self.jobs.values()):
                return
            for name in list(self.workers):
                while name in self.workers and (self.workers[name].up or self.workers[name].down):
                    self.deliver(name, "up")
                    if name in self.workers:
                        self.deliver(name, "down")
                for replica_id in list(self.workers[name].replicas) if name in self.workers else ():
                    for _ in range(WANTED):
                        if name in self.workers and replica_id in self.workers[name].replicas:
                            self.work(name, replica_id)
            self.tick()
            self.check()
        unfinished = [job_id for job_id, job in self.jobs.items() if not job.ended]
        raise AssertionError(f"{unfinished} did not end: {self.notes[-20:]}")

    def _really(self, variant_id: str) -> int:
        return self.memory_bytes.get(variant_id, self.declared_bytes)

    # --- carrying out

    def manager(self, event: ev.ManagerEvent) -> None:
        self._todo.append(event)
        if self._busy:
            return
        self._busy = True
        while self._todo:
            for decision in self.scheduler.handle(self._todo.popleft(), self.now):
                self._manager_does(decision)
        self._busy = False

    def results(self, event: ev.RowsWritten) -> None:
        """What the manager's loop does with results: repeats are dropped, the rest is written."""
        job = self.jobs[event.job_id]
        belief = self.scheduler.state.jobs.get(event.job_id)
        if belief is None:
            return
        fresh = [index for start, stop in event.spans for index in range(start, stop) if index not in belief.done]
        for index in fresh:
            assert index not in job.output, f"{event.job_id}: row {index} is in the output twice"
            job.output[index] = "result"
        spans = tuple((index, index + 1) for index in fresh)
        if spans:
            self.manager(ev.RowsWritten(event.job_id, spans, event.lease_id, event.worker_id, event.device_id))

    def _manager_does(self, decision: do.ManagerDecision) -> None:
        match decision:
            case do.SendWants(name, version, wants, _):
                pairs = tuple((device_id, self.variants[variant_id], level) for device_id, variant_id, level in wants)
                self._down(name, ev.WantsChanged(1, version, pairs))
            case do.GrantRows(name, lease_id, job_id, spans, isolated, _):
                self._down(name, ev.JobDefined(job_id, self.scheduler.state.jobs[job_id].variant_id))
                self._down(name, ev.LeaseGranted(1, lease_id, job_id, spans, isolated))
            case do.RevokeRows(name, lease_id, rows, _):
                self._down(name, ev.LeaseRevoked(1, lease_id, rows))
            case do.ReadRows(job_id, rows):
                job = self.jobs[job_id]
                start, job.read = job.read, min(job.rows, job.read + min(rows, 7))
                self._todo.append(ev.RowsRead(job_id, start, job.read, job.read == start))
            case do.WriteFailure(job_id, index, kind, _):
                assert index not in self.jobs[job_id].output
                self.jobs[job_id].output[index] = kind
                self._todo.append(ev.RowsWritten(job_id, ((index, index + 1),)))
            case do.RecordAttempts(job_id, attempts):
                self.jobs[job_id].attempts.update(attempts)
            case do.EndJob(job_id, state, _, message):
                self.jobs[job_id].ended = state
                self.notes.append(f"{job_id} {state.value} {message}")
                for name in self.workers:
                    self._down(name, ev.JobForgotten(job_id))
            case do.DropWorker(name, _):
                raise AssertionError(f"{name} was dropped though it spoke")
            case do.Note(_, text, _):
                self.notes.append(text)

    def _down(self, name: str, event: object) -> None:
        if name in self.workers:
            self.workers[name].down.append(event)

    def to_agent(self, name: str, event: ev.AgentEvent) -> None:
        worker = self.workers.get(name)
        if worker is None:
            return
        for decision in worker.agent.handle(event, self.now):
            self._agent_does(name, worker, decision)

    def _agent_does(self, name: str, worker: Worker, decision: do.AgentDecision) -> None:
        agent = worker.agent
        match decision:
            case do.StartReplica(replica_id, device_id, variant_id, _):
                worker.replicas[replica_id] = Replica(variant_id, device_id)
            case do.StopReplica(replica_id, kill):
                if replica_id in worker.replicas:
                    rows = worker.replicas[replica_id].rows
                    assert not rows or kill, "a replica with rows was asked to end"
                    del worker.replicas[replica_id]
                    self.to_agent(name, ev.ReplicaExited(replica_id, "stopped"))
            case do.FeedRows(replica_id, lease_id, job_id, spans):
                indices = [index for start, stop in spans for index in range(start, stop)]
                replica = worker.replicas[replica_id]
                replica.rows += [(lease_id, job_id, index) for index in indices]
                assert len(replica.rows) <= WANTED or agent.replicas[replica_id].alone, "more than it wants"
            case do.SendReturned(lease_id, spans):
                worker.up.append(ev.RowsReturned(name, lease_id, spans))
            case do.SendResident(replica_id):
                held = agent.replicas[replica_id]
                need = held.memory_bytes
                variant_id = held.variant.variant_id
                fact = ev.ReplicaFact(held.device_id, variant_id, replica_id, held.state, held.wanted, need, load_s=0.1)
                worker.up.append(ev.ReplicaReported(name, fact))
            case do.SendStopped(device_id, variant_id, _):
                worker.up.append(ev.ReplicaStopped(name, device_id, variant_id))
            case do.SendDied(device_id, variant_id, _, rows, started, reason):
                worker.up.append(ev.ReplicaDied(name, device_id, variant_id, rows, started, reason))
            case do.SendLoadFailed(device_id, variant_id, _, kind, reason):
                worker.up.append(
                    ev.LoadFailed(name, device_id, variant_id, kind == "no_room", reason, kind == "crowded")
                )
            case do.SendLeaving(_, reason):
                worker.up.append(ev.WorkerLeaving(name, reason))
            case do.Exit():
                while worker.up:
                    self.deliver(name, "up")
                self.workers.pop(name, None)
                self._todo.append(ev.WorkerLost(name, "left"))
                if not self._busy:
                    self.manager(self._todo.popleft())
            case do.DropRows():
                pass

    # --- what must hold

    def check(self) -> None:
        self.scheduler.state.check()
        for worker in self.workers.values():
            worker.agent.check()

    def check_outputs(self) -> None:
        """Every completed job answered each row once, and only poison rows with an error."""
        for job_id, job in self.jobs.items():
            assert job.ended is JobState.COMPLETED, f"{job_id} ended {job.ended}"
            assert sorted(job.output) == list(range(job.rows)), f"{job_id}: not every row was answered"
            errors = {index for index, answer in job.output.items() if answer != "result"}
            assert errors == set(job.poison), f"{job_id}: error rows {errors}, poison {set(job.poison)}"
