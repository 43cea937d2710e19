"""A random world as data: a seed makes a plan, and a plan can be shortened, printed and run again."""

from __future__ import annotations

from dataclasses import dataclass

from pilotlight.core.allocation import Options
from pilotlight.sim.chance import Chance
from pilotlight.sim.faults import ACTIONS, GB, KINDS, Fault
from pilotlight.sim.spec import Model, Pace, Work

FAULTS_S = 20.0
"""Faults come within so many seconds; then all is well."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole world and what befalls it. workers: kinds that are there from the start."""

    seed: int
    models: tuple[Model, ...]
    options: Options
    pace: Pace
    workers: tuple[str, ...]
    works: tuple[Work, ...]
    faults: tuple[Fault, ...]

    def lines(self) -> list[str]:
        """The plan for people."""
        return [
            f"seed {self.seed}",
            *(f"  model {model}" for model in self.models),
            f"  {self.options}",
            f"  {self.pace}",
            f"  workers {' '.join(self.workers)}",
            *(f"  at {work.at_s:.3f} s {work}" for work in self.works),
            *(f"  at {fault.at_s:.3f} s {fault}" for fault in self.faults),
        ]


def plan(seed: int) -> Plan:
    """The plan of a seed: the same on every Python."""
    chance = Chance(seed)
    models = tuple(
        Model(
            name,
            memory_bytes=chance.one_of([4, 8, 12]) * GB,
            file_bytes=chance.one_of([0, 1, 3]) * GB,
            import_s=chance.one_of([0.0, 2.0]),
            start_s=0.2,
            warm_s=0.5,
            sleeps=chance.happens(0.3),
            declared_bytes=chance.one_of([None, None, 3 * GB]),
        )
        for name in "abc"[: chance.whole(1, 3)]
    )
    options = Options(
        silence_s=chance.one_of([3.0, 10.0]),
        horizon_s=chance.one_of([0.25, 2.0]),
        hedge_after_s=chance.one_of([0.5, 2.0, 50.0]),
        keep_alive_s=chance.one_of([0.0, 3.0, 600.0, -1.0]),
    )
    pace = Pace(
        step_s=chance.one_of([0.2, 1.0]),
        tick_s=chance.one_of([0.25, 0.5]),
        jitter_s=chance.one_of([0.0, 0.05, 0.5]),
        orphan_s=chance.one_of([2.0, 600.0]),
        slots=chance.one_of([1, 4, 16]),
    )
    workers = tuple(chance.one_of(["big", "pair", "half", "bare", "host"]) for _ in range(chance.whole(1, 5)))
    works = tuple(_work(chance, seed, models) for _ in range(chance.whole(1, 4)))
    few = chance.happens(0.3)  # kinds of fault, and more of each: what goes wrong then meets itself
    actions = ("arrive", *chance.some_of(ACTIONS, 3)) if few else ACTIONS
    faults = [_fault(chance, actions) for _ in range(chance.one_of([10, 60] if few else [0, 3, 10, 30]))]
    return Plan(seed, models, options, pace, workers, works, tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _work(chance: Chance, seed: int, models: tuple[Model, ...]) -> Work:
    rows = chance.one_of([0, 1, 5, 60, 200])
    large = dict.fromkeys(chance.some_of(range(rows), chance.one_of([0, 0, 1])), chance.one_of([14, 24]) * GB)
    return Work(
        rows,
        chance.one_of(models).variant_id,
        row_s=chance.one_of([0.02, 0.2, 1.0]),
        sigma=chance.one_of([0.0, 1.0]),
        weight=chance.one_of([1.0, 4.0]),
        at_s=chance.between(0.0, FAULTS_S / 2),
        seed=seed,
        may_hedge=chance.happens(0.8),
        request_timeout_s=chance.one_of([5.0, 30.0]),
        poison=frozenset(chance.some_of(range(rows), chance.one_of([0, 0, 0, 1, 2]))),
        hangs=frozenset(chance.some_of(range(rows), chance.one_of([0, 0, 0, 0, 1]))),
        outgrows=large,
    )


def _fault(chance: Chance, actions: tuple[str, ...]) -> Fault:
    action = chance.one_of(actions)
    detail = ""
    if action == "arrive":
        detail = chance.one_of(sorted(KINDS)) + chance.one_of(["", "@node-1", "@node-2"])
    return Fault(chance.between(0.0, FAULTS_S), action, chance.unit(), chance.between(0.1, 12.0), detail)
