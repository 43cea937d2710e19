"""What is known of one run: when which rows were done, when which workers were there, what was lost."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import psutil

Verdicts = dict[int, tuple[str, float]]


@dataclass
class Presence:
    """One worker's life in a slot, in seconds since the start. live_s: when its model was loaded first."""

    slot: int
    from_s: float
    until_s: float = -1.0
    live_s: float = -1.0
    killed: bool = False


@dataclass
class Record:
    """One way in one setting. estimated: not run in full; see `estimate.py`. done: (seconds, rows done by then).

    lost_rows, lost_s: requests that had begun when their worker was killed, and the time that they had taken.
    load_s: spent on starting and loading, killed attempts included. others: cores that other processes used beside.
    struck: Unix time and name of each worker that was killed, and busy_s, of work that arrived: of our own runs only.
    """

    way: str
    rows: int
    wall_s: float = 0.0
    worker_s: float = 0.0
    loads: int = 0
    load_s: float = 0.0
    kills: int = 0
    lost_rows: int = 0
    lost_s: float = 0.0
    others: float = 0.0
    estimated: bool = False
    measured_rows: int = 0
    done: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    present: list[Presence] = field(default_factory=list[Presence])
    struck: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    busy_s: float = 0.0
    verdicts: Verdicts = field(default_factory=dict[int, tuple[str, float]])

    def end(self, wall_s: float) -> None:
        """Workers that are still there leave now."""
        self.wall_s = wall_s
        for life in self.present:
            if life.until_s < 0:
                life.until_s = wall_s
        self.worker_s = sum(life.until_s - life.from_s for life in self.present)


class Others:
    """How many cores the rest of the machine uses, beside this process and its descendants. As a context manager."""

    def __init__(self) -> None:
        self.cores = 0.0
        self._over = threading.Event()
        self._own_s: dict[int, float] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Others:
        self._before_s = _busy_s()
        self._look()
        self._own_before = dict(self._own_s)
        self._began_s = os.times().elapsed
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        own_s = sum(self._own_s.values()) - sum(self._own_before.values())
        wall_s = os.times().elapsed - self._began_s
        self.cores = max(0.0, (_busy_s() - self._before_s - own_s) / wall_s)

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                self._own_s[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)
