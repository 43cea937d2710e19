"""Which figures of a scenario's file are open, by what its comments say, and the scenario with one of them changed.

A comment that begins with `[assumed]`, `[calibrated]` or `[memory]` marks the figure before it. Figures of one name in
several tables of a sort (`kinds.*.link_bytes_per_s`) are one: they are halved and doubled together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilotlight.sim.scenario import Scenario, read

_TABLE = re.compile(r"\[+([A-Za-z0-9_.-]+)\]+")
_FIGURE = re.compile(r"(\w+)\s*=\s*(\S+)\s*#\s*\[(assumed|calibrated|memory)\]")
_VALUE = re.compile(r'"?([\d._]+)([A-Za-z/]*)"?')


@dataclass(frozen=True, slots=True)
class Figure:
    """An open figure: what it is called, its values by key, and where they are from."""

    name: str
    values: dict[str, str]
    source: str

    @property
    def shown(self) -> str:
        """Its value, or the first and the last of them."""
        values = [value.strip('"') for value in dict.fromkeys(self.values.values())]
        return values[0] if len(values) == 1 else f"{values[0]} … {values[-1]}"


def open_figures(path: Path) -> list[Figure]:
    """The figures that a file marks as open, in its order."""
    found: dict[str, Figure] = {}
    counted: dict[str, int] = {}
    table = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if opened := _TABLE.match(line):
            table = opened[1]
            if line.startswith("[["):
                counted[table] = counted.get(table, 0) + 1
                table = f"{table}.{counted[table]}"
        elif (figure := _FIGURE.match(line)) and _VALUE.fullmatch(figure[2]):
            sort, _, rest = table.partition(".")
            name = f"{sort}.*.{figure[1]}" if rest and sort != "models" else f"{table}.{figure[1]}"
            known = found.setdefault(name, Figure(name, {}, figure[3]))
            known.values[f"{table}.{figure[1]}"] = figure[2]
    return list(found.values())


def varied(path: Path, settings: Mapping[str, str], figure: Figure, factor: float) -> Scenario:
    """The file's scenario with a figure times a factor."""
    return read(path, {**{key: _times(value, factor) for key, value in figure.values.items()}, **settings})


def _times(value: str, factor: float) -> str:
    parts = _VALUE.fullmatch(value)
    assert parts is not None
    figure = float(parts[1].replace("_", "")) * factor
    text = f"{figure:.6f}".rstrip("0").rstrip(".")
    return f'"{text}{parts[2]}"' if parts[2] else text
