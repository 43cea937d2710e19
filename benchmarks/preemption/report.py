"""The demonstration's table: each way in each setting, and what it took beside Pilotlight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import show
from benchmarks.preemption.claims import compare
from benchmarks.preemption.record import Record

HEADER = [
    "",
    "time",
    "/ ours",
    "loads",
    "loading s",
    "kills",
    "rows lost",
    "work lost s",
    "rows/worker-s",
    "others' cores",
]


@dataclass
class Setting:
    """One world: speeds of the slots, whether workers are killed, and all ways in it, Pilotlight last."""

    name: str
    title: str
    speeds: Sequence[float]
    killed: bool
    records: list[Record] = field(default_factory=list[Record])

    @property
    def ours(self) -> Record:
        return self.records[-1]


def duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def table(setting: Setting) -> None:
    """Print it. Figures of runs that were not made in full begin with ~."""
    rows: list[list[object]] = []
    for record in setting.records:
        about = "~" if record.estimated else ""
        rows.append(
            [
                record.way,
                about + duration(record.wall_s),
                "" if record is setting.ours else f"{about}{record.wall_s / setting.ours.wall_s:,.2f}",
                f"{about}{record.loads:,}",
                f"{about}{record.load_s:,.1f}",
                f"{about}{record.kills:,}",
                f"{about}{record.lost_rows:,}",
                f"{about}{record.lost_s:,.1f}",
                f"{about}{record.rows / record.worker_s:,.1f}",
                "" if record.estimated else f"{record.others:.1f}",
            ]
        )
    show(setting.title, HEADER, rows)


def agreement(settings: Sequence[Setting], samples: Sequence[Record]) -> list[str]:
    """One sentence per way: in how many rows its labels are those of Pilotlight's run in the same setting."""
    said = [
        f"{setting.name}, {record.way}: {_agree(record, setting.ours)}"
        for setting in settings
        for record in setting.records[:-1]
        if record.verdicts
    ]
    said += [f"{sample.way}: {_agree(sample, settings[0].ours)}" for sample in samples]
    return said


def _agree(record: Record, ours: Record) -> str:
    rows, differ, ties = compare(record.verdicts, ours.verdicts)
    assert rows, f"no row of {record.way} can be compared"
    return f"{rows:,} rows compared, {differ} labels differ ({ties} of them ties)"


def figures(settings: Sequence[Setting], said: Sequence[str]) -> dict[str, Any]:
    """For the file: everything but the rows themselves."""
    found: dict[str, Any] = {"agreement": list(said)}
    for setting in settings:
        found[setting.name] = {"title": setting.title, "speeds": list(setting.speeds), "ways": {}}
        for record in setting.records:
            kept = ("wall_s", "worker_s", "rows", "loads", "load_s", "kills", "lost_rows", "lost_s", "others")
            ways = found[setting.name]["ways"]
            ways[record.way] = {name: getattr(record, name) for name in kept}
            ways[record.way] |= {
                "estimated": record.estimated,
                "measured_rows": record.measured_rows,
                "ratio": record.wall_s / setting.ours.wall_s,
                "rows_per_worker_s": record.rows / record.worker_s,
            }
    return found
