"""The same claims through Pilotlight: a pool of its own, whose workers are killed on the same schedule.

A kill takes the worker's whole tree of processes at once, as a machine that is gone would; the pool's keeper starts
another one by itself. Nothing is told to the pool beforehand.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.measure import manager_pid
from benchmarks.preemption.claims import LABELS
from benchmarks.preemption.kills import Kill
from benchmarks.preemption.record import Others, Presence, Record
from pilotlight import LLM, Pool
from pilotlight.messages import Notice, Snapshot
from pilotlight.views import JobView, WorkerView
from pilotlight.wire import Operation, WorkerShape

WATCH_S = 0.1


class Watch:
    """Keeps the record from what the pool tells its watchers."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._began_s = time.monotonic()
        self._lives: dict[str, Presence] = {}
        self.last: Snapshot | None = None

    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    def saw(self, message: Snapshot | Notice) -> None:
        if not isinstance(message, Snapshot):
            return
        self.last = message
        at_s = self.now_s()
        for view in message.jobs:
            self._rows(view, at_s)
        for worker in message.workers:
            self._worker(worker, at_s)
        gone = self._lives.keys() - {worker.worker for worker in message.workers if worker.state != "lost"}
        for name in gone:
            life = self._lives.pop(name)
            if life.until_s < 0:
                life.until_s = at_s

    def _rows(self, view: JobView, at_s: float) -> None:
        done = self._record.done
        if not done or view.rows_done > done[-1][1]:
            done.append((at_s, view.rows_done))

    def _worker(self, worker: WorkerView, at_s: float) -> None:
        if worker.state == "lost":
            return
        if worker.worker not in self._lives:
            try:
                words = psutil.Process(worker.pid).cmdline()
                age_s = age_of(worker.pid)
            except (psutil.Error, OSError):
                return
            slot = int(words[words.index("--slot") + 1].split("/")[0])
            before = [life.until_s for life in self._record.present if life.slot == slot]
            life = self._lives[worker.worker] = Presence(slot, max(0.0, at_s - age_s, *before))
            self._record.present.append(life)
        life = self._lives[worker.worker]
        if life.live_s < 0 and any(replica.state == "live" for replica in worker.replicas):
            life.live_s = at_s

    def killed(self, slot: int) -> None:
        """The worker in a slot was killed now; maybe before it had joined."""
        lives = [life for life in self._record.present if life.slot == slot]
        if not lives or lives[-1].until_s >= 0:
            lives.append(Presence(slot, lives[-1].until_s if lives else 0.0))
            self._record.present.append(lives[-1])
        lives[-1].until_s, lives[-1].killed = self.now_s(), True

    def both_work(self) -> bool:
        """Whether every worker that there should be is live and holds rows."""
        workers = self.last.workers if self.last else []
        busy = [w for w in workers if w.rows_leased and any(replica.state == "live" for replica in w.replicas)]
        return len(busy) == len(workers) > 1


def age_of(pid: int) -> float:
    """Seconds since a process started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def worker_in(manager: int, slot: int) -> psutil.Process | None:
    """The agent process in a slot of a pool's machine, if one is there now."""
    for process in psutil.Process(manager).children():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "--slot" in words and words[words.index("--slot") + 1].startswith(f"{slot}/"):
            return process
    return None


def kill_tree(root: psutil.Process) -> None:
    """A worker's agent and all below it, at once: stopped first, so that none sees another's end."""
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


class Striker(threading.Thread):
    """Kills workers while a job runs. `due` yields slots, each when its worker is to be killed."""

    def __init__(self, due: Callable[[Watch, threading.Event], Iterator[int]], watch: Watch, record: Record) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._manager = manager_pid()
        self._due, self._watch, self._record = due, watch, record

    def run(self) -> None:
        for slot in self._due(self._watch, self.over):
            worker = worker_in(self._manager, slot)
            if worker is not None:
                words = worker.cmdline()
                self._record.struck.append((time.time(), words[words.index("--name") + 1]))
                kill_tree(worker)
                self._watch.killed(slot)
                self._record.kills += 1


def on_schedule(kills: Sequence[Kill]) -> Callable[[Watch, threading.Event], Iterator[int]]:
    """For `Striker`: at these times."""

    def due(watch: Watch, over: threading.Event) -> Iterator[int]:
        for kill in kills:
            if over.wait(max(0.0, kill.at_s - watch.now_s())):
                return
            yield kill.slot

    return due


def run(
    way: str,
    model: Path,
    prompts: Path,
    rows: int,
    out: Path,
    speeds: Sequence[float],
    due: Callable[[Watch, threading.Event], Iterator[int]],
) -> Record:
    record = Record(way, rows)
    watch = Watch(record)
    operation = Operation(kind="classify", labels=list(LABELS))
    shapes = [WorkerShape(speed=speed) for speed in speeds]
    with Others() as others, Pool(worker_shapes=shapes, watch_s=WATCH_S) as pool:
        pool.watch(watch.saw)
        striker = Striker(due, watch, record)
        striker.start()
        ended = pool.run_files(LLM(model), operation, [prompts], out, overwrite=True).wait()
        wall_s = watch.now_s()
        striker.over.set()
        striker.join()
    record.others = others.cores
    record.done.append((wall_s, ended.view.rows_done))
    record.end(wall_s)
    record.loads = sum(ended.totals.loads.values())
    record.load_s = sum((life.until_s if life.live_s < 0 else life.live_s) - life.from_s for life in record.present)
    record.measured_rows, record.lost_rows = ended.view.rows_done, ended.totals.rows_lost
    record.lost_s = ended.totals.rows_lost * ended.totals.busy_s / max(1, ended.view.rows_done)
    record.busy_s = ended.totals.busy_s
    record.verdicts = read(out)
    assert ended.view.rows_error == 0, ended.view.errors
    return record


def read(out: Path) -> dict[int, tuple[str, float]]:
    """Index -> label, and by how much it leads."""
    found: dict[int, tuple[str, float]] = {}
    for line in out.read_text().splitlines():
        row = json.loads(line)
        scores = sorted(row["result"]["logprobs"].values(), reverse=True)
        found[row["index"]] = (row["result"]["label"], scores[0] - scores[1])
    return found
