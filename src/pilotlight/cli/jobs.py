"""`pilotlight jobs`, `attach` and `cancel`: the jobs of a pool that stays, whoever handed them in."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.client.console.follow import follow, say_ending
from pilotlight.client.console.pools import PoolName, connect
from pilotlight.client.console.tables import print_json, print_table
from pilotlight.client.jobs import Job
from pilotlight.client.lasting import is_running
from pilotlight.client.pool import Pool
from pilotlight.client.results import Result
from pilotlight.poolfile import DEFAULT_NAME
from pilotlight.quantities import duration, number
from pilotlight.views import JobView, exit_code
from pilotlight.wire import PathOutput

JobName = Annotated[str, Parameter(help="The job's id, or the path of its output.")]


def jobs(
    *,
    pool: PoolName = DEFAULT_NAME,
    json: Annotated[bool, Parameter(help="One JSON object a line.", negative="")] = False,
) -> int:
    """List the jobs of a pool: those that run, then those that ended lately."""
    with connect(pool) as connected:
        views = connected.jobs()
    if json:
        print_json(views)
        return 0
    ordered = [view for view in views if is_running(view)] + [view for view in reversed(views) if not is_running(view)]
    if not ordered:
        print(f"pool {pool} has no jobs")
        return 0
    titles = ["job", "state", "rows", "errors", "speed", "ended", "context", "output"]
    print_table(titles, [_line(view) for view in ordered])
    return 0


def _line(view: JobView) -> list[str]:
    rows = f"{view.rows_done:,}" + ("" if view.rows_total is None else f" of {view.rows_total:,}")
    fresh = view.rows_done - view.rows_resumed
    speed = f"{number(fresh / view.running_s)}/s" if view.running_s > 0 and fresh > 0 else ""
    state = view.state + (", detached" if view.detached and is_running(view) else "")
    ended = "" if is_running(view) else _ago(view)
    output = view.output or "(rows of a process)"
    return [view.job, state, rows, f"{view.rows_error:,}", speed, ended, view.context, output]


def _ago(view: JobView) -> str:
    return f"{duration(max(0.0, time.time() - view.ended_s))} ago" if view.ended_s else "lately"


def attach(
    job: JobName,
    /,
    *,
    pool: PoolName = DEFAULT_NAME,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Show why.", negative="")] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], help="Say only what went wrong.", negative="")] = False,
) -> int:
    """Follow a job as its own command does, and end with its exit code. Ctrl-C changes nothing for the job."""
    handles: list[Job[Result]] = []

    def submit(connected: Pool, _again: bool) -> Job[Result]:
        handles.append(connected.attach(handles[-1].id if handles else job))
        return handles[-1]

    connected = connect(pool, watch_s=0.5, quiet=quiet)
    if (over := _over(connected, job)) is not None:
        connected.close()
        why = f": {over.message}" if over.message else ""
        print(f"{over.job} is over: {over.state}, {over.rows_done:,} rows done, {over.rows_error:,} error rows{why}")
        return exit_code(over.state, over.rows_error)
    ending = follow(connected, submit, output=Path(job), quiet=quiet, verbose=verbose, leaves=True)
    accepted = next((handle.accepted for handle in handles if handle.accepted), None)
    sink = accepted.request.output if accepted else None
    say_ending(ending, Path(sink.path) if isinstance(sink, PathOutput) else None, quiet=quiet)
    return ending.exit_code


def _over(connected: Pool, job: str) -> JobView | None:
    """The job of that id or output, if it ended and no other of that output runs."""
    connected.start()
    output = os.path.abspath(job)
    views = [view for view in connected.jobs() if view.job == job or view.output == output]
    return None if not views or any(map(is_running, views)) else views[-1]


def cancel(
    job: JobName,
    /,
    *,
    pool: PoolName = DEFAULT_NAME,
    now: Annotated[bool, Parameter(help="Don't let rows finish that replicas have begun.", negative="")] = False,
) -> int:
    """End a job; what it has written stays, and the same command goes on."""
    with connect(pool) as connected:
        print(connected.cancel(job, drain=not now))
    return 0
