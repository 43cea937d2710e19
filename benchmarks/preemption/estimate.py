"""How long a way would take that loads the model for each batch: measured on a few batches, then replayed on paper.

In full such a run takes hours. What is measured: the time that a batch takes beside its inference, and inference per
row, both while all slots are busy. The replay hands out batches to slots under the very schedule of kills that the
other ways get, and counts what a real run would.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.preemption.kills import HORIZON_S, Kill
from benchmarks.preemption.record import Presence, Record
from benchmarks.preemption.slots import Runner


@dataclass(frozen=True)
class Costs:
    """Seconds: of a worker before its first batch, of a batch beside its inference, of a row at full speed."""

    first_s: float
    batch_s: float
    row_s: float
    measured_rows: int


def costs(runner: Runner, *, stays: bool) -> Costs:
    """From a run without kills. stays: a worker's process outlives its batches."""
    first: list[float] = []
    each: list[float] = []
    busy = [pair for slot in runner.slots for pair in slot.rows_busy]
    for slot in runner.slots:
        if not slot.finished:
            continue
        rows_s = sum(busy_s for _, busy_s in slot.rows_busy[: slot.batches_finished]) / slot.speed
        count = len(slot.finished)
        if stays and count > 1:
            inner_s = rows_s / count
            each.append((slot.finished[-1] - slot.finished[0]) / (count - 1) - inner_s)
            first.append(slot.finished[0] - each[-1] - inner_s)
        elif not stays:
            first.append(0.0)
            each.append((slot.finished[-1] - rows_s) / count)
    row_s = sum(busy_s for _, busy_s in busy) / sum(rows for rows, _ in busy)
    assert each, "the time to measure was too short for two batches of every worker"
    return Costs(statistics.mean(first), max(0.0, statistics.mean(each)), row_s, sum(rows for rows, _ in busy))


@dataclass
class _Slot:
    number: int
    speed: float
    kills: deque[float]
    free_s: float
    life: Presence


def replay(way: str, rows: int, size: int, speeds: Sequence[float], kills: Sequence[Kill], costs: Costs) -> Record:
    """A run of all rows in batches of a size, on paper."""
    record = Record(way, rows, estimated=True, measured_rows=costs.measured_rows)
    slots: list[_Slot] = []
    for number, speed in enumerate(speeds):
        due = deque(kill.at_s for kill in kills if kill.slot == number)
        slots.append(_Slot(number, speed, due, costs.first_s, Presence(number, 0.0)))
        record.present.append(slots[-1].life)
    waiting = deque(min(size, rows - start) for start in range(0, rows, size))
    ends: list[tuple[float, int]] = []
    while waiting:
        slot = min(slots, key=lambda slot: slot.free_s)
        if slot.free_s > HORIZON_S:
            break
        count = waiting.popleft()
        begin_s, row_s = slot.free_s, costs.row_s / slot.speed
        until_s = begin_s + costs.batch_s + count * row_s
        kill_s = slot.kills[0] if slot.kills else float("inf")
        if until_s <= kill_s:
            slot.free_s = slot.life.until_s = until_s
            record.loads += 1
            record.load_s += costs.batch_s
            ends.append((until_s, count))
            continue
        waiting.appendleft(count)
        into_s = kill_s - begin_s - costs.batch_s
        if into_s > 0:
            record.lost_s += into_s
            record.lost_rows += min(count, int(into_s / row_s) + 1)
        record.load_s += max(0.0, min(costs.batch_s, kill_s - begin_s))
        record.kills += 1
        slot.kills.popleft()
        slot.life.until_s, slot.life.killed = kill_s, True
        slot.life = Presence(slot.number, kill_s)
        record.present.append(slot.life)
        slot.free_s = kill_s + costs.first_s
    ends.sort()
    record.done = list(zip((end_s for end_s, _ in ends), itertools.accumulate(count for _, count in ends), strict=True))
    record.end(ends[-1][0])
    return record
