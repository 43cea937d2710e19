"""Running one job between files from a command: start the pool, show progress, mind signals, say how it ended.

One Ctrl-C or SIGTERM lets rows in flight finish and ends with 128+signal; a second one ends at once, and so does the
first while there is no job yet (a model is fetched, an earlier output is looked through). Either way the same command
goes on later, because the manager keeps what is finished.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pilotlight.client.console.display import Display, choose
from pilotlight.client.console.fold import Fold
from pilotlight.client.console.summary import render, summarise
from pilotlight.client.jobs import Job
from pilotlight.client.launch import END_S_MAX
from pilotlight.client.pool import Pool
from pilotlight.core.errors import JobCancelled, JobFailed, OutputError
from pilotlight.io.report import report_path
from pilotlight.messages import JobEnded, Notice, Snapshot

POLL_S = 0.1
ROW_ERRORS_EXIT_CODE = 3
AT_ONCE_S = 1.0
"""How long the manager may take to leave when the user would not wait."""

Step = Callable[[Fold, Display], None]
"""Called ten times a second while the job runs."""


@dataclass
class Interrupts:
    """Signals received so far. The second one raises KeyboardInterrupt wherever the main thread is."""

    first: int = 0
    at_once: bool = False
    """The command is ending as fast as it can; further signals change nothing."""

    @contextmanager
    def caught(self) -> Generator[Interrupts]:
        """Within: INT, TERM and HUP are counted instead of killing."""
        # What nohup or a shell's & has set to be ignored stays ignored.
        names = [
            name
            for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(name) is not signal.SIG_IGN
        ]
        before = {name: signal.signal(name, self._on_signal) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.at_once:
            return
        if self.first:
            raise KeyboardInterrupt
        self.first = number


@dataclass
class Ending:
    """How a command's job ended. `ended` is None if it never got that far."""

    exit_code: int
    ended: JobEnded | None = None
    notes: list[str] = field(default_factory=list[str])


def follow(
    pool: Pool,
    submit: Callable[[Pool], Job[Any]],
    *,
    output: Path,
    quiet: bool = False,
    verbose: bool = False,
    step: Step | None = None,
) -> Ending:
    """Start `pool`, `submit` the job, and see it through. Ends the pool.

    Raises `ConfigError` for what the manager refuses, `PilotlightError` when the pool itself breaks.
    """
    fold = Fold()
    arrived: queue.SimpleQueue[Snapshot | Notice] = queue.SimpleQueue()
    pool.watch(arrived.put)
    display = choose(quiet=quiet, verbose=verbose)
    interrupts = Interrupts()
    with interrupts.caught(), display:
        try:
            pool.start()
            _leave_if_interrupted(interrupts)
            job = submit(pool)
            ended = _see_through(job, fold, arrived, display, interrupts, step)
        except KeyboardInterrupt:
            interrupts.at_once = True
            text = f"stopped at once; what was written stays, and the same command goes on ({output})"
            return Ending(128 + (interrupts.first or signal.SIGINT), None, [text])
        finally:
            log_dir = pool.log_dir
            pool.close(grace_s=AT_ONCE_S if interrupts.at_once else END_S_MAX)
    return _ending(ended, interrupts, output, f"logs of what went wrong: {log_dir}" if pool.trouble else "")


def _see_through(
    job: Job[Any],
    fold: Fold,
    arrived: queue.SimpleQueue[Snapshot | Notice],
    display: Display,
    interrupts: Interrupts,
    step: Step | None,
) -> JobEnded:
    cancelled = resumed_said = False
    while True:
        over = _waited(job)
        fold.job = job.id
        now_s = time.monotonic()
        while not arrived.empty():
            fold.take(arrived.get(), now_s)
        if job.accepted and not resumed_said:
            resumed_said = True
            _say_resumed(job, display)
        if step is not None:
            step(fold, display)
        if over is not None:
            fold.take(over, now_s)
            display.update(fold, now_s)
            return over
        display.update(fold, now_s)
        if job.accepted is None:
            _leave_if_interrupted(interrupts)
        if interrupts.first and not cancelled:
            cancelled = True
            display.note("stopping: rows in flight may finish (once more: stop at once)", "warning")
            job.cancel(drain=True)


def _leave_if_interrupted(interrupts: Interrupts) -> None:
    """Before there is a job, there is nothing to finish first."""
    if interrupts.first:
        raise KeyboardInterrupt


def _say_resumed(job: Job[Any], display: Display) -> None:
    assert job.accepted is not None
    if job.accepted.complete:
        display.note(f"nothing is left to do: all {job.accepted.rows_done:,} rows have their answer")
    elif job.accepted.rows_done:
        display.note(f"going on after {job.accepted.rows_done:,} rows that an earlier run finished")


def _waited(job: Job[Any]) -> JobEnded | None:
    """Wait a moment; how the job ended, if it has. Raises where it was refused, or the pool is gone."""
    try:
        return job.wait(POLL_S)
    except TimeoutError:
        return None
    except (JobCancelled, JobFailed, OutputError):
        if job.ended is None:
            raise
        return job.ended


def _ending(ended: JobEnded, interrupts: Interrupts, output: Path, logs: str) -> Ending:
    notes: list[str] = []
    view = ended.view
    if ended.outcome == "completed":
        code = ROW_ERRORS_EXIT_CODE if view.rows_error else 0
        if view.rows_error:
            notes.append(f"{view.rows_error:,} rows are error rows; --retry-errors does them again")
    elif interrupts.first:
        code = 128 + interrupts.first
        notes.append(f"stopped after {view.rows_done:,} rows; the same command goes on from there ({output})")
        if ended.outcome != "cancelled":
            notes.append(ended.message or f"the job ended {ended.outcome}")
    else:
        code = ended.exit_code or 1
        notes.append(ended.message or f"the job ended {ended.outcome}")
        if ended.outcome == "suspended":
            notes.append(f"{view.rows_done:,} rows are kept; the same command goes on from there")
    if logs:
        notes.append(logs)
    return Ending(code, ended, notes)


def say_ending(ending: Ending, output: Path, *, quiet: bool, more: list[tuple[str, str]] | None = None) -> None:
    """The summary on stdout (with `more` lines of the caller's), and what the user should know on stderr."""
    if ending.ended is not None and not quiet:
        report = report_path(str(output))
        lines = summarise(ending.ended, output=str(output), report=report if os.path.exists(report) else None)
        say(render(lines + (more or [])))
    for note in ending.notes:
        if not quiet or ending.exit_code not in {0, ROW_ERRORS_EXIT_CODE}:
            sys.stderr.write(f"pilotlight: {note}\n")


def say(text: str) -> None:
    """Print on stdout at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 - the terminal is where this speaks
