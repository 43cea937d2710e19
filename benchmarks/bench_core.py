"""The manager's machine alone: CPU time and memory per event, by the number of workers and of pending requests.

`Scheduler.handle` is driven directly with made-up events: no socket, no file, no clock but the one made up here. Each
worker has one replica that wants 16 requests and reports 8 rows at a time twice a second; of 1,000 events 90 are signs
of life, 10 rows that come back unstarted, 5 losses and 5 joins. What a decision leads to (rows are read, replicas go
live) comes back as an event. There is a tick every 0.25 s.

    python benchmarks/bench_core.py [--workers 100 1000 10000 100000] [--requests 10000 1000000 100000000] [--seconds 4]

Aims: under 20 microseconds per event; less than twice as much with 100,000 workers as with 100. `--day 10000` simulates
a day of so many workers instead, each reporting once a minute, with a tick every 5 s, a loss and a join every 2.5 s;
aim: under 10 minutes.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from benchmarks.measure import save, show  # noqa: E402
from pilotlight.core import decisions as do  # noqa: E402
from pilotlight.core import events as ev  # noqa: E402
from pilotlight.core.allocation import Options  # noqa: E402
from pilotlight.core.model import Device, Variant  # noqa: E402
from pilotlight.core.scheduler import Scheduler  # noqa: E402
from pilotlight.core.transitions import ReplicaState  # noqa: E402

VARIANT = Variant("v", "model", 10)
WANTED, CHUNK = 16, 8
REPORTS_PER_S, TICK_S = 2.0, 0.25
DAY_STEP_S, DAY_REPORT_S, DAY_SILENCE_S = 2.5, 60.0, 150.0


def clock_s() -> float:
    """What reading the clock of CPU time takes by itself: a system call, and as long as the shortest events."""
    began_s = time.process_time()
    for _ in range(20_000):
        time.process_time()
    return (time.process_time() - began_s) / 20_000


CLOCK_S = clock_s()


class Fleet:
    """A scheduler, its workers, and what its decisions lead to. seen: by kind of event CPU seconds, count, most."""

    def __init__(self, options: Options | None = None, *, timed: bool = True) -> None:
        self.scheduler = Scheduler(options)
        self._timed = timed
        self.now = 0.0
        self.rows = 10**9
        self.seen: dict[str, list[float]] = {}
        self.leases: dict[str, deque[str]] = {}
        self.live: dict[str, None] = {}
        self._todo: deque[ev.ManagerEvent] = deque()
        self.made = 0

    def submit(self, rows: int) -> None:
        self.rows = rows
        self.put(ev.JobSubmitted("job", "job", VARIANT))

    def join(self) -> None:
        self.made += 1
        self.put(ev.WorkerJoined(f"worker-{self.made}", 1, "host", (Device("d", "gpu", 15),), memory_bytes=64))

    def lose(self, name: str) -> None:
        self.leases.pop(name, None)
        self.live.pop(name, None)
        self.put(ev.WorkerLost(name, "preempted"))

    def report(self, name: str) -> None:
        """A worker's next rows are done."""
        held = self.leases.get(name)
        while held:
            lease = self.scheduler.state.leases.get(held[0])
            if lease is None:
                held.popleft()
                continue
            start, stop = lease.open.spans()[0]
            spans = ((start, min(stop, start + CHUNK)),)
            self.put(ev.RowsWritten("job", spans, lease.lease_id, name, "d"))
            return

    def give_back(self, name: str) -> None:
        held = self.leases.get(name)
        lease = self.scheduler.state.leases.get(held[-1]) if held else None
        if lease is not None:
            start, stop = lease.open.spans()[-1]
            self.put(ev.RowsReturned(name, lease.lease_id, ((max(start, stop - 4), stop),)))

    def put(self, event: ev.ManagerEvent) -> None:
        """Have an event handled, and all that follow from it."""
        self._todo.append(event)
        while self._todo:
            event = self._todo.popleft()
            began_s = time.process_time() if self._timed else 0.0
            decisions = self.scheduler.handle(event, self.now)
            took_s = max(0.0, time.process_time() - began_s - CLOCK_S) if self._timed else 0.0
            seen = self.seen.setdefault(type(event).__name__, [0.0, 0, 0.0])
            seen[0] += took_s
            seen[1] += 1
            seen[2] = max(seen[2], took_s)
            for decision in decisions:
                self._does(decision)

    def _does(self, decision: do.ManagerDecision) -> None:
        match decision:
            case do.GrantRows(name, lease_id):
                self.leases.setdefault(name, deque()).append(lease_id)
            case do.RevokeRows(name, lease_id):
                self._todo.append(ev.RowsReturned(name, lease_id, ()))
            case do.SendWants(name, _, wants):
                if any(variant_id == "v" for _, variant_id, _ in wants) and name not in self.live:
                    self.live[name] = None
                    fact = ev.ReplicaFact("d", "v", f"{name}/1", ReplicaState.LIVE, WANTED, 10, load_s=1.0)
                    self._todo.append(ev.ReplicaReported(name, fact))
            case do.ReadRows(job_id, rows):
                start = self.scheduler.state.jobs[job_id].read_upto
                stop = min(self.rows, start + rows)
                self._todo.append(ev.RowsRead(job_id, start, stop, stop == self.rows))
            case _:
                pass

    def tick(self) -> None:
        self.put(ev.Tick())

    # --- time

    def gather(self, workers: int) -> None:
        """Workers come, all within 5 s, until so many are there and live."""
        for number in range(workers):
            self.now += 5.0 / workers
            self.join()
            if number % 250 == 0:
                self.tick()
        while len(self.live) < len(self.scheduler.state.workers) and self.now < 3600.0:
            self.now += TICK_S
            for name in self.scheduler.state.workers:
                if int(self.now / TICK_S) % 20 == 0:
                    self.put(ev.WorkerHeard(name, 0))
            self.tick()

    def work(self, seconds: float, events_max: int) -> int:
        """The usual mix of events for so much CPU time. Returns how many events were handled."""
        before = self.counted()
        began_s = time.process_time()
        names = deque(self.live)
        number = 0
        ticked_s = self.now
        while time.process_time() - began_s < seconds and number < events_max and names:
            number += 1
            self.now += 1.0 / (REPORTS_PER_S * len(names))
            name = names.popleft()
            if name not in self.live:
                continue
            if number % 200 == 7:
                self.lose(name)
                self.join()
                names.append(f"worker-{self.made}")
                continue
            names.append(name)
            if number % 100 == 13:
                self.give_back(name)
            elif number % 10 == 3:
                self.put(ev.WorkerHeard(name, 1))
            else:
                self.report(name)
            if self.now - ticked_s >= TICK_S:
                ticked_s = self.now
                self.tick()
        return self.counted() - before

    def counted(self) -> int:
        return sum(int(count) for _, count, _ in self.seen.values())

    def cpu_s(self) -> float:
        return sum(seconds for seconds, _, _ in self.seen.values())


