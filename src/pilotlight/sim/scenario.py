"""Scenarios: what a world is made of, as a small TOML file. The dataclasses here and in `spec` are the format.

    title = "Twenty workers, half of them slow"
    [origin]                        # spec.Origin: where files come from in the first place
    bytes_per_s = "2.5GB/s"
    [models.small]                  # spec.Model
    memory_bytes = "4GB"
    [kinds.a10]                     # spec.Kind: what machines there are
    speed = 1.0
    [[jobs]]                        # spec.Work
    model = "small"
    rows = 150_000
    row_s = 0.5
    [[workers]]                     # Supply: who is there, and when; any number of them together
    kind = "a10"
    count = 20
    life_s = "30m"
    [pace]                          # spec.Pace
    step_s = 2.0
    [policy]                        # Policy: what of our own policies is on

`read` makes a `Scenario` of a file, `to_toml` a file of a `Scenario`; `availability` says who is there when.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pilotlight.core.errors import ConfigError
from pilotlight.sim.reading import table_of, text_of
from pilotlight.sim.spec import Kind, Model, Origin, Pace, Work

SHIPPED = Path(__file__).parent / "scenarios"
"""The scenarios that come with the package."""


@dataclass(frozen=True, slots=True)
class Supply:
    """Workers of one kind, by one rule. All times in virtual seconds from the start.

    Slots: `count` slots open at from_s, one each every_s, and close at until_s. life_s: a worker's mean life in its
    slot (exponential), after which it is preempted; away_s: the mean wait until the slot has a worker again (the same).
    changes: (when, workers more or less), as well or instead; who leaves is drawn. trace: a spot trace (JSON:
    metadata.gap_seconds, data: instances available at each point), read from trace_from_s on and over again at its
    end, scale: workers per instance. nodes: a CSV of gpu_model, gpu_capacity_num, a line per node; each is a slot, of
    the kind that `gpus` gives for its model, `count` of them drawn (0: all); others are left out.
    notice_s: warning before a preemption. keeps_disk: whether the next worker of a slot finds what the last one's disk
    held. host: the machine that they all are on, where it has a name: workers of one share its disk and what it can do.
    deaths_s: when a replica of each worker in a slot is killed, if one is live.
    """

    kind: str = ""
    count: int = 0
    from_s: float = 0.0
    until_s: float | None = None
    every_s: float = 0.0
    life_s: float | None = None
    away_s: float = 0.0
    changes: tuple[tuple[float, int], ...] = ()
    trace: str = ""
    trace_from_s: float = 0.0
    scale: float = 1.0
    nodes: str = ""
    gpus: dict[str, str] = field(default_factory=dict[str, str])
    notice_s: float = 0.0
    keeps_disk: bool = False
    host: str = ""
    deaths_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What of our own policies is on. prefix_share: the part of a request's time that reuse of its prompt's common head
    spares; the rest as in `core.allocation.Options`, in seconds."""

    hedging: bool = True
    parking: bool = True
    peers: bool = True
    prefix_share: float = 0.0
    silence_s: float = 10.0
    horizon_s: float = 0.25
    hedge_after_s: float = 2.0
    keep_alive_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world to be. give_up_s: a run that has not ended by then has failed."""

    title: str
    models: dict[str, Model]
    kinds: dict[str, Kind]
    jobs: tuple[Work, ...]
    workers: tuple[Supply, ...]
    about: str = ""
    seed: int = 1
    give_up_s: float = 7 * 86_400.0
    origin: Origin = field(default_factory=Origin)
    pace: Pace = field(default_factory=Pace)
    policy: Policy = field(default_factory=Policy)
    folder: str = ""
    """Where relative paths of traces begin."""


def shipped() -> dict[str, str]:
    """Names and titles of the scenarios that come with the package."""
    return {path.stem: read(path).title for path in sorted(SHIPPED.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a scenario, by its path or the name of a shipped one. Raises `ConfigError`."""
    for path in (Path(name), SHIPPED / f"{name}.toml"):
        if path.is_file():
            return path
    names = ", ".join(path.stem for path in sorted(SHIPPED.glob("*.toml")))
    raise ConfigError(f"{name} is neither a scenario's file nor one of {names}")


