"""Who is there when: the lives of workers that a scenario's rules, traces and node lists make, before anything runs.

Every policy that is compared meets the same lives: they depend on the scenario and its seed alone.
"""

from __future__ import annotations

import csv
import dataclasses
import heapq
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilotlight.core.errors import ConfigError
from pilotlight.sim.chance import Chance
from pilotlight.sim.clock import Clock
from pilotlight.sim.scenario import Scenario, Supply
from pilotlight.sim.spec import Kind


@dataclass(frozen=True, slots=True)
class Life:
    """A worker from its start to its end (inf: it stays), both in seconds. host: what its disk is known by. deaths_s:
    when a replica of it is killed."""

    start_s: float
    stop_s: float
    kind: Kind
    host: str
    notice_s: float = 0.0
    deaths_s: tuple[float, ...] = ()


def lives(scenario: Scenario) -> Iterator[Life]:
    """All lives that begin before the scenario gives up, in the order in which they begin."""
    groups = [_group(scenario, supply, number) for number, supply in enumerate(scenario.workers, 1)]
    return (life for _, _, life in heapq.merge(*groups, key=_order))


def come(clock: Clock, scenario: Scenario, begin: Callable[[Life], object]) -> None:
    """Let each life begin at its time."""
    coming = lives(scenario)

    def wait() -> None:
        life = next(coming, None)
        if life is not None:
            clock.at(life.start_s, lambda: start(life))

    def start(life: Life) -> None:
        begin(life)
        wait()

    wait()


def _group(scenario: Scenario, supply: Supply, number: int) -> Iterator[tuple[float, str, Life]]:
    """The lives that one rule makes, each with what orders it."""
    chance = Chance(scenario.seed * 1_000_003 + number)
    made: list[Iterator[Life]] = []
    kinds = _nodes(scenario, supply, chance) if supply.nodes else [scenario.kinds[supply.kind]] * supply.count
    for n, kind in enumerate(kinds):
        seed = (scenario.seed * 1_000_003 + number) * 1_000_003 + n + 1
        made.append(
            _slot(scenario, supply, kind, f"{number}-{n + 1}", supply.from_s + n * supply.every_s, Chance(seed))
        )
    points: list[tuple[float, int]] = []
    if supply.trace:
        points = _trace(scenario, supply)
    elif supply.changes:
        present = 0
        for at_s, more in sorted(supply.changes):
            present = max(0, present + more)
            points.append((at_s, present))
    if points:
        made.append(_levels(supply, scenario.kinds[supply.kind], points, f"{number}-t", chance))
    return heapq.merge(*map(_keyed, made), key=_order)


def _order(keyed: tuple[float, str, Life]) -> tuple[float, str]:
    """Two workers of one host may come at once."""
    return keyed[:2]


def _keyed(each: Iterator[Life]) -> Iterator[tuple[float, str, Life]]:
    return ((life.start_s, life.host, life) for life in each)


def _slot(scenario: Scenario, supply: Supply, kind: Kind, name: str, start_s: float, chance: Chance) -> Iterator[Life]:
    """One worker after another, until the slot closes."""
    ends_s = float("inf") if supply.until_s is None else supply.until_s
    life = 0
    while start_s < min(ends_s, scenario.give_up_s):
        life += 1
        stop_s = min(ends_s, start_s + chance.exponential(supply.life_s) if supply.life_s else float("inf"))
        host = supply.host or (name if supply.keeps_disk else f"{name}.{life}")
        deaths_s = tuple(at_s for at_s in supply.deaths_s if start_s <= at_s < stop_s)
        yield Life(start_s, stop_s, kind, host, supply.notice_s, deaths_s)
        start_s = stop_s + (chance.exponential(supply.away_s) if supply.away_s else 0.0)


def _levels(supply: Supply, kind: Kind, points: list[tuple[float, int]], name: str, chance: Chance) -> Iterator[Life]:
    """Lives that add up to a number of workers at each point; who leaves when it falls is drawn."""
    present: list[tuple[float, str]] = []
    free: list[str] = []
    made = 0
    lived: list[Life] = []
    for at_s, count in points:
        while len(present) > count:
            start_s, host = present.pop(chance.whole(0, len(present) - 1))
            lived.append(Life(start_s, at_s, kind, host, supply.notice_s))
            free.append(host)
        while len(present) < count:
            made += 1
            present.append((at_s, free.pop() if supply.keeps_disk and free else f"{name}{made}"))
    lived += [Life(start_s, float("inf"), kind, host, supply.notice_s) for start_s, host in present]
    return iter(sorted(lived, key=lambda life: (life.start_s, life.host)))


# --- files


def _trace(scenario: Scenario, supply: Supply) -> list[tuple[float, int]]:
    """Points of a spot trace, from where it is read, around its end, to where the scenario gives up."""
    path = _path(scenario, supply.trace)
    data = _loaded(path, json.loads)
    try:
        gap_s, counts = float(data["metadata"]["gap_seconds"]), [int(count) for count in data["data"]]
    except (KeyError, TypeError, ValueError):
        gap_s, counts = 0.0, []
    if gap_s <= 0 or not counts:
        raise ConfigError(
            f"{path} is no spot trace: metadata.gap_seconds above 0 and data, a list of counts, are expected"
        )
    end_s = min(scenario.give_up_s, float("inf") if supply.until_s is None else supply.until_s)
    first = int(supply.trace_from_s // gap_s)
    points = [
        (supply.from_s + n * gap_s, round(counts[(first + n) % len(counts)] * supply.scale))
        for n in range(max(1, int((end_s - supply.from_s) // gap_s)))
    ]
    return [*points, (end_s, 0)] if supply.until_s is not None else points


def _nodes(scenario: Scenario, supply: Supply, chance: Chance) -> list[Kind]:
    """A kind per node of a list whose GPU model the rule knows, with as many devices as the node has."""
    path = _path(scenario, supply.nodes)
    rows = _loaded(path, lambda text: list(csv.DictReader(text.splitlines())))
    try:
        found = [(row["gpu_model"], int(row["gpu_capacity_num"])) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no node list: columns gpu_model and gpu_capacity_num are expected") from error
    known = [(supply.gpus[model], devices) for model, devices in found if model in supply.gpus and devices]
    if not known:
        raise ConfigError(f"{path} has no node of the models {', '.join(supply.gpus) or 'that `gpus` would name'}")
    if supply.count:
        known = chance.some_of(known, supply.count)
    return [dataclasses.replace(scenario.kinds[kind], devices=devices) for kind, devices in known]


def _path(scenario: Scenario, name: str) -> Path:
    return Path(scenario.folder) / name


def _loaded(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} can't be understood: {error}") from error
