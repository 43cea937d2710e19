"""Runs `hand.py` in worker slots: hands out work, kills on schedule, starts again at once, and keeps the record.

A slot is what a batch system gives: when its process is killed, another starts in its place without delay (kinder than
any queue), and takes the work that was lost or the next there is.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, environment
from benchmarks.preemption.kills import Kill
from benchmarks.preemption.record import Others, Presence, Record


@dataclass(frozen=True)
class Task:
    """Rows that one process does. owner: the only slot that may, or -1."""

    start: int
    stop: int
    out: Path
    owner: int = -1


@dataclass
class Slot:
    """A place for one worker at a time, and what its process was last heard to do."""

    number: int
    speed: float
    process: subprocess.Popen[bytes] | None = None
    task: Task | None = None
    life: Presence | None = None
    spawned_s: float = 0.0
    loading_since_s: float = -1.0
    batch_rows: int = 0
    batch_since_s: float = 0.0
    unread: bytes = b""
    task_rows: int = 0
    """Rows of this task that are done; they count when the task is finished, unless each batch is kept."""
    task_busy_s: float = 0.0
    finished: list[float] = field(default_factory=list[float])
    rows_busy: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    batches_finished: int = 0
    """How many of `rows_busy` belong to tasks that are finished."""


class Runner:
    """One way, run by hand. mode: see `hand.py`."""

    def __init__(self, way: str, mode: str, model: Path, prompts: Path, speeds: Sequence[float]) -> None:
        self._way, self._mode = way, mode
        self._model, self._prompts = model, prompts
        self._log = prompts.with_name("hand.log")
        self.slots = [Slot(number, speed) for number, speed in enumerate(speeds)]
        self._selector = selectors.DefaultSelector()

    def run(
        self,
        tasks: Sequence[Task],
        kills: Sequence[Kill] = (),
        *,
        until_s: float = float("inf"),
        tasks_min: int = 0,
    ) -> Record:
        """Do all tasks, or stop after `until_s` seconds, once every slot has finished `tasks_min`."""
        record = Record(self._way, sum(task.stop - task.start for task in tasks))
        waiting, due = deque(tasks), deque(kills)
        with Others() as others:
            self._began_s = time.monotonic()
            while True:
                now_s = time.monotonic() - self._began_s
                while due and due[0].at_s <= now_s:
                    self._kill(self.slots[due.popleft().slot], record, waiting, now_s)
                for slot in self.slots:
                    self._give(slot, record, waiting)
                working = any(slot.task is not None for slot in self.slots)
                enough = now_s > until_s and all(len(slot.finished) >= tasks_min for slot in self.slots)
                if not working or enough:
                    break
                wait_s = due[0].at_s - now_s if due else 1.0
                for key, _ in self._selector.select(min(1.0, max(0.0, wait_s))):
                    self._read(key.data, record)
            wall_s = time.monotonic() - self._began_s
            for slot in self.slots:
                self._leave(slot)
        record.others = others.cores
        record.end(wall_s)
        record.verdicts = read_verdicts({task.out for task in tasks})
        return record

    def _give(self, slot: Slot, record: Record, waiting: deque[Task]) -> None:
        """Give a slot without work the next task that it may have; without one its allocation ends."""
        if slot.task is not None:
            return
        task = next((task for task in waiting if task.owner in {-1, slot.number}), None)
        if task is None:
            if not waiting or all(task.owner >= 0 for task in waiting):
                self._leave(slot)
            return
        waiting.remove(task)
        slot.task, slot.task_rows, slot.task_busy_s = task, 0, 0.0
        if slot.process is None or self._mode != "serve":
            self._leave(slot, stay=True)
            self._spawn(slot, task, record)
        if self._mode == "serve":
            assert slot.process is not None
            assert slot.process.stdin is not None
            slot.loading_since_s = max(slot.spawned_s, time.monotonic())
            slot.process.stdin.write(f"{task.start}\t{task.stop}\t{task.out}\n".encode())
            slot.process.stdin.flush()

    def _spawn(self, slot: Slot, task: Task, record: Record) -> None:
        rows = [] if self._mode == "serve" else ["--rows", task.start, task.stop, "--out", task.out]
        arguments = [self._mode, self._model, self._prompts, "--speed", slot.speed, *rows]
        with self._log.open("ab") as log:
            slot.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.preemption.hand", *map(str, arguments)],
                stdin=subprocess.PIPE if self._mode == "serve" else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                cwd=ROOT,
                start_new_session=True,
            )
        assert slot.process.stdout is not None
        os.set_blocking(slot.process.stdout.fileno(), False)
        self._selector.register(slot.process.stdout, selectors.EVENT_READ, slot)
        slot.spawned_s = slot.loading_since_s = time.monotonic()
        slot.unread, slot.batch_rows = b"", 0
        if slot.life is None:
            slot.life = Presence(slot.number, slot.spawned_s - self._began_s)
            record.present.append(slot.life)

    def _read(self, slot: Slot, record: Record) -> None:
        process = slot.process
        assert process is not None
        assert process.stdout is not None
        while True:
            data = process.stdout.read(65536)
            if not data:
                break
            slot.unread += data
        *lines, slot.unread = slot.unread.split(b"\n")
        for line in lines:
            self._heard(slot, json.loads(line), record)
        if data == b"" and slot.task is not None:
            end = self._log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"a process of the way {self._way!r} ended before its work was done:\n{end}")

    def _heard(self, slot: Slot, said: dict[str, Any], record: Record) -> None:
        at_s = said["at_s"] - self._began_s
        match said["what"]:
            case "loaded":
                record.loads += 1
                record.load_s += said["at_s"] - slot.loading_since_s
                slot.loading_since_s = -1.0
                if slot.life is not None and slot.life.live_s < 0:
                    slot.life.live_s = at_s
            case "batch":
                slot.batch_rows, slot.batch_since_s = said["rows"], said["at_s"]
            case "done":
                slot.batch_rows = 0
                slot.task_rows += said["rows"]
                slot.task_busy_s += said["at_s"] - slot.batch_since_s
                slot.rows_busy.append((said["rows"], said["busy_s"]))
                if self._mode == "shard":
                    self._count(record, at_s, said["rows"])
            case "finished":
                if self._mode != "shard":
                    self._count(record, at_s, slot.task_rows)
                slot.finished.append(at_s)
                slot.batches_finished = len(slot.rows_busy)
                slot.task = None
            case _:
                pass

    def _count(self, record: Record, at_s: float, rows: int) -> None:
        record.measured_rows += rows
        record.done.append((at_s, record.measured_rows))

    def _kill(self, slot: Slot, record: Record, waiting: deque[Task], now_s: float) -> None:
        """Take the worker away, as a preemption does, and count what it had in hand."""
        process, life = slot.process, slot.life
        if process is None or life is None:
            return
        os.killpg(process.pid, signal.SIGKILL)
        at_s = time.monotonic()
        process.wait()
        task, slot_task_before = slot.task, slot.task_rows
        self._read_last(slot, record)
        if slot.task is not None and task is not None:
            kept = self._mode == "shard"
            rows = slot.batch_rows + (0 if kept else slot_task_before)
            record.lost_rows += rows
            if slot.batch_rows:
                record.lost_s += at_s - slot.batch_since_s
            if not kept:
                record.lost_s += slot.task_busy_s
                task.out.unlink(missing_ok=True)
            if slot.loading_since_s >= 0:
                record.load_s += at_s - slot.loading_since_s
            waiting.appendleft(task)
        record.kills += 1
        life.until_s, life.killed = now_s, True
        slot.task, slot.life = None, None
        self._forget(slot)

    def _read_last(self, slot: Slot, record: Record) -> None:
        task = slot.task
        try:
            self._read(slot, record)
        except SystemExit:
            slot.task = task

    def _leave(self, slot: Slot, *, stay: bool = False) -> None:
        """End a slot's process, whose work is written: torch takes half a second to leave by itself. stay: another one
        follows in the same allocation."""
        if slot.process is not None:
            os.killpg(slot.process.pid, signal.SIGKILL)
            slot.process.wait()
            self._forget(slot)
        if slot.life is not None and not stay:
            slot.life.until_s = time.monotonic() - self._began_s
            slot.life = None
        slot.task = slot.task if stay else None

    def _forget(self, slot: Slot) -> None:
        if slot.process is not None and slot.process.stdout is not None:
            self._selector.unregister(slot.process.stdout)
            slot.process.stdout.close()
            if slot.process.stdin is not None:
                slot.process.stdin.close()
        slot.process = None


def read_verdicts(outs: set[Path]) -> dict[int, tuple[str, float]]:
    """Index -> label and lead, from files of `hand.py`."""
    found: dict[int, tuple[str, float]] = {}
    for out in outs:
        if out.exists():
            for line in out.read_text().splitlines():
                row = json.loads(line)
                found[row["index"]] = (row["label"], row["lead"])
    return found


def cut(rows: int, size: int, folder: Path, *, slots: int = 0) -> list[Task]:
    """The rows in tasks of a size; with `slots`, tasks belong to these in turn."""
    starts = range(0, rows, size)
    return [
        Task(start, min(rows, start + size), folder / f"{start}.jsonl", owner=at % slots if slots else -1)
        for at, start in enumerate(starts)
    ]
