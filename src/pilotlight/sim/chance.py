"""Chance that is the same everywhere: built on `random.Random.random` alone, whose sequence Python promises to keep.

(docs.python.org/3/library/random.html#notes-on-reproducibility: only `random()` is promised; `choice`, `shuffle`
and the distributions may change between versions.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A seeded source of choices."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - for worlds, not for secrets

    def unit(self) -> float:
        """0 <= x < 1."""
        return self._random()

    def between(self, low: float, high: float) -> float:
        """Low <= x < high."""
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """Low <= n <= high."""
        return low + int(self._random() * (high - low + 1))

    def one_of(self, things: Sequence[T]) -> T:
        """One of them."""
        return things[int(self._random() * len(things))]

    def some_of(self, things: Sequence[T], count: int) -> list[T]:
        """So many different ones, or all."""
        left = list(things)
        return [left.pop(int(self._random() * len(left))) for _ in range(min(count, len(left)))]

    def happens(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self._random() < probability

    def exponential(self, mean: float) -> float:
        """A waiting time, in the unit of its mean."""
        return -mean * math.log(1.0 - self._random())


_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def scatter(seed: int, index: int) -> float:
    """0 < x < 1 for an index, without state: splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    z = (seed * 0xBF58476D1CE4E5B9 + (index + 1) * _MIX) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) + 0.5) / (_MASK + 1)


def lognormal(seed: int, index: int, sigma: float) -> float:
    """A factor of mean 1 for an index: exp(sigma * z - sigma^2 / 2), z by Box and Muller."""
    u, v = scatter(seed, 2 * index), scatter(seed, 2 * index + 1)
    z = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
    return math.exp(sigma * z - sigma * sigma / 2.0)
