"""How stories put rows, durations and sizes into words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pilotlight.core.ranges import IndexSet, Span

SPANS_MAX = 3
"""More are summed up."""


def rows_text(spans: Iterable[Span]) -> str:
    """`row 7`, `rows 120-183 and 190`, `64 rows between 120 and 412`; both ends included."""
    merged = IndexSet(spans)
    parts = merged.spans()
    if not parts:
        return "no row"
    if len(parts) > SPANS_MAX:
        return f"{len(merged):,} rows between {parts[0][0]} and {parts[-1][1] - 1}"
    named = [str(start) if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in parts]
    return f"{'row' if len(merged) == 1 else 'rows'} {listed(named)}"


def count_text(count: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def duration_text(seconds: float) -> str:
    """`35 ms`, `4.1 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def range_text(least_s: float, most_s: float) -> str:
    """What is only known to be between two durations: `1.2 s to 1.9 s`; `1.2 s` where both read alike."""
    least, most = duration_text(max(0.0, least_s)), duration_text(max(0.0, most_s))
    return most if least == most else f"{least} to {most}"


def be_text(spans: Iterable[Span], one: str = "was", many: str = "were") -> str:
    """The verb that goes with `rows_text`: `row 7 was`, `rows 7-8 were`."""
    return one if len(IndexSet(spans)) == 1 else many


def bytes_text(count: int) -> str:
    """`1.2 GB`, `340 MB`, `3 kB`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    if count >= 999_500:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e3:.0f} kB" if count >= 1000 else f"{count} B"


def because_text(why: str) -> str:
    """` (why)`, or nothing where no reason was given."""
    return f" ({why})" if why else ""
