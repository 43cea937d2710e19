"""The demonstration's picture: requests done over time, and below it who was there and who was loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.preemption.record import Record
from benchmarks.preemption.report import Setting

COLOURS = ("#9aa0a6", "#bf8f30", "#3f7fbf", "#7a5fb0", "#2e8b57")
LOADING = "#e8b4a0"


def draw(settings: Sequence[Setting], path: Path) -> None:
    """Write an SVG or PNG: one column per setting."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pilotlight"  # equal runs give equal files
    import matplotlib.pyplot as plt

    size = (6.0 * len(settings) + 1.5, 6.5)
    figure, axes = plt.subplots(
        2, len(settings), figsize=size, squeeze=False, height_ratios=[3, 2], layout="constrained"
    )
    for column, setting in enumerate(settings):
        _rows(axes[0][column], setting, last=column == len(settings) - 1)
        _workers(axes[1][column], setting, axes[0][column].get_xlim())
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _shown(setting: Setting) -> list[Record]:
    """All that was run in full, and of the others the best batch size of each kind."""
    best: dict[str, Record] = {}
    for record in setting.records:
        kind = record.way.partition(",")[0]
        if kind not in best or record.wall_s < best[kind].wall_s:
            best[kind] = record
    return list(best.values())


def _rows(axes: Any, setting: Setting, *, last: bool) -> None:
    for record, colour in zip(_shown(setting), COLOURS, strict=False):
        seconds, rows = zip(*[(0.0, 0), *record.done], strict=True)
        style = "--" if record.estimated else "-"
        label = f"{record.way} (estimated)" if record.estimated else record.way
        axes.plot(seconds, rows, style, color=colour, label=label, linewidth=2 if record is setting.ours else 1.4)
    axes.set_xlim(0, 1.05 * max(record.wall_s for record in setting.records if not record.estimated))
    axes.set_ylim(0, 1.05 * setting.ours.rows)
    axes.set_title(setting.title, fontsize=10)
    axes.set_ylabel("requests done")
    axes.grid(visible=True, alpha=0.3)
    if last:
        axes.legend(fontsize=8, loc="lower right")


def _workers(axes: Any, setting: Setting, limits: tuple[float, float]) -> None:
    """A bar per worker, pale while it loads; a cross where it was killed."""
    shown = [(record, colour) for record, colour in zip(_shown(setting), COLOURS, strict=False) if not record.estimated]
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for record, colour in reversed(shown):
        for slot, speed in enumerate(setting.speeds):
            for life in (life for life in record.present if life.slot == slot):
                live_s = life.until_s if life.live_s < 0 else life.live_s
                axes.barh(place, live_s - life.from_s, left=life.from_s, height=0.7, color=LOADING)
                axes.barh(place, life.until_s - live_s, left=live_s, height=0.7, color=colour)
                if life.killed:
                    axes.plot([life.until_s], [place], "x", color="black", markersize=6)
            ticks.append((place, f"{record.way}: speed {speed:g}"))
            place += 1
        place += 0.5
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=7)
    axes.set_xlim(limits)
    axes.set_xlabel("seconds (pale: starting and loading; cross: killed)")
