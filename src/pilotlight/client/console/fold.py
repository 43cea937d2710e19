"""What a display shows of a job: a fold over the manager's messages. Pure: time comes in as an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pilotlight.messages import JobEnded, Notice, Snapshot
from pilotlight.quantities import duration, number
from pilotlight.views import OTHERS, JobView, ReplicaView, Totals, WorkerView

_SUMS = ("load_s", "busy_s", "rows_lost", "workers_lost", "replicas_lost")
RATE_S = 10.0
"""The rate shown is that of the last ten seconds."""


@dataclass
class Fold:
    """The picture of one job. Feed it messages in order; read its properties at any time.

    job: whose view is shown; until it is known, the only job of a snapshot.
    """

    job: str = ""
    view: JobView | None = None
    workers: list[WorkerView] = field(default_factory=list[WorkerView])
    totals: Totals = field(default_factory=Totals)
    before: Totals | None = None
    """What the pool had done when we came; None until it has told."""
    notices: deque[Notice] = field(default_factory=deque[Notice])
    _seen: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def take(self, message: Snapshot | Notice | JobEnded, now_s: float) -> None:
        """Take one message, received at `now_s` (any monotonic clock)."""
        match message:
            case Notice():
                self.notices.append(message)
            case JobEnded():
                self.view, self.totals = message.view, message.totals
            case Snapshot():
                self.workers, self.totals = message.workers, message.totals
                self.before = self.before or message.totals
                views = [view for view in message.jobs if self.job in {"", view.job}]
                if views:
                    self.view = views[0]
                    if len(self._seen) == 1 and self._seen[0][1] == self.view.rows_done:
                        self._seen.clear()  # it still loads: what that takes says nothing of the rate
                    self._seen.append((now_s, self.view.rows_done))
                    while len(self._seen) > 2 and self._seen[0][0] < now_s - RATE_S:
                        self._seen.popleft()

    def forget(self) -> None:
        """The manager is another one: its workers and rates are not known yet, and its sums begin at 0."""
        self.workers, self.before = [], Totals()
        self._seen.clear()

    def since(self, totals: Totals) -> Totals:
        """What of a pool's sums was done since we came."""
        before = self.before or Totals()
        sums = {name: getattr(totals, name) - getattr(before, name) for name in _SUMS}
        loads = {name: totals.loads.get(name, 0) - before.loads.get(name, 0) for name in totals.loads | before.loads}
        if summed_up := sum(count for count in loads.values() if count < 0):
            loads[OTHERS] = loads.get(OTHERS, 0) + summed_up
        return Totals(loads={name: count for name, count in loads.items() if count > 0}, **sums)

    def take_notices(self) -> list[Notice]:
        """The notices since the last call."""
        taken = list(self.notices)
        self.notices.clear()
        return taken

    @property
    def rows_per_s(self) -> float | None:
        """Rows finished a second, of late; None until two pictures tell."""
        if len(self._seen) < 2:
            return None
        (start_s, start_rows), (stop_s, stop_rows) = self._seen[0], self._seen[-1]
        return (stop_rows - start_rows) / (stop_s - start_s) if stop_s > start_s else None

    @property
    def fraction(self) -> float | None:
        """How much is done, 0 to 1: by rows where the total is known, else by the share of the input read."""
        view = self.view
        if view is None:
            return None
        if view.rows_total is not None:
            return view.rows_done / view.rows_total if view.rows_total else 1.0
        if view.fraction is None or not view.rows_read:
            return None
        return min(1.0, view.fraction * view.rows_done / view.rows_read)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at the rate of late; None where it can't be told."""
        view, rate, fraction = self.view, self.rows_per_s, self.fraction
        if view is None or not rate or not fraction:
            return None
        return view.rows_done * (1 / fraction - 1) / rate

    @property
    def line(self) -> str:
        """The whole picture in one line."""
        view = self.view
        if view is None:
            return "starting workers"
        rows = f"{view.rows_done:,}" + (f" of {view.rows_total:,}" if view.rows_total is not None else "") + " rows"
        parts = [rows]
        if self.fraction is not None:
            parts.append(f"{100 * self.fraction:.0f} %")
        if self.rows_per_s is not None:
            parts.append(f"{number(self.rows_per_s)} rows/s")
        if self.eta_s is not None and view.state == "running":
            parts.append(f"{duration(self.eta_s)} left")
        parts.append(f"{view.rows_error:,} errors" if view.rows_error != 1 else "1 error")
        if not view.rows_done and not any(replica.state == "live" for replica in self._replicas):
            parts.append(self.loading)
        return ", ".join(part for part in parts if part)

    @property
    def loading(self) -> str:
        """What is being waited for before the first row."""
        arriving = [arrival for worker in self.workers for arrival in worker.arriving]
        if arriving:
            return max(arriving, key=lambda arrival: arrival.fraction).text
        names = sorted({replica.name for replica in self._replicas if replica.state in {"starting", "loading"}})
        return f"loading {', '.join(names)}" if names else "starting workers"

    @property
    def worker_lines(self) -> list[tuple[str, str, str, str]]:
        """One line a worker: its name, its state, what its replicas are doing, its rows."""
        lines: list[tuple[str, str, str, str]] = []
        for worker in self.workers:
            replicas: list[str] = []
            for replica in worker.replicas:
                loaded = f", loaded in {replica.load_s:.1f} s" if replica.state == "live" and replica.load_s else ""
                replicas.append(f"{replica.name} {replica.state} on {replica.device_kind}{loaded}")
            told = [*replicas, *(arrival.text for arrival in worker.arriving)]
            lines.append((worker.worker, worker.state, "; ".join(told) or "no model yet", f"{worker.rows_done:,} rows"))
        return lines

    @property
    def _replicas(self) -> list[ReplicaView]:
        return [replica for worker in self.workers for replica in worker.replicas]
