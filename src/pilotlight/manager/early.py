"""Results that come before their job is open: workers outlive a manager, and jobs may take long to open again.

They stay unacknowledged, so that a worker whose connection breaks meanwhile, or that the next manager meets, sends them
again. There are never more than the rows that the earlier manager had handed out.
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotlight.messages import Rows


class EarlyRows:
    """Holds them, with which job they are for and who sent them."""

    def __init__(self) -> None:
        self._expected: set[str] = set()
        self._held: dict[str, list[tuple[str, Rows]]] = {}
        self._due: dict[str, int] = {}
        """By worker: up to where it will be told once nothing of it is held."""

    def expect(self, job_ids: Iterable[str]) -> None:
        """These jobs are being opened again."""
        self._expected |= set(job_ids)

    def hold(self, worker_id: str, rows: Rows) -> bool:
        """Keep results of a job that is expected; False for all others."""
        if rows.job not in self._expected:
            return False
        self._held.setdefault(rows.job, []).append((worker_id, rows))
        return True

    def come(self, job_id: str) -> list[tuple[str, Rows]]:
        """A job is open, or never will be: its results, by who sent them."""
        self._expected.discard(job_id)
        return self._held.pop(job_id, [])

    def upto(self, worker_id: str, seq: int) -> int:
        """Up to where a worker may be told that its results are taken, who has sent them up to `seq`."""
        due = self._due[worker_id] = max(seq, self._due.get(worker_id, 0))
        held = [rows.seq for each in self._held.values() for sender, rows in each if sender == worker_id]
        if not held:
            del self._due[worker_id]
            return due
        return min(held) - 1

    def forget_worker(self, worker_id: str) -> None:
        """Its connection broke."""
        self._due.pop(worker_id, None)
        for job_id, each in self._held.items():
            self._held[job_id] = [item for item in each if item[0] != worker_id]
