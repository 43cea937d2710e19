"""Lists on stdout: a table for people, a JSON object a line for programs."""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pilotlight.views import ContextView

if TYPE_CHECKING:
    from rich.console import JustifyMethod


NUMBERS = frozenset({"rows", "errors", "memory", "devices", "disk"})
"""Columns of figures stand right."""


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, numbers: Collection[str] = NUMBERS) -> None:
    """Columns as wide as what is in them, as wide as the terminal; into a pipe nothing is cut. numbers: titles of
    columns of figures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for title in titles:
        justify: JustifyMethod = "right" if title in numbers else "left"
        table.add_column(title, overflow="fold", justify=justify, no_wrap=title not in {"output", "took"})
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    width = max(sum(map(len, cells)) for cells in zip(*[titles, *lines], strict=True)) * len(titles)
    console = Console(highlight=False, width=width + 4 * len(titles), file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))  # noqa: T201 - as below


def print_json(values: Sequence[Any]) -> None:
    """What programs read."""
    for value in values:
        print(msgspec.json.encode(value).decode())  # noqa: T201 - the terminal is where this speaks


def where(view: ContextView) -> str:
    """`live on 2 devices, parked, staged`; `nowhere` for a context that is only remembered."""
    levels = [residence.level for residence in view.residences]
    parts: list[str] = []
    for level in ("live", "starting", "asleep", "parked", "staged"):
        count = levels.count(level)
        if count and level in {"live", "starting", "asleep"}:
            parts.append(f"{level} on {count} device{'' if count == 1 else 's'}")
        elif count:
            parts.append(level)
    if view.trouble and "live" not in levels:
        parts.append(f"can't be loaded: {view.trouble}")
    return ", ".join(parts) or "nowhere"
