"""`pilotlight simulate`: a scenario in virtual time, under our own policy and under what people do without it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from pilotlight.client.console.tables import print_table
from pilotlight.core.errors import ConfigError
from pilotlight.quantities import duration, number, size
from pilotlight.sim import scenario as scenarios
from pilotlight.sim import sensitivity as sensing
from pilotlight.sim.scenario import Scenario
from pilotlight.sim.trial import BATCHES, OURS, POLICIES, Outcome, one_by_one, run, run_all, ways

TITLES = [
    "policy",
    "done after",
    "times ours",
    "of the bound",
    "loads",
    "from origin",
    "peers",
    "disks",
    "lost",
    "GPU-hours",
]


def simulate(
    scenario: Annotated[str | None, Parameter(help="Its TOML file, or the name of one that comes along.")] = None,
    /,
    *,
    settings: Annotated[
        list[str] | None,
        Parameter(name="--set", negative="", help="KEY=VALUE, as in workers=186 or models.small.file_bytes=7GB."),
    ] = None,
    compare: Annotated[
        str, Parameter(help="Which of naive, files, shards and pervasive (ours), with commas.")
    ] = f"shards,{OURS}",
    batches: Annotated[str, Parameter(help="Rows of a batch, for naive and files, with commas.")] = ",".join(
        map(str, BATCHES)
    ),
    seed: Annotated[int | None, Parameter(help="Other chances than the scenario's.")] = None,
    switches: Annotated[
        bool, Parameter(help="Ours with nothing on, then with one policy more at a time.", negative="")
    ] = False,
    sensitivity: Annotated[
        bool,
        Parameter(
            help="Each figure that the file marks as assumed, calibrated or from memory, halved and doubled.",
            negative="",
        ),
    ] = False,
    picture: Annotated[Path | None, Parameter(help="Draw requests and workers over time (PNG or SVG).")] = None,
    html: Annotated[Path | None, Parameter(help="Write a page with table, picture and scenario.")] = None,
    json: Annotated[bool, Parameter(help="One JSON object per run.", negative="")] = False,
) -> int:
    """Simulate a scenario in virtual time: the real scheduler and agents on machines that are not there.

    The same machines, links and preemptions are met by other policies, too: *naive*, a fresh process per batch that
    reads the model from the origin; *files*, the same with files kept on the node's disk; *shards*, a static array
    whose workers load once and skip rows that are done. The bound is when all could have been done at best.
    Without a scenario: the list of those that come along.
    """
    if scenario is None:
        print_table(["scenario", "what it is"], [list(item) for item in scenarios.shipped().items()])
        return 0
    policies, sizes = _policies(compare), _batches(batches)
    path, given = scenarios.find(scenario), _settings(settings or [])
    world = scenarios.read(path, given)
    if seed is not None:
        world = dataclasses.replace(world, seed=seed)
    if picture is not None or html is not None:
        from pilotlight.sim import picture as pictures

        pictures.check()
        for target in (picture, html):
            if target is not None and not target.parent.is_dir():
                raise ConfigError(f"{target} can't be written: the folder {target.parent} does not exist")
    if sensitivity:
        return _sensitivity(path, given, world, policies, sizes)
    outcomes = _runs(world, policies, sizes, switches=switches)
    if json:
        print(*(msgspec.json.encode(_facts(outcome)).decode() for outcome in outcomes), sep="\n")
    else:
        print(*_headline(world, outcomes), "", sep="\n")
        print_table(TITLES, _lines(outcomes), numbers=set(TITLES[1:]))
    if picture is not None or html is not None:
        from pilotlight.sim import picture as pictures

        if picture is not None:
            pictures.draw(world, outcomes, picture)
        if html is not None:
            table = [TITLES, *_lines(outcomes)]
            pictures.write_page(world, outcomes, html, _headline(world, outcomes), table)
    return 0 if all(outcome.end_s < float("inf") for outcome in outcomes) else 1


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"--compare knows {', '.join(POLICIES)}, not {name!r}")
    return names


def _batches(text: str) -> tuple[int, ...]:
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--batches are numbers of rows above 0 with commas between, not {text!r}")
    return tuple(map(int, parts))


def _settings(given: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes KEY=VALUE, not {text!r}")
        settings[key.strip()] = value.strip()
    return settings


def _runs(world: Scenario, policies: list[str], sizes: tuple[int, ...], *, switches: bool) -> list[Outcome]:
    if not switches:
        return run_all(world, policies, sizes)
    others = run_all(world, [policy for policy in policies if policy != OURS], sizes)
    return others + [dataclasses.replace(run(variant, OURS), label=label) for label, variant in one_by_one(world)]


# --- what is said


def _headline(world: Scenario, outcomes: list[Outcome]) -> list[str]:
    rows = sum(work.rows for work in world.jobs)
    lines = [world.title] + ([world.about] if world.about else [])
    bound_s = outcomes[-1].bound_s
    best = f"at best done after {duration(bound_s)}" if bound_s < float("inf") else "can't be done before it gives up"
    return [*lines, f"{rows:,} requests in {len(world.jobs)} job{'' if len(world.jobs) == 1 else 's'}, {best}"]


def _lines(outcomes: list[Outcome]) -> list[list[str]]:
    ours = next((outcome for outcome in reversed(outcomes) if outcome.policy == OURS), None)
    return [_line(outcome, ours) for outcome in outcomes]


def _line(outcome: Outcome, ours: Outcome | None) -> list[str]:
    meter = outcome.meter
    ended = outcome.end_s < float("inf")
    ratio = f"{outcome.end_s / ours.end_s:.2f}" if ended and ours is not None and outcome is not ours else ""
    moved = [size(int(meter.bytes[place])) if place in meter.bytes else "" for place in ("origin", "peer", "disk")]
    return [
        outcome.name,
        duration(outcome.end_s) if ended else "never",
        ratio,
        f"{outcome.efficiency:.1%}" if ended else "",
        f"{sum(meter.loads.values()):,}",
        *moved,
        duration(meter.lost_s) if meter.lost_s else "",
        number(meter.device_s / 3600),
    ]


def _facts(outcome: Outcome) -> dict[str, Any]:
    """What programs read: times in seconds, sizes in bytes."""
    meter = outcome.meter
    return {
        "policy": outcome.policy,
        "batch": outcome.batch,
        "label": outcome.label,
        "end_s": outcome.end_s if outcome.end_s < float("inf") else None,
        "bound_s": outcome.bound_s if outcome.bound_s < float("inf") else None,
        "rows": meter.rows,
        "loads": meter.loads,
        "load_s": meter.load_s,
        "bytes": meter.bytes,
        "useful_s": meter.useful_s,
        "lost_s": meter.lost_s,
        "rows_lost": meter.rows_lost,
        "rows_repeated": meter.rows_repeated,
        "device_s": meter.device_s,
        "available_s": meter.available_s,
        "first_load_s": meter.first_load_s,
        "joined": meter.joined,
    }


def _sensitivity(
    path: Path, given: dict[str, str], world: Scenario, policies: list[str], sizes: tuple[int, ...]
) -> int:
    tried = ways(policies, sizes)

    def times(scenario: Scenario) -> list[str]:
        ends = [run(dataclasses.replace(scenario, seed=world.seed), *way).end_s for way in tried]
        return [duration(end_s) if end_s < float("inf") else "never" for end_s in ends]

    titles = ["figure", "value", "from"]
    for half in ("halved", "doubled"):
        titles += [f"{policy}{f' {size:,}' if size else ''}, {half}" for policy, size in tried]
    figures = sensing.open_figures(path)
    if not figures:
        raise ConfigError(f"{path} marks no figure as [assumed], [calibrated] or [memory] in a comment behind it")
    print(
        f"{world.title}\nas it is: "
        + ", ".join(f"{way[0]} {time}" for way, time in zip(tried, times(world), strict=True)),
        "",
        sep="\n",
    )
    lines: list[list[str]] = []
    for figure in figures:
        if sys.stderr.isatty():
            print(f"simulating {figure.name} ...", file=sys.stderr)
        varied = [sensing.varied(path, given, figure, factor) for factor in (0.5, 2.0)]
        lines.append([figure.name, figure.shown, figure.source, *(cell for each in varied for cell in times(each))])
    print_table(titles, lines, numbers=set(titles[3:]))
    return 0
