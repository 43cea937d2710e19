"""Running one job between files from a command: start the pool, show progress, mind signals, say how it ended.

One Ctrl-C or SIGTERM lets rows in flight finish and ends with 128+signal; a second one ends at once, and so does the
first while there is no job yet (a model is fetched, an earlier output is looked through). Either way the same command
goes on later, because the manager keeps what is finished. A job that is detached, or that another command asks for,
is left as it is.
"""

from __future__ import annotations

import itertools
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

import msgspec

from pilotlight.client import lasting
from pilotlight.client.console.display import Display, choose
from pilotlight.client.console.fold import Fold
from pilotlight.client.console.summary import render, summarise
from pilotlight.client.jobs import Job
from pilotlight.client.launch import END_S_MAX
from pilotlight.client.places import elsewhere
from pilotlight.client.pool import Pool
from pilotlight.core.errors import JobCancelled, JobFailed, LinkClosed, OutputError, PilotlightError
from pilotlight.core.story.words import count_text
from pilotlight.io.report import report_path
from pilotlight.messages import Accepted, JobEnded, Notice, Snapshot
from pilotlight.poolfile import DEFAULT_NAME
from pilotlight.views import ERROR_ROWS_EXIT_CODE, exit_code

POLL_S = 0.1
AT_ONCE_S = 1.0
"""How long the manager may take to leave when the user would not wait."""
HINT_S = 5.0
CRASHES_MAX = 3
"""Crashes of a pool's manager in a row, without a row finished between, after which a command gives up."""
REVIVALS_MAX, ARRIVALS_MAX = 4, 11
"""How often to try to bring the pool up again; or to find it where somebody else does that, for about a minute."""
REVIVAL_S = 1.0

Submit = Callable[[Pool, bool], Job[Any]]
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
    """How a command's job ended. `ended` is None if it never got that far. `goes_on`: the job runs without us."""

    exit_code: int
    ended: JobEnded | None = None
    notes: list[str] = field(default_factory=list[str])
    goes_on: bool = False


class Left(Exception):
    """This command leaves a job that goes on without it; the text says how to look at it."""


