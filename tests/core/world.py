"""A world of pure machines: one scheduler, several agents, and messages that may be cut off between them.

Time is a number. Every message is delivered in order per connection, or lost with its connection. Replicas are lists of
rows that finish when the test says so. It keeps the one truth that counts: which rows are in the output, how often.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.allocation import Options
from pilotlight.core.model import Device, Variant
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import JobState, Level, ReplicaState
from pilotlight.sim.said import said

WANTED = 4


@dataclass
class Replica:
    """Rows that a replica holds: (lease, job, index), oldest first."""

    variant_id: str
    device_id: str
    live: bool = False
    asleep: bool = False
    changing: bool = False
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
    host: str = "host"
    serves: bool = False
    copying: list[tuple[str, Level, str]] = field(default_factory=list)
    """Copies being made, and from where."""


@dataclass
class Input:
    """A job's input and what came of it."""

    rows: int
    poison: frozenset[int] = frozenset()
    hangs: frozenset[int] = frozenset()
    read: int = 0
    output: dict[int, str] = field(default_factory=dict)
    variant: str = "v"
    ended: JobState | None = None
    attempts: dict[int, int] = field(default_factory=dict)


class World:
    """Drive it by `submit`, `add_worker`, `step`, `kill…`; `check` after each."""

    def __init__(self, options: Options | None = None, devices: int = 1) -> None:
        self.now = 0.0
        self.options = options or Options()
        self.epoch = self.options.epoch
        self.scheduler = Scheduler(self.options)
        self.workers: dict[str, Worker] = {}
        self.jobs: dict[str, Input] = {}
        self.variants: dict[str, Variant] = {}
        self.bad_devices: set[tuple[str, str]] = set()
        self.declared_bytes = 10
        """What jobs say that a variant needs; devices have 15."""
        self.memory_bytes: dict[str, int] = {}
        """What variants really need, where that is another number."""
        self.unloadable: set[tuple[str, str]] = set()
        self.with_files: set[str] = set()
        """Variants that are built from files."""
        self.sleepers: set[str] = set()
        """Variants whose replicas can sleep."""
        self.request_timeout_s = 5.0
        self.outgrows: dict[int, int] = {}
        """Rows that run out of memory on devices of at most so many bytes."""
        self.devices = devices
        self.notes: list[str] = []
        self._made = 0
        self._todo: deque[ev.ManagerEvent] = deque()
        self._busy = False

    # --- what a test does

    def submit(
        self,
        rows: int,
        variant: str = "v",
        poison: frozenset[int] = frozenset(),
        hangs: frozenset[int] = frozenset(),
        **more: object,
    ) -> str:
        job_id = f"job-{len(self.jobs) + 1}"
        self.jobs[job_id] = Input(rows, poison, hangs, variant=variant)
        self.manager(ev.JobSubmitted(job_id, job_id, self.variant(variant), **more))  # type: ignore[arg-type]
        return job_id

    def variant(self, name: str) -> Variant:
        """A variant as its jobs describe it."""
        self.variants[name] = Variant(name, name, self.declared_bytes, has_files=name in self.with_files)
        return self.variants[name]

    def add_worker(
        self,
        kind: str = "kind",
        memory_bytes: int = 15,
        host_bytes: int = 25,
        *,
        host: str = "host",
        serves: bool = False,
    ) -> str:
        self._made += 1
        name = f"worker-{self._made}"
        facts = tuple(Device(f"d{n}", kind, memory_bytes, is_host=kind == "host") for n in range(self.devices))
        self.workers[name] = Worker(Agent(name, facts, 10.0, host_bytes), host=host, serves=serves)
        self.workers[name].up.append(self._join(name))
        self.to_agent(name, ev.ManagerFound(self.epoch))
        return name

    def pin(self, variant: str, *, on: bool = True) -> None:
        self.manager(ev.VariantPinned(self.variant(variant), on))

    def evict(self, variant: str) -> None:
        if variant in self.variants and not self.scheduler.state.jobs_of(variant):
            self.manager(ev.VariantEvicted(variant))

    def restart_manager(self) -> None:
        """The manager dies and another takes over: it knows the outputs, the journals, and what workers tell it."""
        self.epoch += 1
        self.scheduler = Scheduler(dataclasses.replace(self.options, epoch=self.epoch))
        for job_id, job in self.jobs.items():
            if job.ended is None:
                job.read = 0
                done = tuple((index, index + 1) for index in sorted(job.output))
                variant = self.variants[job.variant]
                self.manager(ev.JobSubmitted(job_id, job_id, variant, done=done, attempts=dict(job.attempts)))
        for name, worker in self.workers.items():
            finished = [e for e in worker.up if isinstance(e, ev.RowsWritten)]
            worker.up.clear()
            worker.down.clear()
            self.to_agent(name, ev.ManagerLost())
            self.to_agent(name, ev.ManagerFound(self.epoch))
            worker.up.appendleft(self._join(name))
            worker.up.extend(finished)

    def _join(self, name: str) -> ev.WorkerJoined:
        worker = self.workers[name]
        facts = tuple(
            ev.ReplicaFact(
                r.device_id,
                r.variant_id,
                replica_id,
                worker.agent.replicas[replica_id].state,
                WANTED,
                self._really(r.variant_id),
                load_s=0.1,
            )
            for replica_id, r in worker.replicas.items()
            if replica_id in worker.agent.replicas
            and worker.agent.replicas[replica_id].state is not ReplicaState.STOPPING
        )
        copies = tuple(
            ev.CopyFact(variant_id, level, copy.bytes)
            for variant_id, level, copy in worker.agent.residences.made_copies()
        )
        known = {fact.variant_id for fact in facts} | {copy.variant_id for copy in copies}
        return ev.WorkerJoined(
            name,
            1,
            worker.host,
            tuple(slot.device for slot in worker.agent.slots.values()),
            facts,
            copies,
            tuple(self.variants[variant_id] for variant_id in sorted(known)),
            memory_bytes=25,
            serves_files=worker.serves,
        )

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
        self.to_agent(name, ev.ManagerFound(self.epoch))
        worker.up.appendleft(self._join(name))
        worker.up.extend(finished)  # kept until acknowledged

    def lose_answers(self, name: str) -> None:
        """The sources that a worker is about to hear of are never told."""
        worker = self.workers[name]
        worker.down = deque(event for event in worker.down if not isinstance(event, ev.SourceNamed))

    def old_answer(self, name: str, variant: str) -> None:
        """A manager that was replaced names a source."""
        agent = self.workers[name].agent
        answer = ev.SourceNamed(agent.epoch - 1, variant, "worker-of-old")
        assert not agent.handle(answer, self.now), "an old manager is obeyed"

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
        """A replica does something: goes live, falls asleep, wakes, finishes its oldest row, or dies of it."""
        worker = self.workers[name]
        replica = worker.replicas[replica_id]
        if replica.changing:
            replica.changing, replica.asleep = False, not replica.asleep
            if replica.asleep:
                self.to_agent(name, ev.ReplicaSlept(replica_id, 1))
            else:
                self._goes_live(name, replica_id)
            return
        if not replica.live:
            if (name, replica.device_id) in self.unloadable:
                self.to_agent(name, ev.ReplicaFailed(replica_id, "load_failed", "unloadable"))
                del worker.replicas[replica_id]
                self.to_agent(name, ev.ReplicaExited(replica_id, "it can't load"))
                return
            replica.live = True
            self._goes_live(name, replica_id)
            return
        if not replica.rows:
            return
        lease_id, job_id, index = replica.rows[0]
        if index in self.jobs[job_id].poison or (name, replica.device_id) in self.bad_devices:
            self.kill_replica(name, replica_id)
            return
        if index in self.jobs[job_id].hangs:
            return
        if worker.agent.slots[replica.device_id].device.memory_bytes <= self.outgrows.get(index, 0):
            self.to_agent(name, ev.ReplicaFailed(replica_id, "out_of_memory", "out of memory"))
            self.kill_replica(name, replica_id)
            return
        replica.rows.pop(0)
        spans = ((index, index + 1),)
        self.to_agent(name, ev.RowsFinished(replica_id, lease_id, spans, WANTED, 1))
        worker.up.append(ev.RowsWritten(job_id, spans, lease_id, name, replica.device_id))

    def _goes_live(self, name: str, replica_id: str) -> None:
        variant_id = self.workers[name].replicas[replica_id].variant_id
        can_sleep = variant_id in self.sleepers
        self.to_agent(name, ev.ReplicaLive(replica_id, WANTED, self._really(variant_id), can_sleep))

    def copy(self, name: str, *, ok: bool = True) -> None:
        """The oldest copy that a worker makes is there, or fails, as it must where its source has not got the files."""
        worker = self.workers[name]
        if worker.copying:
            variant_id, level, source = worker.copying.pop(0)
            if ok and (not source or self._has(source, variant_id)):
                self.to_agent(name, ev.CopyMade(variant_id, level, self.variants[variant_id].memory_bytes, 0.1))
            else:
                self.to_agent(name, ev.CopyFailed(variant_id, level, "no room"))

    def _has(self, name: str, variant_id: str) -> bool:
        copies = self.workers[name].agent.residences.made_copies() if name in self.workers else ()
        return any((v, level) == (variant_id, Level.STAGED) for v, level, _ in copies)

    def settle(self, rounds: int = 4000) -> None:
        """No more faults: let everything happen until every job has ended."""
        for _ in range(rounds):
            if all(job.ended for job in self.jobs.values()):
                return
            for name in list(self.workers):
                self.copy(name)
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
                self._down(name, ev.WantsChanged(self.epoch, version, pairs))
            case do.GrantRows(name, lease_id, job_id, spans, isolated, _, avoid):
                variant_id = self.scheduler.state.jobs[job_id].variant_id
                self._down(name, ev.JobDefined(job_id, variant_id, self.request_timeout_s))
                self._down(name, ev.LeaseGranted(self.epoch, lease_id, job_id, spans, isolated, avoid))
            case do.RevokeRows(name, lease_id, rows, _):
                self._down(name, ev.LeaseRevoked(self.epoch, lease_id, rows))
            case do.ReadRows(job_id, rows):
                job = self.jobs[job_id]
                start, job.read = job.read, min(job.rows, job.read + min(rows, 7))
                self._todo.append(ev.RowsRead(job_id, start, job.read, job.read == start))
            case do.WriteFailure(job_id, index, kind, _):
                assert index not in self.jobs[job_id].output
                self.jobs[job_id].output[index] = kind
                self._todo.append(ev.RowsWritten(job_id, ((index, index + 1),)))
            case do.NameSource(name, variant_id, source):
                self._down(name, ev.SourceNamed(self.epoch, variant_id, source))
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
            case do.SleepReplica(replica_id) | do.WakeReplica(replica_id):
                assert not worker.replicas[replica_id].rows, "a replica with rows is to sleep"
                worker.replicas[replica_id].changing = True
            case do.MakeCopy(variant_id, level, source):
                assert variant_id in self.with_files
                assert not source or (level is Level.STAGED and source != name)
                worker.copying.append((variant_id, level, source))
            case do.DropCopy(variant_id):
                self.to_agent(name, ev.CopyGone(variant_id, Level.PARKED))
            case do.FeedRows(replica_id, lease_id, job_id, spans):
                indices = [index for start, stop in spans for index in range(start, stop)]
                replica = worker.replicas[replica_id]
                assert replica.live
                assert not replica.asleep
                assert not replica.changing
                replica.rows += [(lease_id, job_id, index) for index in indices]
                assert len(replica.rows) <= WANTED or agent.replicas[replica_id].alone, "more than it wants"
            case do.Exit():
                while worker.up:
                    self.deliver(name, "up")
                self.workers.pop(name, None)
                self._todo.append(ev.WorkerLost(name, "left"))
                if not self._busy:
                    self.manager(self._todo.popleft())
            case _:
                self._agent_says(name, worker, decision)

    def _agent_says(self, name: str, worker: Worker, decision: do.AgentDecision) -> None:
        agent = worker.agent
        if isinstance(decision, do.SendCopyFailed):
            assert decision.level is Level.STAGED
        if isinstance(decision, do.SendResident):
            replica_id = decision.replica_id
            held = agent.replicas[replica_id]
            need = held.memory_bytes
            variant_id = held.variant.variant_id
            fact = ev.ReplicaFact(held.device_id, variant_id, replica_id, held.state, held.wanted, need, load_s=0.1)
            worker.up.append(ev.ReplicaReported(name, fact))
        elif (event := said(name, decision)) is not None:
            worker.up.append(event)
        else:
            assert isinstance(decision, do.DropRows)

    # --- what must hold

    def check(self) -> None:
        self.scheduler.check()
        for worker in self.workers.values():
            worker.agent.check()

    def check_outputs(self) -> None:
        """Every completed job answered each row once, and only poison rows with an error."""
        for job_id, job in self.jobs.items():
            assert job.ended is JobState.COMPLETED, f"{job_id} ended {job.ended}"
            assert sorted(job.output) == list(range(job.rows)), f"{job_id}: not every row was answered"
            errors = {index for index, answer in job.output.items() if answer != "result"}
            expected = job.poison | job.hangs
            assert errors == expected, f"{job_id}: error rows {errors}, poison {set(expected)}"


def run_quietly(world: World, until: Callable[[], object], ticks: int = 4000, seconds: float = 0.05) -> None:
    """No faults: deliver, work, tick, until something holds."""
    for _ in range(ticks):
        if until():
            return
        for name in list(world.workers):
            world.copy(name)
            while name in world.workers and (world.workers[name].up or world.workers[name].down):
                world.deliver(name, "up")
                world.deliver(name, "down")
            for replica in list(world.workers[name].replicas):
                world.work(name, replica)
        world.tick(seconds)
        world.check()
    raise AssertionError(f"it did not come to that: {world.notes[-10:]}")
