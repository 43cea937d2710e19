"""Who has said nothing for too long: found without looking at everybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush

from pilotlight.core.model import Worker, WorkerId


class Silence:
    """Workers by the deadline that each had when it was last looked at; those who rejoined stand here twice."""

    def __init__(self) -> None:
        self._due: list[tuple[float, WorkerId]] = []

    def watch(self, worker: Worker) -> None:
        """A worker joined."""
        heappush(self._due, (worker.deadline_s, worker.worker_id))

    def overdue(self, workers: Mapping[WorkerId, Worker], now: float) -> Iterator[Worker]:
        """Those whose deadline has passed. Whoever was heard since is watched on; the rest are not any more."""
        while self._due and self._due[0][0] <= now:
            _, worker_id = heappop(self._due)
            worker = workers.get(worker_id)
            if worker is None:
                continue
            if worker.deadline_s > now:
                self.watch(worker)
            else:
                yield worker
