"""The world: one real scheduler, real agents on simulated machines, messages between them, and all that goes wrong.

What a manager remembers across a crash is what it remembers in reality: outputs, journals, and what workers tell it.
Results are acknowledged when they are written, and come again where no acknowledgement was heard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.allocation import Options
from pilotlight.core.ranges import span_count
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.transitions import JobState
from pilotlight.sim.chance import Chance
from pilotlight.sim.clock import Clock
from pilotlight.sim.links import Shared
from pilotlight.sim.machine import Machine
from pilotlight.sim.meter import Meter
from pilotlight.sim.output import SYNC_S, Output
from pilotlight.sim.process import Results, variant_of
from pilotlight.sim.rules import Rules
from pilotlight.sim.spec import Kind, Model, Origin, Pace, Work
from pilotlight.sim.surroundings import Host, Link, Surroundings

ROWS_READ_MAX = 65_536


class Cluster:
    """Add models, works and machines; `run`. With `checking`, every invariant is asserted after every event."""

    def __init__(
        self,
        models: dict[str, Model],
        *,
        options: Options | None = None,
        pace: Pace | None = None,
        origin: Origin | None = None,
        seed: int = 0,
        checking: bool = False,
    ) -> None:
        origin = origin or Origin()
        self.clock = Clock()
        self.meter = Meter()
        self.pace = pace or Pace()
        self.options = options or Options()
        self.models = models
        self.scheduler = Scheduler(self.options)
        self.machines: dict[str, Machine] = {}
        self.hosts: dict[str, Host] = {}
        self.outputs: dict[str, Output] = {}
        self.notes: list[tuple[float, str, str]] = []
        """(time, subject, text) of what the manager thought worth saying."""
        self.origin = Shared(self.clock, origin.bytes_per_s, per_reader=origin.per_reader, latency_s=origin.latency_s)
        self.epoch = self.options.epoch
        self.checking = checking
        self.manager_down = False
        self.spared = False
        """Nothing befalls the manager any more."""
        self._chance = Chance(seed)
        self.links: dict[str, Link] = {}
        """Open connections, by worker."""
        self._joined: dict[str, Link] = {}
        """Those that the manager speaks on: a newer one takes an older one's place when the worker says who it is."""
        self._works: dict[str, Work] = {}
        self._made = 0
        self._speed = 0.0
        """Of all devices that are there."""
        self._todo: list[ev.ManagerEvent] = []
        self._handling = False
        self._backlog: list[Callable[[], None]] = []
        self._paused_until_s = 0.0
        self._overslept = False
        """The manager was paused, and has not taken in anything since."""
        self.manager_woke_s = 0.0
        self.rules = Rules(self) if checking else None
        self._around = Surroundings(
            self.clock,
            self.pace,
            self.meter,
            models,
            self._works,
            self._source,
            self._holds,
            self.up,
            self._left,
            self._coin,
            self._left_s,
            checking,
        )
        self.clock.after(self.pace.tick_s, self._tick)

    # --- what a scenario does

    def submit(self, work: Work) -> str:
        """A client submits a job."""
        job_id = f"job-{len(self.outputs) + 1}"
        self._works[job_id] = work
        self.outputs[job_id] = Output(work, began_s=self.clock.now)
        self.to_manager(lambda: self._submit(job_id))
        return job_id

    def arrive(self, kind: Kind, host: str = "") -> str:
        """A worker starts, on a new host or on one that was here before (with what its disk holds)."""
        self._made += 1
        name = f"worker-{self._made}"
        if host not in self.hosts:
            host = host or f"host-{self._made}"
            self.hosts[host] = Host(
                host,
                kind,
                Shared(self.clock, kind.disk_bytes_per_s),
                Shared(self.clock, kind.link_bytes_per_s, per_reader=kind.link_bytes_per_s),
            )
        machine = self.machines[name] = Machine(name, kind, self.hosts[host], self._around)
        self.meter.count(self.clock.now, kind.name, 1)
        self.meter.joined += 1
        self._speed += kind.speed * kind.devices
        self._dial(machine)
        return name

    def depart(self, name: str, grace_s: float = 0.0, reason: str = "preempted") -> None:
        """A worker is taken away: after a notice, or at once."""
        machine = self.machines.get(name)
        if machine is None:
            return
        if grace_s > 0:
            machine.hear(ev.DrainAsked(grace_s, reason))
            self.clock.after(grace_s + self.pace.tick_s, lambda: self.depart(name, reason=reason))
            return
        self._remove(machine)
        self._hang_up(name, reason)

    def vanish(self, name: str) -> None:
        """A worker's machine loses power: its connection only falls silent."""
        machine = self.machines.get(name)
        if machine is not None:
            self._remove(machine)
            self.links.pop(name, Link()).open = False

    def kill_a_replica(self, name: str) -> None:
        """The first replica that lives of a worker is killed, if one does."""
        machine = self.machines.get(name)
        live = [process.replica_id for process in machine.processes.values() if process.live] if machine else []
        if machine is not None and live:
            machine.kill_replica(live[0])

    def cut(self, name: str) -> None:
        """A connection breaks; both ends notice, and the worker dials again."""
        machine = self.machines.get(name)
        if machine is not None and name in self.links:
            self._hang_up(name, "its connection broke")
            self.clock.after(self.pace.notice_s, lambda: self.lost_manager(machine))

    def pause_manager(self, seconds: float) -> None:
        """The manager's process stops for a while and wakes up late."""
        if not (self.manager_paused or self.spared):
            self._paused_until_s = self.clock.now + seconds
            self.scheduler.listened(self.clock.now)
            self._overslept = True
            self.clock.after(seconds, self._wake_manager)

    def crash_manager(self, down_s: float = 1.0, *, power: bool = False) -> None:
        """The manager dies; the next one starts after a while. power: what its machine had not synced is lost."""
        if self.manager_down or self.spared:
            return
        self.manager_down = True
        for output in self.outputs.values() if power else ():
            output.lose(self.clock.now - SYNC_S)
        self._backlog.clear()
        self._paused_until_s = 0.0
        self._joined.clear()
        for name in list(self.links):
            self.links.pop(name).open = False
            if name in self.machines:
                machine = self.machines[name]
                self.clock.after(self.pace.notice_s, self._loses(machine))
        self.clock.after(down_s, self._restart_manager)

    def resume(self, job_id: str) -> None:
        """A client runs a job again that was suspended, as soon as a manager is there."""
        if self.manager_down or self.manager_paused:
            self.clock.after(self.pace.dial_s, lambda: self.resume(job_id))
        elif self.outputs[job_id].ended is JobState.SUSPENDED:
            self.outputs[job_id].ended = None
            self._submit(job_id)

    def cancel(self, job_id: str, *, drain: bool) -> None:
        """A client wants a job to end: after what replicas hold, or now."""
        self.outputs[job_id].cancelled = True
        self.manager(ev.JobCancelled(job_id, drain))

    def run(self, until_s: float = float("inf")) -> bool:
        """Until every job has ended, or until a moment. Returns whether all have."""
        return self.clock.run(self.all_ended, until_s)

    def all_ended(self) -> bool:
        """Whether every job that was submitted has ended."""
        return all(output.ended is not None for output in self.outputs.values())

    def close(self) -> None:
        """The end of what is measured: machines that are still there are counted up to now."""
        for machine in list(self.machines.values()):
            self._remove(machine)

    # --- the manager

    def manager(self, event: ev.ManagerEvent) -> None:
        """The scheduler takes in an event, and what it decides is done."""
        self._todo.append(event)
        if self._handling:
            return
        self._handling = True
        while self._todo:
            event = self._todo.pop(0)
            if self.meter.watch is not None:
                self.meter.say(self.clock.now, repr(event))
            if not self._overslept:
                self.scheduler.listened(self.clock.now)
            self._overslept = self._overslept and self.manager_paused
            decisions = self.scheduler.handle(event, self.clock.now)
            if self.rules is not None:
                self.rules.decided(event, decisions)
            for decision in decisions:
                self._does(decision)
            if self.checking and not (isinstance(event, ev.WorkerHeard | ev.Tick) and not decisions):
                self.scheduler.check()
        self._handling = False

    @property
    def manager_paused(self) -> bool:
        """Whether the manager's process stands still."""
        return self.clock.now < self._paused_until_s

    def to_manager(self, what: Callable[[], None]) -> None:
        """Something reaches the manager: now, when it wakes up, or never if it is dead."""
        if self.manager_down:
            return
        if self.manager_paused:
            self._backlog.append(what)
        else:
            what()

    def _wake_manager(self) -> None:
        if self.manager_down or self.manager_paused:
            return
        self.manager_woke_s = self.clock.now
        backlog, self._backlog = self._backlog, []
        ticks = [lambda: self.manager(ev.Tick())]  # its clock and its connections are looked at in any order
        for what in ticks + backlog if self._coin() else backlog + ticks:
            self.to_manager(what)

    def _submit(self, job_id: str) -> None:
        output = self.outputs[job_id]
        output.read = 0
        work = output.work
        self.manager(
            ev.JobSubmitted(
                job_id,
                job_id,
                variant_of(self.models[work.model]),
                work.weight,
                may_hedge=work.may_hedge,
                done=tuple(output.done.spans()),
                attempts=dict(output.attempts),
            )
        )

    def _restart_manager(self) -> None:
        self.epoch += 1
        self.scheduler = Scheduler(dataclasses.replace(self.options, epoch=self.epoch))
        if self.rules is not None:
            self.rules.forget()
        self.scheduler.handle(ev.Tick(), self.clock.now)
        self.manager_down = False
        for job_id, output in self.outputs.items():
            if output.ended is None:
                self._submit(job_id)

    def _does(self, decision: do.ManagerDecision) -> None:
        match decision:
            case do.SendWants(name, version, wants, _):
                listed = tuple((device, variant_of(self.models[v]), level) for device, v, level in wants)
                self._down(name, ev.WantsChanged(self.epoch, version, listed))
            case do.GrantRows(name, lease_id, job_id, spans, isolated, _, avoid):
                work = self._works[job_id]
                self._down(name, ev.JobDefined(job_id, work.model, work.request_timeout_s))
                self._down(name, ev.LeaseGranted(self.epoch, lease_id, job_id, spans, isolated, avoid))
            case do.NameSource(name, variant_id, source):
                self._down(name, ev.SourceNamed(self.epoch, variant_id, source))
            case do.RevokeRows(name, lease_id, rows):
                self._down(name, ev.LeaseRevoked(self.epoch, lease_id, rows))
            case do.ReadRows(job_id, rows):
                epoch = self.epoch
                self.clock.after(self.pace.read_s, lambda: self.to_manager(lambda: self._read(epoch, job_id, rows)))
            case do.WriteFailure(job_id, index, kind, _):
                self._write(job_id, ((index, index + 1),), kind)
                self._todo.append(ev.RowsWritten(job_id, ((index, index + 1),)))
            case do.RecordAttempts(job_id, attempts):
                self.outputs[job_id].attempts.update(attempts)
            case do.EndJob(job_id, state, _, message):
                output = self.outputs[job_id]
                output.ended, output.ended_s, output.message = state, self.clock.now, message
                self.notes.append((self.clock.now, job_id, f"{job_id} {state.value} {message}"))
                for name in self._joined:
                    self._down(name, ev.JobForgotten(job_id))
            case do.DropWorker(name, reason):
                self.notes.append((self.clock.now, name, f"{name} dropped: {reason}"))
                machine, link = self.machines.get(name), self._joined.pop(name, Link())
                link.open = False
                if machine is not None and self.links.get(name) is link:
                    del self.links[name]
                    self.clock.after(self.pace.notice_s, self._loses(machine))
            case do.Note(_, text, subject):
                self.notes.append((self.clock.now, subject, text))

    def _read(self, epoch: int, job_id: str, rows: int) -> None:
        output = self.outputs[job_id]
        if epoch != self.epoch or output.ended is not None:
            return
        start = output.read
        output.read = min(output.work.rows, start + min(rows, ROWS_READ_MAX))
        self.manager(ev.RowsRead(job_id, start, output.read, output.read == output.work.rows))

    def _results(self, machine: Machine, link: Link, results: Results) -> None:
        """What the manager's loop does with results: repeats are dropped, the rest is written, all are acknowledged."""
        written = results.written
        self._down(machine.name, None, lambda: machine.unacked.pop(results.number, None), link)
        self.manager(ev.WorkerHeard(machine.name, results.started))
        job = self.scheduler.state.jobs.get(written.job_id)
        output = self.outputs[written.job_id]
        if job is None:
            return
        fresh = tuple(span for start, stop in written.spans for span in output.done.missing(start, stop))
        rows = span_count(fresh)
        self.meter.rows_repeated += span_count(written.spans) - rows
        if rows:
            self._write(written.job_id, fresh)
            self.manager(dataclasses.replace(written, spans=fresh))

    def _write(self, job_id: str, spans: tuple[ev.Span, ...], error: str = "") -> None:
        output = self.outputs[job_id]
        assert output.ended is None, f"{job_id} had ended when rows of it were written"
        for start, stop in spans:
            assert output.done.add(start, stop) == stop - start, f"{job_id}: a row is in the output twice"
            if error:
                output.errors[start] = error
            else:
                self.meter.useful_s += output.work.total_s(start, stop)
        if self.checking:
            output.unsynced = [(at_s, rows) for at_s, rows in output.unsynced if at_s > self.clock.now - SYNC_S]
            output.unsynced.append((self.clock.now, spans))
        self.meter.wrote(self.clock.now, span_count(spans))

    # --- messages

    def _coin(self) -> bool:
        return self._chance.happens(0.5)

    def _delay_s(self) -> float:
        pace = self.pace
        return pace.message_s + (self._chance.between(0.0, pace.jitter_s) if pace.jitter_s else 0.0)

    def _down(
        self, name: str, event: ev.AgentEvent | None, what: Callable[[], object] | None = None, link: Link | None = None
    ) -> None:
        link = link or self._joined.get(name)
        machine = self.machines.get(name)
        if link is None or machine is None or not link.open or link.broken:
            return
        link.down_s = max(link.down_s, self.clock.now + self._delay_s())

        def arrive() -> None:
            if link.open and not link.broken and not machine.gone:
                if event is not None:
                    machine.hear(event)
                elif what is not None:
                    what()

        self.clock.at(link.down_s, arrive)

    def up(self, machine: Machine, event: ev.ManagerEvent | Results) -> None:
        """A worker says something to the manager."""
        link = self.links.get(machine.name)
        if link is None or not link.open:
            return
        link.up_s = max(link.up_s, self.clock.now + self._delay_s())

        def arrive() -> None:
            if link.open:
                if isinstance(event, Results):
                    self._results(machine, link, event)
                    return
                if isinstance(event, ev.WorkerJoined):
                    self._joins(machine, link)
                self.manager(event)

        self.clock.at(link.up_s, lambda: self.to_manager(arrive))

    def _dial(self, machine: Machine) -> None:
        """A worker connects, and says who it is and what it holds."""
        if machine.gone or machine.name in self.links:
            return
        if self.manager_down or self.manager_paused or machine.paused:
            self.clock.after(self.pace.dial_s, lambda: self._dial(machine))
            return
        self.links[machine.name] = Link(self.clock.now)
        machine.say(machine.join())

    def _joins(self, machine: Machine, link: Link) -> None:
        """The manager hears who speaks on a connection, and says welcome."""
        old = self._joined.pop(machine.name, None)
        if old is not None:
            old.open = False
        self._joined[machine.name] = link
        epoch = self.epoch
        self._down(machine.name, None, lambda: self._welcomes(machine, epoch))

    def _welcomes(self, machine: Machine, epoch: int) -> None:
        """A worker knows its manager, and sends again what was not acknowledged."""
        machine.hear(ev.ManagerFound(epoch))
        for number, written in list(machine.unacked.items()):
            self.up(machine, Results(written, number, machine.agent.started))

    def _hang_up(self, name: str, reason: str) -> None:
        """The manager notices soon that a connection is closed; what had arrived by then was read."""
        link = self.links.pop(name, None)
        if link is None:
            return
        link.broken = True

        def notice() -> None:
            link.open = False
            if self._joined.get(name) is link:
                del self._joined[name]
                self.manager(ev.WorkerLost(name, reason))

        self.clock.at(max(link.up_s, self.clock.now + self.pace.notice_s), lambda: self.to_manager(notice))

    def _loses(self, machine: Machine) -> Callable[[], None]:
        return lambda: self.lost_manager(machine)

    def lost_manager(self, machine: Machine) -> None:
        """A worker notices that its connection is closed, and dials again."""
        machine.hear(ev.ManagerLost())
        self.clock.after(self.pace.dial_s, lambda: self._dial(machine))

    # --- machines

    def _source(self, worker: str) -> Shared | None:
        if not worker:
            return self.origin
        machine = self.machines.get(worker)
        return machine.host.uplink if machine is not None else None

    def _holds(self, worker: str, variant_id: str) -> bool:
        machine = self.machines.get(worker)
        return machine is not None and variant_id in machine.host.staged

    def _left_s(self, job_id: str) -> float:
        output = self.outputs[job_id]
        return (output.work.rows - len(output.done)) * output.work.row_s / max(self._speed, 1e-9)

    def _left(self, machine: Machine, reason: str) -> None:
        """A worker ends itself; what it had said before is read."""
        self._remove(machine)
        self._hang_up(machine.name, reason)

    def _remove(self, machine: Machine) -> None:
        if self.machines.pop(machine.name, None) is None:
            return
        machine.end()
        self.meter.count(self.clock.now, machine.kind.name, -1)
        self.meter.lost += 1
        self._speed -= machine.kind.speed * machine.kind.devices
        machine.host.uplink.fail()

    # --- time

    def _tick(self) -> None:
        if not self.manager_paused:
            self.to_manager(lambda: self.manager(ev.Tick()))
        self.clock.after(self.pace.tick_s, self._tick)