def read(path: Path, settings: Mapping[str, str] | None = None) -> Scenario:
    """A scenario from its file, with some keys set otherwise (`set_key`). Raises `ConfigError`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    workers = ""
    for key, value in (settings or {}).items():
        if key == "workers":
            workers = value
        else:
            set_key(table, key, value)
    made = table_of(Scenario, table, str(path), folder=str(path.parent))
    scenario = cast("Scenario", made)
    _check(scenario, str(path))
    return with_workers(scenario, workers) if workers else scenario


def set_key(table: dict[str, Any], key: str, text: str) -> None:
    """Set `models.small.file_bytes` or `jobs.rows` (of all jobs; `jobs.1.rows`: of the first) in a scenario's table."""
    *parents, last = key.split(".")
    places: list[Any] = [table]
    for depth, parent in enumerate(parents):
        if parent.isdigit() and all(isinstance(place, list) for place in places):
            chosen = [place[int(parent) - 1] for place in places if 0 < int(parent) <= len(place)]
        else:
            chosen = [found for place in _each(places) if (found := place.setdefault(parent, {})) is not None]
        if not chosen or any(not isinstance(place, dict | list) for place in chosen):
            raise ConfigError(f"--set {key}={text}: {'.'.join(parents[: depth + 1])} is no table")
        places = chosen
    for place in _each(places):
        place[last] = _literal(text)


def _each(places: list[Any]) -> list[dict[str, Any]]:
    return [item for place in places for item in (cast("list[Any]", place) if isinstance(place, list) else [place])]


def _literal(text: str) -> object:
    """A value as TOML would have it, or a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_workers(scenario: Scenario, text: str) -> Scenario:
    """As many workers in all slots together, divided as the file divides them (what is left goes to the first)."""
    if not text.isdigit() or not int(text):
        raise ConfigError(f"--set workers={text}: a number of workers is expected")
    count, before = int(text), sum(supply.count for supply in scenario.workers)
    if not before:
        raise ConfigError(
            f"--set workers={text}: the scenario counts no workers, it has traces, changes or node lists only"
        )
    counts = [supply.count * count // before for supply in scenario.workers]
    left = count - sum(counts)
    for n in [n for n, supply in enumerate(scenario.workers) if supply.count][:left]:
        counts[n] += 1
    workers = tuple(dataclasses.replace(s, count=n) for s, n in zip(scenario.workers, counts, strict=True))
    return dataclasses.replace(scenario, workers=workers)


def _check(scenario: Scenario, where: str) -> None:
    """What no single key can show."""
    for n, job in enumerate(scenario.jobs, 1):
        if job.model not in scenario.models:
            raise ConfigError(f"{where}: job {n} names model {job.model!r}; known are {_names(scenario.models)}")
        if not job.rows:
            raise ConfigError(f"{where}: job {n} has no rows")
    if not scenario.jobs or not scenario.workers:
        raise ConfigError(f"{where} has no {'workers' if scenario.jobs else 'jobs'}")
    for n, supply in enumerate(scenario.workers, 1):
        for kind in supply.gpus.values() if supply.nodes else [supply.kind]:
            if kind not in scenario.kinds:
                raise ConfigError(f"{where}: workers {n} name kind {kind!r}; known are {_names(scenario.kinds)}")
        if supply.trace and not supply.scale:
            raise ConfigError(f"{where}: scale of workers {n} must be above 0")
        if not (supply.count or supply.trace or supply.nodes or supply.changes):
            raise ConfigError(f"{where}: workers {n} need one of count, changes, trace, nodes")
    for name, kind in scenario.kinds.items():
        if not kind.speed or not kind.devices:
            raise ConfigError(f"{where}: kind {name} needs a speed above 0 and a device")
    if not 0 <= scenario.policy.prefix_share < 1:
        raise ConfigError(f"{where}: prefix_share of policy must be at least 0 and below 1")


def _names(things: Mapping[str, object]) -> str:
    return ", ".join(things) or "none"


def to_toml(scenario: Scenario, comments: Mapping[str, str] | None = None) -> str:
    """A scenario's file: what is not as it would be anyway. comments: by dotted key (`models.small.file_bytes`), put
    behind the value, to say where a figure is from."""
    return text_of(scenario, comments or {}, without={"folder"})
