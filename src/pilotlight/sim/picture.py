"""A comparison's picture: requests done over time, and below it who was there; and a page with it, whole in itself.

The only module here that needs matplotlib, which the extra `plot` brings.
"""

from __future__ import annotations

import html as escapes
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilotlight.core.errors import ConfigError, MissingExtra
from pilotlight.sim.scenario import Scenario, to_toml
from pilotlight.sim.trial import OURS, Outcome

COLOURS = {"naive": "#9aa0a6", "files": "#bf8f30", "shards": "#3f7fbf", OURS: "#2e8b57"}
STEPS = ("#b7d9c6", "#86c3a0", "#54a97c", "#2e8b57", "#175c36")
"""Of several runs of our own policy, the last is the darkest."""
KINDS = ("#4c6a92", "#8fb0d6", "#c9b27c", "#a57f9c", "#7d9b76", "#c98f7a")
SHOWN_TIMES_MAX = 6.0
"""Time goes on to where the slowest ends that is shown, but not beyond so many times the fastest."""


def check() -> None:
    """Raises `MissingExtra` where matplotlib is not installed: before anything has been simulated."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtra("pictures need matplotlib: pip install 'pilotlight[plot]'") from error
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pilotlight"  # equal runs give equal files
    mpl.rcParams["font.size"] = 10


def draw(scenario: Scenario, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG or SVG file, as the path's name ends. Raises `ConfigError`."""
    if path.suffix.lower() not in {".png", ".svg"}:
        raise ConfigError(f"a picture's name ends in .png or .svg, not {path.name!r}")
    _write(path, _drawn(scenario, outcomes, path.suffix.lower().removeprefix(".")))