@dataclass
class Follower:
    """One command's view of one job in `pool`, which is ended (or left, if it stays) afterwards.

    submit: hands the job in; `again`: it had begun, in a pool whose manager crashed since. leaves: Ctrl-C leaves the
    job running. planned: workers whose loss is no trouble.
    """

    pool: Pool
    submit: Submit
    output: Path
    quiet: bool = False
    verbose: bool = False
    step: Step | None = None
    leaves: bool = False
    planned: Callable[[], set[str]] = set
    fold: Fold = field(default_factory=Fold)
    interrupts: Interrupts = field(default_factory=Interrupts)
    _arrived: queue.SimpleQueue[Snapshot | Notice] = field(default_factory=queue.SimpleQueue)
    _begun: bool = False
    _drain: Drain | None = None

    def run(self) -> Ending:
        """See the job through. Raises `ConfigError` for what the manager refuses, `PilotlightError` when the pool
        itself breaks."""
        self.pool.watch(self._arrived.put)
        display = choose(quiet=self.quiet, verbose=self.verbose)
        interrupts = self.interrupts
        with interrupts.caught(), display:
            try:
                ended = self._through_crashes(display)
            except Left as left:
                return Ending(128 + (interrupts.first or signal.SIGINT), None, [str(left)], goes_on=True)
            except KeyboardInterrupt:
                interrupts.at_once = True
                text = f"stopped at once; what was written stays, and the same command goes on ({self.output})"
                if self.leaves:
                    text = "left before the pool had answered; nothing was stopped"
                return Ending(128 + (interrupts.first or signal.SIGINT), None, [text])
            finally:
                log_dir, trouble = self.pool.log_dir, self.pool.troubled - self.planned()
                self.pool.close(grace_s=AT_ONCE_S if interrupts.at_once else END_S_MAX)
        if self.pool.name:
            ended = msgspec.structs.replace(ended, totals=self.fold.since(ended.totals))
        mine = not self.pool.name or ended.outcome in {"failed", "suspended"}
        return _ending(
            ended, interrupts, self.output, f"logs of what went wrong: {log_dir}" if trouble and mine else ""
        )

    def _through_crashes(self, display: Display) -> JobEnded:
        """As `_see_through`; where the manager of a pool that stays crashes, the next one goes on with the job."""
        crashes = rows_done = 0
        while True:
            job: Job[Any] | None = None
            try:
                self.pool.start()
                _leave_if_interrupted(self.interrupts)
                job = self.submit(self.pool, self._begun)
                return self._see_through(job, display)
            except LinkClosed:
                done = self.fold.view.rows_done if self.fold.view else 0
                crashes, rows_done = (1 if done > rows_done else crashes + 1), done
                if not self.pool.name or crashes > CRASHES_MAX:
                    raise
                self._begun |= job is not None and job.accepted is not None
                self._brought_back(display)

    def _brought_back(self, display: Display) -> None:
        """Bring the pool up again, with patience, and connect to it."""
        away = elsewhere(self.pool.name) is not None
        what = "waiting for the next one" if away else "bringing it up again"
        display.note(f"the manager of pool {self.pool.name} is gone; {what}", "warning")
        for attempt in itertools.count(1):
            _leave_if_interrupted(self.interrupts)
            try:
                if not away and lasting.revive(self.pool.name) is None:
                    text = f"pool {self.pool.name} was taken down; what was written stays, and the same command goes on"
                    raise JobCancelled(f"{text} ({self.output})")
                self.pool.reconnect()
            except JobCancelled:
                raise
            except PilotlightError:
                if attempt == (ARRIVALS_MAX if away else REVIVALS_MAX):
                    raise
                time.sleep(REVIVAL_S * attempt)
            else:
                self.fold.forget()
                display.note(f"pool {self.pool.name} is up again; the job goes on")
                return

    def _see_through(self, job: Job[Any], display: Display) -> JobEnded:
        said = False
        while True:
            over = _waited(job)
            self.fold.job = job.id
            now_s = time.monotonic()
            while not self._arrived.empty():
                self.fold.take(self._arrived.get(), now_s)
            if job.accepted and not said:
                said = True
                self._say_begun(job, display)
            if self.step is not None:
                self.step(self.fold, display)
            if over is not None:
                self.fold.take(over, now_s)
                display.update(self.fold, now_s)
                return over
            display.update(self.fold, now_s)
            self._mind_signals(job, display, now_s)

    def _mind_signals(self, job: Job[Any], display: Display, now_s: float) -> None:
        if not self.interrupts.first:
            return
        if job.accepted is None:
            raise KeyboardInterrupt
        if self.leaves:
            raise Left(f"left; {job.id} goes on (pilotlight attach {job.id}{_in(self.pool)})")
        if self._drain is None and (why := self._goes_on(job)):
            raise Left(f"left; {job.id} goes on, {why} (pilotlight cancel {job.id}{_in(self.pool)} ends it)")
        if self._drain is None:
            self._drain = Drain(now_s)
            display.note("stopping: rows in flight may finish (once more: stop at once)", "warning")
            job.cancel(drain=True)
        elif text := self._drain.hint(self.fold, now_s):
            display.note(text)

    def _goes_on(self, job: Job[Any]) -> str:
        """Why the job runs on when this command leaves, if it does."""
        if not self.pool.name:
            return ""
        view = next((view for view in self.pool.jobs() if view.job == job.id and lasting.is_running(view)), None)
        if view is None:
            return ""
        return "as it is detached" if view.detached else "as another command asks for it" if view.holders > 1 else ""

    def _say_begun(self, job: Job[Any], display: Display) -> None:
        assert job.accepted is not None
        if self.pool.name and not self._begun:
            display.note(f"on pool {self.pool.name} ({self._size()})")
        if job.accepted.joined and not self._begun and not self.leaves:
            display.note(f"joining {job.id}, which another command began")
        elif job.accepted.complete:
            display.note(f"nothing is left to do: all {job.accepted.rows_done:,} rows have their answer")
        elif job.accepted.rows_done and not job.accepted.joined:
            display.note(f"going on after {job.accepted.rows_done:,} rows that an earlier run finished")

    def _size(self) -> str:
        live = {
            replica.context for worker in self.fold.workers for replica in worker.replicas if replica.state == "live"
        }
        workers = len([worker for worker in self.fold.workers if worker.state != "lost"])
        return f"{count_text(workers, 'worker')}, {count_text(len(live), 'context')} live"


