"""What a command says at the end of a job, as lines of text. Pure."""

from __future__ import annotations

from pilotlight.messages import JobEnded
from pilotlight.quantities import duration, number


def summarise(ended: JobEnded, *, output: str, report: str | None = None) -> list[tuple[str, str]]:
    """Pairs of what and how much, in the order in which people ask."""
    view, totals, counters = ended.view, ended.totals, ended.view.counters
    fresh = view.rows_done - view.rows_resumed
    rows = f"{view.rows_done:,} done"
    if view.rows_resumed:
        rows += f" ({view.rows_resumed:,} of them by earlier runs)"
    lines = [("requests", rows)]
    if view.running_s > 0 and fresh > 0:
        lines.append(("speed", f"{number(fresh / view.running_s)} requests/s over {duration(view.running_s)}"))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(view.errors.items(), key=lambda pair: -pair[1]))
    lines.append(("error rows", f"{view.rows_error:,}" + (f" ({kinds})" if kinds else "")))
    tokens = [
        f"{int(counters[name]):,} {label}"
        for name, label in (("prompt_tokens", "read"), ("completion_tokens", "written"))
        if counters.get(name)
    ]
    if tokens:
        lines.append(("tokens", ", ".join(tokens)))
    if counters.get("truncated"):
        lines.append(("truncated", f"{int(counters['truncated']):,} prompts were too long and cut"))
    if counters.get("length"):
        lines.append(("cut short", f"{int(counters['length']):,} answers were cut at max_tokens"))
    loads = sum(totals.loads.values())
    named = ", ".join(f"{name} {_times(count)}" for name, count in totals.loads.items())
    lines.append(("contexts loaded", f"{named} ({_times(loads)} in all)" if len(totals.loads) > 1 else named or "none"))
    lines.append(("time", f"{duration(totals.load_s)} loading, {duration(totals.busy_s)} inferring (all workers)"))
    lines.append(("work lost", _lost(ended)))
    if output and ended.outcome == "completed":
        lines.append(("output", output))
    elif output and ended.outcome == "failed":
        lines.append(("unfinished", f"rows that were done are kept in {output}.pilotlight"))
    elif output:
        lines.append(("unfinished", f"rows are kept in {output}.pilotlight; the same command goes on"))
    if report:
        lines.append(("report", report))
    return lines


def _lost(ended: JobEnded) -> str:
    totals = ended.totals
    if not totals.workers_lost and not totals.replicas_lost:
        return "none"
    losses = [
        f"{count} {what if count == 1 else what + 's'}"
        for count, what in ((totals.workers_lost, "worker"), (totals.replicas_lost, "replica"))
        if count
    ]
    rows = "1 request" if totals.rows_lost == 1 else f"{totals.rows_lost:,} requests"
    return f"{rows} had begun and ran again; {' and '.join(losses)} lost"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def render(lines: list[tuple[str, str]]) -> str:
    """The lines as an aligned table of plain text."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
