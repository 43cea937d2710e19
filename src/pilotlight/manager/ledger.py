"""Sums over the pool's life, for summaries: what was loaded how often, for how long, and how long replicas worked."""

from __future__ import annotations

from pilotlight.core.state import State
from pilotlight.messages import Resident
from pilotlight.views import Totals


class Ledger:
    """Counts loads once per replica. `busy_s` is summed by whoever takes in results."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.load_s = 0.0
        self.loads: dict[str, int] = {}
        self._counted: set[tuple[str, str]] = set()

    def resident(self, worker_id: str, resident: Resident, name: str) -> None:
        """A report came; the first one that says `live` counts as a load."""
        key = (worker_id, resident.replica)
        if resident.state == "live" and key not in self._counted:
            self._counted.add(key)
            self.loads[name] = self.loads.get(name, 0) + 1
            self.load_s += resident.load_s

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