def write_page(
    scenario: Scenario, outcomes: Sequence[Outcome], path: Path, headline: Sequence[str], table: Sequence[Sequence[str]]
) -> None:
    """Write a page with everything in it. table: titles, then lines. Raises `ConfigError`."""
    svg = _drawn(scenario, outcomes, "svg").decode()
    svg = svg[svg.index("<svg") :]
    title, *rest = (escapes.escape(line) for line in headline)
    rows = "\n".join(
        f"<tr>{''.join(f'<{cell}>{escapes.escape(text)}</{cell}>' for text in line)}</tr>"
        for cell, line in zip(["th", *["td"] * len(table)], table, strict=False)
    )
    text = _PAGE.format(
        title=title,
        about="".join(f"<p>{line}</p>" for line in rest),
        svg=svg,
        rows=rows,
        scenario=escapes.escape(to_toml(scenario)),
    )
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from error


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; color: #222 }}
h1 {{ font-size: 1.5rem; line-height: 1.25 }} p {{ margin: .3rem 0 }}
svg {{ width: 100%; height: auto; margin: 1rem 0 }}
div {{ overflow-x: auto }} table {{ border-collapse: collapse; width: 100%; font-size: .9rem }}
th, td {{ text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #e4e4e4; white-space: nowrap }}
th {{ border-bottom: 2px solid #999 }} th:first-child, td:first-child {{ text-align: left }}
summary {{ margin-top: 1.5rem; cursor: pointer }} pre {{ background: #f6f6f4; padding: 1rem; overflow-x: auto }}
</style>
<h1>{title}</h1>
{about}
{svg}
<div><table>
{rows}
</table></div>
<details><summary>The scenario, with all that is not as it would be anyway</summary><pre>{scenario}</pre></details>
</html>
"""


# --- drawing


def _drawn(scenario: Scenario, outcomes: Sequence[Outcome], kind: str) -> bytes:
    import matplotlib.pyplot as plt

    shown = _shown(outcomes)
    ends = [outcome.end_s if outcome.end_s < float("inf") else outcome.meter.curve[-1][0] for outcome in shown]
    end_s = min(max(ends), SHOWN_TIMES_MAX * min(ends)) * 1.04
    unit, unit_s = ("hours", 3600.0) if end_s > 7200 else ("minutes", 60.0)
    drawing: Any = plt
    figure, axes = drawing.subplots(
        2, 1, figsize=(11, 6.5), sharex=True, height_ratios=[3, 2], layout="constrained", squeeze=False
    )
    rows, workers = axes[0][0], axes[1][0]
    _rows(rows, scenario, shown, end_s, unit_s)
    _workers(workers, shown, end_s, unit_s)
    rows.set_title(scenario.title, fontsize=12, loc="left")
    workers.set_xlabel(unit)
    workers.set_xlim(0, end_s / unit_s)
    for each in (rows, workers):
        each.spines[["top", "right"]].set_visible(False)
        each.set_axisbelow(True)
        each.grid(visible=True, alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    drawing.close(figure)
    return buffer.getvalue()


def _shown(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """All that have no batches, and of the others the best and the worst that ended, in the order of their ends."""
    shown = [outcome for outcome in outcomes if not outcome.batch]
    for policy in {outcome.policy: None for outcome in outcomes if outcome.batch}:
        sizes = sorted((o for o in outcomes if o.policy == policy and o.batch), key=lambda o: o.end_s)
        shown += sizes[:1]
    return sorted(shown, key=lambda outcome: outcome.end_s)


def _rows(axes: Any, scenario: Scenario, shown: Sequence[Outcome], end_s: float, unit_s: float) -> None:
    total = sum(work.rows for work in scenario.jobs)
    ours = [outcome for outcome in shown if outcome.policy == OURS]
    for outcome in shown:
        colour = COLOURS[outcome.policy]
        if outcome.policy == OURS and len(ours) > 1:
            colour = STEPS[max(0, len(STEPS) - 1 - ours.index(outcome))]
        points = [(0.0, 0), *outcome.meter.curve]
        if outcome.batch:  # whole batches at a time
            axes.step(*_scaled(points, unit_s), where="post", color=colour, label=outcome.name, linewidth=1.5)
        else:
            wide = 2.4 if outcome.policy == OURS else 1.6
            axes.plot(*_scaled(points, unit_s), color=colour, label=outcome.name, linewidth=wide)
    bound_s = min((outcome.bound_s for outcome in shown), default=float("inf"))
    if bound_s <= end_s:
        axes.axvline(
            bound_s / unit_s, color="black", linewidth=1, linestyle=(0, (4, 3)), label="nobody could be sooner"
        )
    axes.set_ylim(0, 1.04 * total)
    axes.set_ylabel("requests done")
    axes.yaxis.set_major_formatter(_thousands)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _scaled(points: Sequence[tuple[float, int]], unit_s: float) -> tuple[list[float], list[int]]:
    return [at_s / unit_s for at_s, _ in points], [value for _, value in points]


def _workers(axes: Any, shown: Sequence[Outcome], end_s: float, unit_s: float) -> None:
    """Workers of each kind over time: the same for all policies, so from the run that took longest."""
    changes = max((outcome.meter for outcome in shown), key=lambda meter: meter.device_s).present
    kinds = list({kind: None for _, kind, _ in changes})
    now = dict.fromkeys(kinds, 0)
    times: list[float] = [0.0]
    levels: list[list[int]] = [[0] for _ in kinds]
    last_s = changes[-1][0] if changes else 0.0
    for at_s, kind, count in changes:
        if at_s > end_s or (at_s == last_s and count < now[kind]):  # the run's end takes all away
            break
        now[kind] = count
        if at_s == times[-1]:
            for level, name in zip(levels, kinds, strict=True):
                level[-1] = now[name]
            continue
        times.append(at_s)
        for level, name in zip(levels, kinds, strict=True):
            level.append(now[name])
    times.append(min(end_s, last_s))
    for level in levels:
        level.append(level[-1])
    axes.stackplot([at_s / unit_s for at_s in times], levels, labels=kinds, colors=KINDS, step="post", linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("workers there")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(_thousands)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, reverse=True)


def _thousands(value: float, _: object) -> str:
    return f"{value:,.0f}"