def measure(workers: int, requests: int, seconds: float) -> dict[str, Any]:
    """One size: gather, work, and what memory it took."""
    gc.collect()
    tracemalloc.start()
    fleet = Fleet()
    fleet.submit(requests)
    fleet.put(ev.WorkerJoined("first", 1, "host", (Device("d", "gpu", 15),)))
    small = min(workers, 1000)
    fleet.gather(small)
    before = tracemalloc.get_traced_memory()[0]
    fleet_bytes = before / small
    tracemalloc.stop()
    fleet = Fleet()
    fleet.submit(requests)
    fleet.gather(workers)
    gathered = dict(fleet.seen)
    gc.collect()
    gc.freeze()
    fleet.seen = {}
    events = fleet.work(seconds, 40 * max(workers, 10_000))
    gc.unfreeze()
    cpu_s = fleet.cpu_s()
    kinds = {kind: 1e6 * seen[0] / seen[1] for kind, seen in fleet.seen.items()}
    return {
        "workers": workers,
        "requests": requests,
        "events": events,
        "us_per_event": 1e6 * cpu_s / max(events, 1),
        "us_by_kind": kinds,
        "ms_max_by_kind": {kind: 1e3 * seen[2] for kind, seen in fleet.seen.items()},
        "us_per_join_at_start": 1e6 * sum(s[0] for s in gathered.values()) / workers,
        "bytes_per_worker": fleet_bytes,
        "bytes_per_million_pending": pending_bytes(requests),
    }