@dataclass
class Drain:
    """What is waited for after Ctrl-C, said every few seconds. `began_s`: on the clock of `hint`."""

    began_s: float
    _said: int = 0

    def hint(self, fold: Fold, now_s: float) -> str:
        """A sentence when it is time for one, else nothing."""
        waited_s = now_s - self.began_s
        if waited_s < (self._said + 1) * HINT_S:
            return ""
        self._said = int(waited_s // HINT_S)
        rows = count_text(fold.view.rows_leased, "row") if fold.view and fold.view.rows_leased else "the last rows"
        return f"waiting for {rows} that replicas have begun, for {waited_s:.0f} s now (once more: stop at once)"


def follow(pool: Pool, submit: Submit, *, output: Path, **how: Any) -> Ending:
    """See `Follower`."""
    return Follower(pool, submit, output, **how).run()


def hand_over(pool: Pool, submit: Submit, *, quiet: bool = False) -> Ending:
    """Give a detached job to a pool that stays, and leave. Its id is all that stdout gets. Raises as `follow` does."""
    with Interrupts().caught() as interrupts:
        try:
            with pool:
                job = submit(pool, False)
                while job.accepted is None and not job.over:
                    _leave_if_interrupted(interrupts)
                    _waited(job)
                accepted = job.accepted or _refusal(job)
        except KeyboardInterrupt:
            text = (
                f"left before the pool had taken the job, which may still begin (pilotlight jobs{_in(pool)} shows it)"
            )
            return Ending(128 + (interrupts.first or signal.SIGINT), None, [text])
    say(job.id)
    if accepted.complete:
        return Ending(0, None, [f"nothing is left to do: all {accepted.rows_done:,} rows have their answer"])
    resumed = f", after {accepted.rows_done:,} rows that an earlier run finished" if accepted.rows_done else ""
    where = _in(pool)
    look = f"pilotlight attach {job.id}{where} shows it, pilotlight cancel {job.id}{where} ends it"
    if not quiet:
        sys.stderr.write(f"pilotlight: {job.id} runs on pool {pool.name}{resumed}; {look}\n")
    return Ending(0, goes_on=True)


def _refusal(job: Job[Any]) -> Accepted:
    job.wait()
    assert job.accepted is not None
    return job.accepted


def _in(pool: Pool) -> str:
    return "" if pool.name in {"", DEFAULT_NAME} else f" --pool {pool.name}"


def _leave_if_interrupted(interrupts: Interrupts) -> None:
    """Before there is a job, there is nothing to finish first."""
    if interrupts.first:
        raise KeyboardInterrupt


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
        code = exit_code(ended.outcome, view.rows_error)
        if view.rows_error:
            rows = "1 row is an error row" if view.rows_error == 1 else f"{view.rows_error:,} rows are error rows"
            notes.append(f"{rows}; --retry-errors does {'it' if view.rows_error == 1 else 'them'} again")
    elif interrupts.first:
        code = 128 + interrupts.first
        notes.append(
            f"stopped after {count_text(view.rows_done, 'row')}; the same command goes on from there ({output})"
        )
        if ended.outcome != "cancelled":
            notes.append(ended.message or f"the job ended {ended.outcome}")
    else:
        code = ended.exit_code or 1
        by_others = "it was cancelled by another command, or its pool was taken down"
        notes.append(ended.message or (by_others if ended.outcome == "cancelled" else f"the job ended {ended.outcome}"))
        if ended.outcome in {"suspended", "cancelled"}:
            kept = "1 row is kept" if view.rows_done == 1 else f"{view.rows_done:,} rows are kept"
            notes.append(f"{kept}; the same command goes on from there")
    if logs:
        notes.append(logs)
    return Ending(code, ended, notes)


def say_ending(ending: Ending, output: Path | None, *, quiet: bool, more: list[tuple[str, str]] | None = None) -> None:
    """The summary on stdout (with `more` lines of the caller's), and what the user should know on stderr."""
    if ending.ended is not None and not quiet:
        name = "" if output is None else str(output)
        report = report_path(name)
        there = ending.ended.outcome == "completed" and os.path.exists(report)
        lines = summarise(ending.ended, output=name, report=report if there else None)
        say(render(lines + (more or [])))
    for note in ending.notes:
        if not quiet or ending.exit_code not in {0, ERROR_ROWS_EXIT_CODE}:
            sys.stderr.write(f"pilotlight: {note}\n")


def say(text: str) -> None:
    """Print on stdout at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 - the terminal is where this speaks
