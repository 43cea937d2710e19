"""A simulated worker: the real `core.agent`, and replicas, disks and loads that take the time they take.

It does what `worker.loop` does, with virtual processes. Rows of a step end together, so at a death what had begun is
lost and what had not goes back, as in reality.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.model import Device
from pilotlight.core.ranges import IndexSet, Span, span_count
from pilotlight.core.transitions import Level, ReplicaState
from pilotlight.sim import steps
from pilotlight.sim.clock import Timer
from pilotlight.sim.copies import Copies
from pilotlight.sim.process import Process, Results, variant_of
from pilotlight.sim.rules import overdue
from pilotlight.sim.said import said
from pilotlight.sim.spec import Kind, Model, Work
from pilotlight.sim.surroundings import Host, Surroundings

DIES_AFTER_S = 0.05
"""A replica that a row, or its device, kills dies so long after it began."""


class Machine:
    """One worker and the host it runs on."""

    def __init__(self, name: str, kind: Kind, host: Host, around: Surroundings) -> None:
        self.name = name
        self.host = host
        self.kind = kind
        self.facts = tuple(Device(f"gpu{n}", kind.name, kind.memory_bytes, kind.is_host) for n in range(kind.devices))
        self.agent = Agent(name, self.facts, around.pace.orphan_s, kind.host_bytes)
        self.processes: dict[str, Process] = {}
        self.unacked: dict[int, ev.RowsWritten] = {}
        """Results that the manager has not acknowledged, by number."""
        self.bad: set[str] = set()
        """Devices on which every replica dies at its first row."""
        self.unloadable: set[str] = set()
        """Devices on which no load succeeds."""
        self.copies = Copies(host, around, self.hear)
        self.joined_s = around.clock.now
        self.gone = False
        self.heard_s = self.woke_s = self.answered_s = -1e9
        self._around = around
        self._clock = around.clock
        self._paused_until_s = 0.0
        self._overslept = False
        """It was paused, and has not heard anything since."""
        self._alarm: Timer | None = None
        """Its next tick."""
        self._backlog: list[ev.AgentEvent] = []
        self._imported_s: float | None = None
        """When its runtime has, or will have, imported its libraries."""
        self._made = 0
        self._loaded_devices: set[str] = set()
        host.machines.append(self)
        for variant_id, size in host.staged.items():
            self.hear(ev.CopyMade(variant_id, Level.STAGED, int(size), 0.0))
        self._set_alarm()

    # --- what happens to it

    def hear(self, event: ev.AgentEvent) -> None:
        """The agent takes in an event, later if it is paused."""
        if self.gone:
            return
        if self.paused:
            self._backlog.append(event)
            return
        now, agent = self._clock.now, self.agent
        idles = self._around.checking and isinstance(event, ev.Tick) and agent.due_s > now
        if not self._overslept:
            agent.listened(now)
        self._overslept = False
        decisions = agent.handle(event, now)
        assert not (idles and decisions), f"{self.name} had nothing to do before {agent.due_s}, and did {decisions}"
        for decision in decisions:
            self._does(decision)
        if self._around.checking:
            self.check()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Have it tick when something is due; at each tick where a world is checked: those between must do nothing."""
        pace = self._around.pace
        if self.gone:
            if self._alarm is not None:
                self._alarm.cancel()
            return
        due_s = self._clock.now + pace.tick_s
        if not self._around.checking:
            due_s = max(due_s, min(self.agent.due_s, self.heard_s + pace.heard_s))
        if self._alarm is not None:
            if self._alarm.what is not None and self._alarm.due_s <= due_s:
                return
            self._alarm.cancel()
        self._alarm = self._clock.at(due_s, self._ring)

    def _ring(self) -> None:
        self.tick()
        self._set_alarm()

    def tick(self) -> None:
        """Time passed; a sign of life where no results went out for a while."""
        if self.gone or self.paused:
            return
        if self._around.checking or self.agent.due_s <= self._clock.now:
            self.hear(ev.Tick())
        if not self.gone and self._clock.now - self.heard_s >= self._around.pace.heard_s:
            self.heard_s = self._clock.now
            self.say(ev.WorkerHeard(self.name, self.agent.started))
        late = overdue(self.agent, self._clock.now) if self._around.checking and not self.gone else None
        assert not late, f"{self.name} forgot {late}"

    def pause(self, seconds: float) -> None:
        """The agent's process stops for a while (its replicas go on), and wakes up late."""
        if not self.paused:
            self._clock.after(seconds, self._wake)
            self._paused_until_s = self._clock.now + seconds
            self.agent.listened(self._clock.now)
            self._overslept = True

    def suspend(self, seconds: float) -> None:
        """All processes of the worker stop for a while, as a batch system does it, and go on where they were."""
        if self.paused:
            return
        self.pause(seconds)
        for process in self.processes.values():
            process.timers = [self._clock.delay(timer, seconds) for timer in process.timers]

    @property
    def paused(self) -> bool:
        """Whether the agent's process stands still."""
        return self._clock.now < self._paused_until_s

    def _wake(self) -> None:
        backlog, self._backlog = self._backlog, []
        self.woke_s = self._clock.now
        first = self._around.coin()  # its clock and its pipes are looked at in any order
        if first:
            self.tick()
        for event in backlog:
            self.hear(event)
        if not first:
            self.tick()

    def kill_replica(self, replica_id: str, reason: str = "killed by SIGKILL") -> None:
        """A replica's process dies."""
        process = self.processes.pop(replica_id, None)
        if process is not None:
            self._stop(process)
            self.hear(ev.ReplicaExited(replica_id, reason))

    def end(self) -> None:
        """The worker is gone, with all its processes; what its disk holds stays."""
        self.gone = True
        self._set_alarm()
        self.host.machines.remove(self)
        for process in self.processes.values():
            self._stop(process)
        self.processes.clear()
        self.copies.end()
        self._around.meter.was_there(self.kind, self._clock.now - self.joined_s)

    def join(self) -> ev.WorkerJoined:
        """What it says of itself to a manager."""
        held = [r for r in self.agent.replicas.values() if r.state is not ReplicaState.STOPPING]
        facts = tuple(self._fact(replica.replica_id) for replica in held)
        copies = tuple(
            ev.CopyFact(variant_id, level, copy.bytes)
            for variant_id, level, copy in self.agent.residences.made_copies()
        )
        known = dict.fromkeys([fact.variant_id for fact in facts] + [copy.variant_id for copy in copies])
        variants = tuple(variant_of(self._around.models[variant_id]) for variant_id in known)
        return ev.WorkerJoined(
            self.name,
            1,
            self.host.name,
            self.facts,
            facts,
            copies,
            variants,
            self.kind.host_bytes,
            serves_files=self._around.pace.peers,
        )

    def say(self, event: ev.ManagerEvent) -> None:
        """Send the manager a message."""
        self._around.send(self, event)

    def check(self) -> None:
        """Assert what must hold of the agent, and that it believes what is so."""
        self.agent.check()
        for replica_id in self.processes:
            assert replica_id in self.agent.replicas, f"{replica_id} runs and the agent of {self.name} doesn't know"

    # --- carrying out

    def _does(self, decision: do.AgentDecision) -> None:
        match decision:
            case do.StartReplica(replica_id, device_id, variant_id, origin):
                self._start(replica_id, device_id, self._around.models[variant_id], origin)
            case do.StopReplica(replica_id, kill):
                held = self.agent.replicas[replica_id]
                assert kill or not held.rows, f"{replica_id} of {self.name} is in use and was asked to end"
                process = self.processes.pop(replica_id, None)
                if process is not None:
                    assert not held.hung or self._hangs(process), f"{replica_id} was killed ({held.killed_because})"
                    self._stop(process)
                    self._later(lambda: self.hear(ev.ReplicaExited(replica_id, "stopped")))
            case do.SleepReplica(replica_id):
                process = self.processes.get(replica_id)
                if process is not None:
                    assert not process.held, f"{replica_id} on {self.name} is to sleep and has rows"
                    seconds = self._to_device_s(process.model.memory_bytes)
                    self._after(replica_id, seconds, lambda: self._slept(replica_id))
            case do.WakeReplica(replica_id):
                process = self.processes.get(replica_id)
                if process is not None:
                    process.load_s = self._to_device_s(process.model.memory_bytes)
                    self._after(replica_id, process.load_s, lambda: self._live(replica_id, "asleep"))
            case do.MakeCopy(variant_id, level, source):
                if any(v.variant_id == variant_id for slot in self.agent.slots.values() for v in slot.wants):
                    self._imports(self._around.models[variant_id])
                self.copies.make(self._around.models[variant_id], level, source)
            case do.DropCopy(variant_id):
                for process in self.processes.values():
                    built = process.model.variant_id == variant_id and process.origin == "parked"
                    assert not built, f"{self.name} drops what {process.replica_id} is being built from"
                self._later(lambda: self.hear(ev.CopyGone(variant_id, Level.PARKED)))
            case do.FeedRows(replica_id, lease_id, job_id, spans):
                process = self.processes.get(replica_id)
                if process is not None:
                    assert process.live, f"{replica_id} on {self.name} is not live and gets rows"
                    process.held.append((lease_id, job_id, IndexSet(spans)))
                    self._work(process)
            case do.Exit(reason):
                self._around.left(self, reason)
            case _:
                self._reports(decision)

    def _reports(self, decision: do.AgentDecision) -> None:
        if isinstance(decision, do.SendResident):
            self.say(ev.ReplicaReported(self.name, self._fact(decision.replica_id)))
        elif (event := said(self.name, decision)) is not None:
            self.say(event)
        else:
            assert isinstance(decision, do.DropRows), decision

    def _fact(self, replica_id: str) -> ev.ReplicaFact:
        held = self.agent.replicas[replica_id]
        process = self.processes.get(replica_id)
        return ev.ReplicaFact(
            held.device_id,
            held.variant.variant_id,
            replica_id,
            held.state,
            held.wanted,
            held.memory_bytes,
            origin=held.origin,
            load_s=process.load_s if process is not None and held.state is ReplicaState.LIVE else 0.0,
            stages=process.stages if process is not None else {},
        )

    # --- replicas

    def _start(self, replica_id: str, device_id: str, model: Model, origin: str) -> None:
        process = Process(replica_id, device_id, model, began_s=self._clock.now, origin=origin)
        self.processes[replica_id] = process
        import_s = max(0.0, self._imports(model) - self._clock.now)
        process.stages = {"import": import_s, "start": model.start_s}
        start_s = import_s + model.start_s
        if device_id in self.unloadable:
            self._after(replica_id, start_s, lambda: self._cannot_load(replica_id))
            return
        last = {"to_device": self._to_device_s(model.file_bytes), "warm": model.warm_s / self.kind.speed}
        finish_s = sum(last.values())

        def read() -> None:
            if origin == "parked":
                self._around.meter.moved("memory", model.file_bytes)
                self._after(replica_id, model.file_bytes / self.kind.memory_bytes_per_s, finish)
                return
            source = self.host.disk if origin == "staged" else self._around.source("")
            assert source is not None
            self._around.meter.moved("disk" if origin == "staged" else "origin", model.file_bytes)
            process.reads.append((source, source.read(model.file_bytes, finish)))

        def finish() -> None:
            process.reads.clear()
            process.stages |= {"read": self._clock.now - process.began_s - start_s, **last}
            self._after(replica_id, finish_s, lambda: self._live(replica_id, origin))

        self._after(replica_id, start_s, read)

    def _imports(self, model: Model) -> float:
        """When libraries are imported. That begins at the first need, while files are still copied."""
        if self._imported_s is None:
            self._imported_s = self._clock.now + model.import_s
        return self._imported_s

    def _after(self, replica_id: str, seconds: float, what: Callable[[], None]) -> None:
        """Something a replica does later, if it is still there."""
        process = self.processes[replica_id]
        process.timers = [timer for timer in process.timers if timer.what is not None]
        process.timers.append(self._clock.after(seconds, what))

    def _live(self, replica_id: str, origin: str) -> None:
        process = self.processes[replica_id]
        process.live, process.origin = True, ""
        if origin != "asleep":
            process.load_s = self._clock.now - process.began_s
            if process.device_id not in self._loaded_devices:
                self._loaded_devices.add(process.device_id)
                self._around.meter.first_load_s += process.load_s * self.kind.speed
        self._around.meter.loaded(origin, process.load_s)
        if self._around.pace.report_s > self._around.pace.step_s:
            self._share_device(process)
        model = process.model
        self.hear(ev.ReplicaLive(replica_id, self._wanted(process), model.memory_bytes, model.sleeps))

    def _slept(self, replica_id: str) -> None:
        self.processes[replica_id].live = False
        self.hear(ev.ReplicaSlept(replica_id, 0))

    def _cannot_load(self, replica_id: str) -> None:
        del self.processes[replica_id]
        self.hear(ev.ReplicaFailed(replica_id, "load_failed", "it can't be loaded here"))
        self.hear(ev.ReplicaExited(replica_id, "it can't be loaded here"))

    def _stop(self, process: Process) -> None:
        for timer in process.timers:
            timer.cancel()
        for shared, transfer in process.reads:
            shared.cancel(transfer)
        if process.step is not None:
            self._report_so_far(process)
            meter = self._around.meter
            meter.rows_lost += self._in_step(process)
            meter.lost_s += (self._clock.now - process.began_s) * process.speed
        process.step = None

    # --- rows

    def _wanted(self, process: Process) -> int:
        """At least its slots, and some reports' worth at the speed of the work that it does."""
        job_id = process.held[0][1] if process.held else next(iter(self.agent.jobs), "")
        work = self._around.works.get(job_id)
        pace, rows = self._around.pace, 1.0
        most = steps.ROWS_MAX
        if work is not None and work.row_s:
            seconds = self._report_s(process, job_id)
            rows = seconds * self.kind.speed / work.row_s
            most = max(most, int(rows) if seconds > pace.step_s else 0)
        return max(pace.slots, min(most, int(pace.wanted_steps * rows)))

    def _report_s(self, process: Process, job_id: str) -> float:
        """For how long a replica works before it reports: step by step where others share its device or its host."""
        pace = self._around.pace
        if pace.report_s <= pace.step_s or self.kind.abreast or process.device_id in self.bad:
            return pace.step_s
        if sum(other.live and other.device_id == process.device_id for other in self.processes.values()) > 1:
            return pace.step_s
        return steps.report_s(pace, self._around.left_s(job_id))

    def _work(self, process: Process) -> None:
        """Begin a step, where none is under way and there are rows."""
        if process.step is not None or not process.held or not process.live:
            return
        lease_id, job_id, rows = process.held[0]
        work = self._around.works[job_id]
        limit_s = self._report_s(process, job_id)
        spans, seconds = steps.take(work, rows, limit_s * self.kind.speed)
        if limit_s > self._around.pace.step_s and not work.spares(spans):
            rows.update(spans)
            spans, seconds = steps.take(work, rows, self._around.pace.step_s * self.kind.speed)
        if not rows:
            process.held.popleft()
        if any(job != job_id for _, job, _ in process.held):
            process.held = deque(sorted(process.held, key=lambda held: held[1] == job_id))
        process.step = lease_id, job_id, spans, seconds
        process.began_s = self._clock.now
        process.speed = self.kind.speed / max(self._busy(process.device_id), self.host.slowness())
        if self._dies(process, work):
            return
        if self._hangs(process):
            return  # nothing more is heard of it until the agent's patience ends
        took_s = seconds / process.speed
        self._after(process.replica_id, took_s, lambda: self._stepped(process))
        patience_s = work.request_timeout_s / 4
        if took_s > patience_s:
            self._progress(process, patience_s)

    def _hangs(self, process: Process) -> bool:
        return process.step is not None and process.runs_any(self._around.works[process.step[1]].hangs)

    def _busy(self, device_id: str) -> int:
        """How many replicas share a device's time now."""
        return sum(other.step is not None and other.device_id == device_id for other in self.processes.values())

    def _progress(self, process: Process, every_s: float) -> None:
        """A step that takes long says so now and then."""
        step = process.step

        def say() -> None:
            if process.step is step:
                self.hear(ev.ReplicaProgressed(process.replica_id, self._in_step(process)))
            if process.step is step and process.replica_id in self.processes:
                self._after(process.replica_id, every_s, say)

        self._after(process.replica_id, every_s, say)

    def _dies(self, process: Process, work: Work) -> bool:
        replica_id = process.replica_id
        if process.device_id in self.bad or process.runs_any(work.poison):
            self._after(replica_id, DIES_AFTER_S, lambda: self.kill_replica(replica_id))
            return True
        if process.runs_any(i for i, size in work.outgrows.items() if self.kind.memory_bytes <= size):
            self._after(replica_id, DIES_AFTER_S, lambda: self._outgrown(replica_id))
            return True
        return False

    def _outgrown(self, replica_id: str) -> None:
        self.hear(ev.ReplicaFailed(replica_id, "out_of_memory", "it ran out of memory"))
        self.kill_replica(replica_id, "it ran out of memory")

    def _begun(self) -> int:
        return sum(map(self._in_step, self.processes.values()))

    def _in_step(self, process: Process) -> int:
        """Rows that it has begun: of one step, of all those that it will report together."""
        if process.step is None:
            return 0
        rows, pace = span_count(process.step[2]), self._around.pace
        if pace.report_s <= pace.step_s:
            return rows
        return min(rows, steps.rows_of(self._around.works[process.step[1]], self.kind, pace.step_s))

    def _stepped(self, process: Process) -> None:
        assert process.step is not None
        lease_id, job_id, spans, _ = process.step
        process.step = None
        self._work(process)
        self._report(process, lease_id, job_id, spans)

    def _report_so_far(self, process: Process) -> None:
        """Something happens to a replica: of the steps that it would have reported together, those that are over."""
        assert process.step is not None
        lease_id, job_id, spans, seconds = process.step
        work, pace = self._around.works[job_id], self._around.pace
        if pace.report_s <= pace.step_s:
            return
        worked_s = (self._clock.now - process.began_s) * process.speed
        done, took_s = steps.answered(work, spans, pace.step_s * self.kind.speed, worked_s)
        if done:
            left = IndexSet(spans)
            left.discard(done)
            process.step = lease_id, job_id, left.spans(), seconds - took_s
            process.began_s += took_s / process.speed
            self._report(process, lease_id, job_id, done)

    def _share_device(self, process: Process) -> None:
        """Another replica is live on a device: those that work on it go on step by step."""
        for other in self.processes.values():
            if other is not process and other.device_id == process.device_id and other.step is not None:
                self._report_so_far(other)
                lease_id, job_id, spans, _ = other.step
                for timer in other.timers:
                    timer.cancel()
                other.step = None
                other.held.appendleft((lease_id, job_id, IndexSet(spans)))
                self._work(other)

    def _report(self, process: Process, lease_id: str, job_id: str, spans: list[Span]) -> None:
        """These rows are answered: tell the manager and the agent."""
        process.answered += span_count(spans)
        self._made += 1
        written = ev.RowsWritten(job_id, tuple(spans), lease_id, self.name, process.device_id)
        self.unacked[self._made] = written
        self.heard_s = self.answered_s = self._clock.now
        self._around.send(self, Results(written, self._made, self._begun()))
        self.hear(
            ev.RowsFinished(process.replica_id, lease_id, tuple(spans), self._wanted(process), self._in_step(process))
        )

    def _later(self, what: Callable[[], None]) -> None:
        self._clock.after(self._around.pace.message_s, what)

    def _to_device_s(self, size: float) -> float:
        return size / self.kind.to_device_bytes_per_s
