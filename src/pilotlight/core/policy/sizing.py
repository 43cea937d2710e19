"""How many rows a worker holds, and how far the input is read ahead. No batch size is chosen anywhere.

A lease must never starve a replica (at least twice what it wants in flight), and must cover the time that a message
takes to come round; anything more only makes a preemption's unstarted part larger. Towards the end nobody gets rows
that others would finish sooner.
"""

from __future__ import annotations

from collections.abc import Iterable

READ_ROWS_MIN = 1024
READ_ROWS_MAX = 65_536


def lease_target(capacity: int, rate: float, horizon_s: float) -> int:
    """Rows that a worker should hold: capacity in requests, rate in rows per second."""
    return max(2 * capacity, int(rate * horizon_s))


def wants_more(outstanding: int, target: int, capacity: int) -> bool:
    """Whether to grant now: well before the worker runs dry, and not for every single row that comes back."""
    return outstanding <= max(target - max(capacity // 2, 1), target * 3 // 4)


def last_rows(pending: int, own: tuple[int, float], all_workers: Iterable[tuple[int, float]]) -> int:
    """How many of the last `pending` rows a worker may have so that it ends with all others, give or take a row.

    Workers, the asking one among them, as (rows held, rows per second).
    """
    rows, speed, fastest = pending, 0.0, 0.0
    for held, rate in all_workers:
        rows += held
        speed += rate
        fastest = max(fastest, rate)
    end_s = rows / speed + 1.0 / fastest
    return max(0, int(own[1] * end_s + 1e-6) - own[0])


def read_rows(pending: int, appetite: int) -> int:
    """Rows to read now so that `appetite` (all workers' targets together) can be served at once; 0: enough is read."""
    low = max(appetite, READ_ROWS_MIN)
    return 0 if pending >= low else min(2 * low - pending, READ_ROWS_MAX)