def planned_s(workers: int) -> tuple[float, float]:
    """CPU seconds of the longest step until all of so many idle devices are placed: for a first job, and for a second
    on another context, with which they are divided."""
    fleet = Fleet()
    for _ in range(workers):
        fleet.join()
    longest: list[float] = []
    for variant in (VARIANT, Variant("w", "other", 10)):
        fleet.seen = {}
        fleet.put(ev.JobSubmitted(f"job of {variant.variant_id}", "job", variant))
        for _ in range(4):
            fleet.now += 10.0
            for name in fleet.scheduler.state.workers:
                fleet.put(ev.WorkerHeard(name, 0))
            fleet.tick()
        longest.append(max(most for _, _, most in fleet.seen.values()))
    return longest[0], longest[1]


def pending_bytes(requests: int) -> float:
    """What the belief about requests that no worker can take yet costs, for each million."""
    gc.collect()
    tracemalloc.start()
    fleet = Fleet()
    fleet.submit(requests)
    before = tracemalloc.get_traced_memory()[0]
    job = fleet.scheduler.state.jobs["job"]
    fleet.put(ev.RowsRead("job", job.read_upto, requests, exhausted=True))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / (requests / 1e6)


def day(workers: int, seconds: float) -> None:
    """So much time of a pool: each worker reports once a minute, one is lost and one comes every two and a half s."""
    fleet = Fleet(Options(silence_s=DAY_SILENCE_S), timed=False)
    fleet.submit(10**9)
    began_s = time.process_time()
    fleet.gather(workers)
    end_s = fleet.now + seconds
    names = deque(fleet.live)
    step = 0
    while fleet.now < end_s:
        fleet.now += DAY_STEP_S
        step += 1
        for _ in range(int(len(names) * DAY_STEP_S / DAY_REPORT_S)):
            fleet.report(names[0])
            names.rotate(-1)
        fleet.lose(names.popleft())
        fleet.join()
        names.append(f"worker-{fleet.made}")
        if step % 2 == 0:
            fleet.tick()
    took_s = time.process_time() - began_s
    rows = [[kind, f"{int(count):,}"] for kind, (_, count, _) in fleet.seen.items()]
    show(f"{seconds / 3600:.1f} h of {workers:,} workers: {took_s:.0f} CPU s", ("events", "count"), rows)
    save("core_day", {"workers": workers, "simulated_s": seconds, "cpu_s": took_s, "events": fleet.counted()})


def main() -> None:
    parser = argparse.ArgumentParser(description="The scheduler's CPU time and memory per event.")
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--requests", type=int, nargs="+", default=[10**4, 10**6, 10**8])
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU time of each size's mix of events")
    parser.add_argument("--day", type=int, default=0, help="simulate a day of so many workers instead")
    parser.add_argument("--hours", type=float, default=24.0)
    arguments = parser.parse_args()
    if arguments.day:
        day(arguments.day, 3600.0 * arguments.hours)
        return
    sizes = [(workers, 10**8) for workers in arguments.workers]
    sizes += [(1000, requests) for requests in arguments.requests if requests != 10**8]
    found = [measure(workers, requests, arguments.seconds) for workers, requests in sizes]
    header = ["workers", "requests", "events/s", "us/event", "us to join and be live", "B/worker", "B/million pending"]
    table = [
        [
            f"{figures['workers']:,}",
            f"{figures['requests']:.0e}",
            f"{1e6 / figures['us_per_event']:,.0f}",
            f"{figures['us_per_event']:.1f}",
            f"{figures['us_per_join_at_start']:.0f}",
            f"{figures['bytes_per_worker']:,.0f}",
            f"{figures['bytes_per_million_pending']:,.0f}",
        ]
        for figures in found
    ]
    show("The scheduler alone, CPU time", header, table)
    kinds = list(dict.fromkeys(kind for figures in found for kind in figures["us_by_kind"]))
    by_kind = [[kind, *(f"{figures['us_by_kind'].get(kind, 0.0):.1f}" for figures in found)] for kind in kinds]
    show("us by kind of event", ["workers, requests", *(f"{w:,}, {r:.0e}" for w, r in sizes)], by_kind)
    plans = [(workers, *planned_s(workers)) for workers in arguments.workers]
    plans_table = [[f"{workers:,}", *(f"{1e3 * s:.0f}" for s in both)] for workers, *both in plans]
    show("Plans for idle devices, longest step", ["workers", "first job, ms", "a second beside it, ms"], plans_table)
    ratio = found[len(arguments.workers) - 1]["us_per_event"] / found[0]["us_per_event"]
    print(f"{arguments.workers[-1]:,} workers / {arguments.workers[0]:,} workers: {ratio:.2f}")
    save("core", {"sizes": found, "plans": plans, "ratio": ratio})


if __name__ == "__main__":
    main()
