"""When workers are killed: a seeded schedule of preemptions, the same for every way."""

from __future__ import annotations

import random
from dataclasses import dataclass

HORIZON_S = 72 * 3600.0


@dataclass(frozen=True)
class Kill:
    """The worker in this slot is gone at this time, `at_s` seconds after the start, and replaced at once."""

    at_s: float
    slot: int


def schedule(slots: int, seed: int, life_s_min: float, life_s_max: float) -> list[Kill]:
    """Lives drawn evenly between the two, per slot, in order of time."""
    choice = random.Random(seed)
    kills: list[Kill] = []
    for slot in range(slots):
        at_s = 0.0
        while at_s < HORIZON_S:
            at_s += choice.uniform(life_s_min, life_s_max)
            kills.append(Kill(at_s, slot))
    return sorted(kills, key=lambda kill: kill.at_s)
