"""What people run without a pool, on the same machines, links, disks and lives: processes that load and run rows.

- `naive`: a fresh process per batch, which imports, reads the model from the origin, loads it
- `files`: the same, but files stay on the node's disk once they were read
- `shards`: as many static shards as devices at the start; a process per worker's life loads once and skips rows that
  are done; the shard of one that is preempted goes to whoever is free next

A preempted batch starts again. Who waits for work stays, and counts as there until the last job ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pilotlight.sim.availability import Life, come, lives
from pilotlight.sim.clock import Clock, Timer
from pilotlight.sim.links import Shared, Transfer
from pilotlight.sim.meter import Meter
from pilotlight.sim.scenario import Scenario
from pilotlight.sim.spec import Kind, Work

SETTLED_S = 600.0
"""Whoever cuts static shards counts the devices that are there at once in so long after the first came."""


@dataclass(slots=True)
class Unit:
    """Rows of a job that one process runs: a batch, or a shard, of which `start` moves on."""

    work: Work
    start: int
    stop: int


@dataclass(slots=True)
class Disk:
    """A host's disk, and the models whose files it holds."""

    shared: Shared
    staged: set[str] = field(default_factory=set[str])


class Baseline:
    """A world without a pool. batch: rows of a batch; 0: static shards. keeps_files: on a node's disk."""

    def __init__(self, scenario: Scenario, *, batch: int = 0, keeps_files: bool = True) -> None:
        self.scenario = scenario
        self.step_s = max(scenario.pace.step_s, scenario.pace.report_s)
        self.batch = batch
        self.keeps_files = keeps_files
        self.clock = Clock()
        self.meter = Meter()
        origin = scenario.origin
        self.origin = Shared(self.clock, origin.bytes_per_s, per_reader=origin.per_reader, latency_s=origin.latency_s)
        self.waiting: deque[Unit] = deque()
        self.idle: list[_Device] = []
        self.unread = sum(work.rows for work in scenario.jobs)
        """Rows that are not in an output yet."""
        self._shards = 0 if batch else _devices_at_start(scenario)
        self._disks: dict[str, Disk] = {}
        self._there: dict[Life, list[_Device]] = {}

    def run(self) -> bool:
        """Until every row is done, or the scenario gives up. Returns whether all are."""
        for work in self.scenario.jobs:
            self.clock.at(work.at_s, self._submits(work))
        come(self.clock, self.scenario, self._begin)
        done = self.clock.run(lambda: not self.unread, self.scenario.give_up_s)
        for life in list(self._there):
            self._end(life)
        return done

    def _submits(self, work: Work) -> Callable[[], None]:
        def submit() -> None:
            size = self.batch or -(-work.rows // self._shards)
            for start in range(0, work.rows, size):
                self.waiting.append(Unit(work, start, min(work.rows, start + size)))
            self.wake()

        return submit

    def wake(self) -> None:
        """Let those who wait take what waits."""
        while self.idle and self.waiting:
            self.idle.pop(0).take(self.waiting.popleft())

    def _begin(self, life: Life) -> None:
        disk = self._disks.setdefault(life.host, Disk(Shared(self.clock, life.kind.disk_bytes_per_s)))
        self.meter.count(self.clock.now, life.kind.name, 1)
        self._there[life] = [_Device(self, life.kind, disk) for _ in range(life.kind.devices)]
        self.idle += self._there[life]
        self.meter.joined += 1
        self.clock.at(life.stop_s, lambda: self._end(life))
        self.wake()

    def _end(self, life: Life) -> None:
        for device in self._there.pop(life, []):
            device.end()
        self.meter.count(self.clock.now, life.kind.name, -1)
        self.meter.lost += 1
        self.meter.was_there(life.kind, self.clock.now - life.start_s)
        self.wake()


class _Device:
    """A device of a life: takes units, loads what they need, runs their rows."""

    def __init__(self, world: Baseline, kind: Kind, disk: Disk) -> None:
        self._world = world
        self._kind = kind
        self._disk = disk
        self._unit: Unit | None = None
        self._loaded = ""
        self._loads = 0
        self._began_s = 0.0
        self._rows: tuple[int, int] | None = None
        """The rows that run now; those of a batch were begun when its first was."""
        self._timer: Timer | None = None
        self._read: tuple[Shared, Transfer] | None = None

    def take(self, unit: Unit) -> None:
        """Run a unit, after loading its model where that isn't loaded."""
        self._unit = unit
        self._began_s = self._world.clock.now
        model = self._world.scenario.models[unit.work.model]
        if self._loaded == unit.work.model and not self._world.batch:
            self._run()
            return
        self._loaded = ""
        self._after(model.import_s + model.start_s, self._fetch)

    def end(self) -> None:
        """Preempted: what runs is lost, and a unit goes back."""
        world, unit = self._world, self._unit
        if self in world.idle:
            world.idle.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._read is not None:
            self._read[0].cancel(self._read[1])
        if unit is None:
            return
        if self._rows is not None:
            self._lose(unit)
        if unit.start < unit.stop:
            world.waiting.appendleft(unit)

    def _lose(self, unit: Unit) -> None:
        """A batch is lost as a whole; of a shard the row that runs."""
        assert self._rows is not None
        start, stop = self._rows
        left_s = (self._world.clock.now - self._began_s) * self._kind.speed
        meter = self._world.meter
        if self._world.batch:
            meter.rows_lost += min(stop - start, int(left_s / unit.work.row_s) + 1) if unit.work.row_s else 0
            meter.lost_s += left_s
            return
        while start < stop and unit.work.seconds(start) <= left_s:
            left_s -= unit.work.seconds(start)
            start += 1
        self._write(unit, start)
        meter.rows_lost += start < stop
        meter.lost_s += left_s if start < stop else 0.0

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self._timer = self._world.clock.after(seconds, what)

    def _fetch(self) -> None:
        assert self._unit is not None
        model = self._world.scenario.models[self._unit.work.model]
        staged = model.variant_id in self._disk.staged
        source, name = (self._disk.shared, "disk") if staged else (self._world.origin, "origin")

        def read() -> None:
            self._read = None
            self._world.meter.moved(name, model.file_bytes)
            if self._world.keeps_files:
                self._disk.staged.add(model.variant_id)
            to_device_s = model.file_bytes / self._kind.to_device_bytes_per_s
            self._after(to_device_s + model.warm_s / self._kind.speed, lambda: self._live(name))

        self._read = source, source.read(model.file_bytes, read)

    def _live(self, origin: str) -> None:
        assert self._unit is not None
        took_s = self._world.clock.now - self._began_s
        meter = self._world.meter
        meter.loaded(origin, took_s)
        if not self._loads:
            meter.first_load_s += took_s * self._kind.speed
        self._loads += 1
        self._loaded = self._unit.work.model
        self._run()

    def _run(self) -> None:
        """Run a batch as a whole, or as much of a shard as takes a step's time."""
        assert self._unit is not None
        unit, work = self._unit, self._unit.work
        stop, seconds = unit.stop, 0.0
        limit_s = float("inf") if self._world.batch else self._world.step_s * self._kind.speed
        if not work.sigma:
            stop = (
                min(unit.stop, unit.start + max(1, int(min(limit_s / work.row_s, unit.stop)))) if work.row_s else stop
            )
            seconds = (stop - unit.start) * work.row_s
        else:
            stop = unit.start
            while stop < unit.stop and (seconds < limit_s or stop == unit.start):
                seconds += work.seconds(stop)
                stop += 1
        self._rows = unit.start, stop
        self._began_s = self._world.clock.now
        self._after(seconds / self._kind.speed, lambda: self._ran(stop))

    def _ran(self, stop: int) -> None:
        assert self._unit is not None
        unit, self._rows = self._unit, None
        self._write(unit, stop)
        if unit.start < unit.stop:
            self._run()
            return
        self._unit = None
        self._world.idle.append(self)
        self._world.wake()

    def _write(self, unit: Unit, stop: int) -> None:
        world, work, rows = self._world, unit.work, stop - unit.start
        if rows <= 0:
            return
        world.meter.useful_s += work.total_s(unit.start, stop)
        unit.start = stop
        world.unread -= rows
        world.meter.wrote(world.clock.now, rows)


def _devices_at_start(scenario: Scenario) -> int:
    """The most devices that are there at once in the time in which somebody would count them."""
    first_s: float | None = None
    there: list[Life] = []
    most = 1
    for life in lives(scenario):
        first_s = max(life.start_s, min(work.at_s for work in scenario.jobs)) if first_s is None else first_s
        if life.start_s > first_s + SETTLED_S:
            break
        there = [other for other in there if other.stop_s > life.start_s] + [life]
        most = max(most, sum(other.kind.devices for other in there))
    return most
