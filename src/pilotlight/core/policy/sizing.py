"""How many rows a worker holds, and how far the input is read ahead. No batch size is chosen anywhere.

A lease must never starve a replica (at least twice what it wants in flight), and must cover the time that a message
takes to come round; anything more only makes a preemption's unstarted part larger. Towards the end nobody gets rows
that others would finish sooner.
"""

from __future__ import annotations

READ_ROWS_MIN = 1024
READ_ROWS_MAX = 65_536


def lease_target(capacity: int, rate: float, horizon_s: float) -> int:
    """Rows that a worker should hold: capacity in requests, rate in rows per second."""
    return max(2 * capacity, int(rate * horizon_s))


def low_water(target: int, capacity: int) -> int:
    """With so many rows or fewer a worker gets more: well before it runs dry, and not for every single row."""
    return max(target - max(capacity // 2, 1), target * 3 // 4)


def last_rows(rows: int, own: tuple[int, float], speed: float, fastest: float) -> int:
    """How many of the last rows a worker may have so that it ends with all others, give or take a row.

    rows: pending, and held by all workers together. own: rows that this one holds, and its rate. speed, fastest: all
    rates together, and the highest. Rates in rows per second.
    """
    end_s = rows / speed + 1.0 / fastest
    return max(0, int(own[1] * end_s + 1e-6) - own[0])


def read_rows(pending: int, appetite: int, ahead: int = 0) -> int:
    """Rows to read now so that `appetite` (all workers' targets together) can be served at once; 0: enough is read.

    ahead: so many should be at hand in any case, as far as one read goes, to know whether more devices would pay.
    """
    low = max(appetite, READ_ROWS_MIN, min(ahead, READ_ROWS_MAX))
    return 0 if pending >= low else min(2 * low - pending, READ_ROWS_MAX)
