"""How a replica's rows are cut into steps, and how many of these pass between two reports.

A real replica reports what it answered many times a second. Where nothing else happens to it, many steps are reported
as one; what had been answered when something happens is known then, as if it had been reported as it came.
"""

from __future__ import annotations

from pilotlight.core.ranges import IndexSet, Span, span_count
from pilotlight.sim.spec import Kind, Pace, Work

ROWS_MAX = 4096
"""Rows that take no time are answered so many at once; a replica wants as many at most, beyond those of a report."""
REPORTS_LEFT = 20
"""Reports that a replica has still to make at least, until its job may end; as long as they are longer than a step."""


def report_s(pace: Pace, left_s: float) -> float:
    """How long a replica works before it reports, in seconds, where all that is left of its job takes `left_s`."""
    return max(pace.step_s, min(pace.report_s, left_s / REPORTS_LEFT))


def rows_of(work: Work, kind: Kind, seconds: float) -> int:
    """About how many rows a device of a kind answers in so many seconds."""
    return max(1, int(seconds * kind.speed / work.row_s)) if work.row_s else ROWS_MAX


def take(work: Work, rows: IndexSet, limit_s: float) -> tuple[list[Span], float]:
    """Take the rows of a step out of `rows`: those that take `limit_s` together on a device of speed 1, at least one.
    Returns what they take, too."""
    if not work.sigma:
        spans = rows.take(max(1, int(limit_s / work.row_s)) if work.row_s else ROWS_MAX)
        return spans, span_count(spans) * work.row_s
    spans = rows.take(1)
    seconds = work.seconds(spans[0][0])
    while rows and seconds < limit_s:
        more = rows.take(1)
        seconds += work.seconds(more[0][0])
        spans = [(spans[0][0], more[0][1])] if len(spans) == 1 and spans[0][1] == more[0][0] else spans + more
    return spans, seconds


def answered(work: Work, spans: list[Span], step_s: float, done_s: float) -> tuple[list[Span], float]:
    """Of rows that run step by step: those of the steps that were over after `done_s`, and what they took. The last
    step is never over. All times on a device of speed 1."""
    rows, done, took_s = IndexSet(spans), IndexSet(), 0.0
    if not work.sigma and work.row_s:
        each = max(1, int(step_s / work.row_s))
        count = each * min(int(done_s / (each * work.row_s)), (len(rows) - 1) // each)
        return rows.take(count), count * work.row_s
    while True:
        step, seconds = take(work, rows, step_s)
        if not rows or took_s + seconds > done_s:
            return done.spans(), took_s
        done.update(step)
        took_s += seconds
