"""What preemption costs: useful time of all the device time there was, and how soon a dead worker's rows run elsewhere.

    python benchmarks/bench_recovery.py [--passes 6] [--kills 4] [--every-s 4]

A pool of two workers verifies the bundled claims; when both have worked for a few seconds, one worker's whole tree of
processes is killed, each in turn, and the pool's keeper starts another. Efficiency: seconds that replicas worked on
rows whose results arrived, per second that workers were there, after the first start and load of each worker is taken
off. Recovery, from the pool's own event log: from SIGKILL until the manager knows, until the first of the rows that the
worker held is granted to another, and until the first result of one of them is written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from benchmarks.measure import environment, save, show  # noqa: E402
from benchmarks.preemption import ours  # noqa: E402
from benchmarks.preemption.claims import write_prompts  # noqa: E402
from benchmarks.preemption.record import Record  # noqa: E402
from pilotlight.core import decisions as do  # noqa: E402
from pilotlight.core import events as ev  # noqa: E402
from pilotlight.core.ranges import IndexSet  # noqa: E402
from pilotlight.core.story.records import Began, Step  # noqa: E402
from pilotlight.factcheck import bundled  # noqa: E402
from pilotlight.io import eventfile  # noqa: E402


class Held:
    """Which rows each worker has, as the log tells; one job only."""

    def __init__(self) -> None:
        self._rows: dict[str, IndexSet] = {}

    def of(self, worker: str) -> IndexSet:
        return self._rows.setdefault(worker, IndexSet())

    def take(self, step: Step) -> None:
        event = step.event
        if isinstance(event, ev.RowsWritten | ev.RowsReturned):
            for rows in self._rows.values():
                rows.discard(event.spans)
        for decision in step.decisions:
            if isinstance(decision, do.GrantRows):
                self.of(decision.worker_id).update(decision.spans)


def overlap(rows: IndexSet, spans: Iterable[tuple[int, int]]) -> bool:
    return any(rows.within(start, stop) for start, stop in spans)


def recoveries(folder: Path, kills: list[tuple[float, str]]) -> list[dict[str, float]]:
    """Per kill, seconds until the worker was missed, its rows were granted elsewhere, the first of them was done."""
    held = Held()
    found: list[dict[str, float]] = []
    open_: list[tuple[float, IndexSet, dict[str, float]]] = []
    began = 0.0
    for record in eventfile.read(folder):
        if isinstance(record, Began):
            began = record.wall_s
        if not isinstance(record, Step):
            continue
        at_s = began + record.at_s
        event = record.event
        if isinstance(event, ev.WorkerLost):
            killed = next((kill_s for kill_s, worker in kills if worker == event.worker_id), None)
            if killed is not None:
                found.append({"missed": at_s - killed})
                open_.append((killed, held.of(event.worker_id).copy(), found[-1]))
        for kill_s, rows, entry in open_:
            for decision in record.decisions:
                if isinstance(decision, do.GrantRows) and "granted" not in entry and overlap(rows, decision.spans):
                    entry["granted"] = at_s - kill_s
            if isinstance(event, ev.RowsWritten) and "granted" in entry and "done" not in entry:
                entry.update({"done": at_s - kill_s} if overlap(rows, event.spans) else {})
        held.take(record)
    return found


def when_both_work(kills: int, every_s: float) -> Callable[[ours.Watch, threading.Event], Iterator[int]]:
    """For `ours.Striker`: each slot in turn, so many seconds after both workers are seen to work."""

    def due(watch: ours.Watch, over: threading.Event) -> Iterator[int]:
        for number in range(kills):
            while not watch.both_work():
                if over.wait(ours.WATCH_S):
                    return
            if over.wait(every_s):
                return
            yield number % 2

    return due


def efficiency(record: Record) -> float:
    """Useful time of the device time there was, one start and load of each worker taken off."""
    there_s = sum(life.until_s - life.live_s for life in record.present if life.live_s >= 0)
    return record.busy_s / there_s


def main() -> None:
    parser = argparse.ArgumentParser(description="Efficiency under preemption, and time to recovery.")
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--every-s", type=float, default=4.0)
    arguments = parser.parse_args()
    os.environ.update(environment())
    with tempfile.TemporaryDirectory(prefix="recovery-") as scratch:
        folder = Path(scratch)
        os.environ["PILOTLIGHT_LOG_DIR"] = str(folder / "logs")
        prompts = folder / "prompts.jsonl"
        rows = write_prompts(prompts, arguments.passes)
        due = when_both_work(arguments.kills, arguments.every_s)
        record = ours.run("killed", bundled.model_folder(), prompts, rows, folder / "out", (1.0, 1.0), due)
        found = [
            entry for log in (folder / "logs").glob("*/events.jsonl") for entry in recoveries(log.parent, record.struck)
        ]
    report(record, found)


def report(record: Record, found: list[dict[str, float]]) -> None:
    share = efficiency(record)
    loads = [life.live_s - life.from_s for life in record.present if life.live_s >= 0]
    table: list[list[object]] = [
        ["rows, kills, workers that came to work", f"{record.rows:,}, {record.kills}, {len(loads)}"],
        ["whole run, s", f"{record.wall_s:.1f}"],
        ["a worker's start and load, s (mean)", f"{statistics.mean(loads):.1f}"],
        ["rows that had begun and were lost", f"{record.lost_rows:,}"],
        ["efficiency", f"{share:.3f}"],
        ["cores that others used", f"{record.others:.1f}"],
    ]
    titles = {"missed": "the manager knows", "granted": "its rows are granted elsewhere", "done": "a first one is done"}
    figures: dict[str, Any] = {"efficiency": share, "kills": record.kills, "rows": record.rows, "others": record.others}
    for name, title in titles.items():
        seconds = sorted(entry[name] for entry in found if name in entry)
        figures[name] = seconds
        middle = f"{statistics.median(seconds):.3f} ({seconds[0]:.3f} to {seconds[-1]:.3f})" if seconds else "never"
        table.append([f"from SIGKILL until {title}, s", middle])
    show("Preemption of a pool of two", ["", ""], table)
    save("recovery", figures)


if __name__ == "__main__":
    main()
