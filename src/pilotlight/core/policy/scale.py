"""How many pilots there should be, and how soon to replace one that ended."""

from __future__ import annotations

BACKOFF_S_MIN = 0.5
BACKOFF_S_MAX = 30.0
DOUBLINGS_MAX = 16
"""More would leave the range of a float some day."""
HEALTHY_S = 5.0
"""A pilot that lived this long did not die young: its successor starts at once."""


def backoff_s(stillborn: int) -> float:
    """How long to wait before the next pilot when the last `stillborn` ones died young. Once may be bad luck."""
    return 0.0 if stillborn <= 1 else min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0 ** min(stillborn - 2, DOUBLINGS_MAX))
