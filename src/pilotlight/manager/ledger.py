"""Sums over the pool's life, for summaries: what was loaded how often, for how long, and how long replicas worked.

Also how each load of a replica that is still there went, stage by stage.
"""

from __future__ import annotations

from pilotlight.core.state import State
from pilotlight.messages import Resident
from pilotlight.views import OTHERS, Totals


def since(totals: Totals, before: Totals) -> Totals:
    """What came to the sums of a pool since an earlier moment."""
    loads = {name: count - before.loads.get(name, 0) for name, count in totals.loads.items()}
    return Totals(
        loads={name: count for name, count in loads.items() if count > 0},
        load_s=totals.load_s - before.load_s,
        busy_s=totals.busy_s - before.busy_s,
        rows_lost=totals.rows_lost - before.rows_lost,
        workers_lost=totals.workers_lost - before.workers_lost,
        replicas_lost=totals.replicas_lost - before.replicas_lost,
    )


NAMES_MAX = 100
"""Loads are counted by name for so many contexts, those that were loaded last; of all others there is one sum."""


class Ledger:
    """Counts loads once per replica and origin. `busy_s` is summed by whoever takes in results."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.load_s = 0.0
        self.loads: dict[str, int] = {}
        self._last: dict[tuple[str, str], Resident] = {}
        """The last report of each replica that was live, by worker and replica."""

    def resident(self, worker_id: str, resident: Resident, name: str) -> None:
        """A report came; the first that says `live` counts as a load, and so does a waking up."""
        key = (worker_id, resident.replica)
        before = self._last.get(key)
        if resident.state == "starting":
            return
        self._last[key] = resident
        woke = before is not None and before.state == "asleep"
        if resident.state == "live" and (before is None or woke):
            self.loads[name] = self.loads.pop(name, 0) + 1
            self._sum_up()
            self.load_s += resident.load_s

    def _sum_up(self) -> None:
        while len(self.loads) > NAMES_MAX:
            others = self.loads.pop(OTHERS, 0)
            oldest = next(iter(self.loads))
            self.loads[OTHERS] = others + self.loads.pop(oldest)

    def inventory(self, worker_id: str, residents: list[Resident]) -> None:
        """A worker joined. What it holds was loaded in an earlier manager's time, and is counted no more."""
        self.forget_worker(worker_id)
        for resident in residents:
            if resident.state != "starting":
                self._last[worker_id, resident.replica] = resident

    def stages(self, worker_id: str, replica_id: str) -> dict[str, float]:
        """How long each stage of a replica's load took, in seconds."""
        resident = self._last.get((worker_id, replica_id))
        return {} if resident is None else resident.stages

    def forget_replica(self, worker_id: str, replica_id: str) -> None:
        """A replica ended."""
        self._last.pop((worker_id, replica_id), None)

    def forget_worker(self, worker_id: str) -> None:
        """A worker is gone, with all its replicas."""
        for key in [key for key in self._last if key[0] == worker_id]:
            del self._last[key]

    def totals(self, state: State) -> Totals:
        """All sums, with those that the scheduler keeps."""
        return Totals(
            loads=dict(self.loads),
            load_s=self.load_s,
            busy_s=self.busy_s,
            rows_lost=state.rows_lost,
            workers_lost=state.workers_lost,
            replicas_lost=state.replicas_lost,
        )
