"""What a pool's folder remembers from one manager to the next: its epoch, jobs, pilots, pins, and what ended lately.

    epoch          how many managers this pool has had
    numbers        the last job number given out
    jobs/ID.json   a running path job, as it can be opened again
    pilots.json    name -> pilot id ("": it was about to be submitted)
    pins.json      contexts that someone wants live
    history.jsonl  the last ended jobs, a view a line

Each file but the history is replaced as a whole by renaming, so it is old or new and never half. A file that can't be
read (torn by a broken disk, of another version) is told and passed over. What is done of a job is in its output's own
journal, `io/journal.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pilotlight.core.errors import OutputError
from pilotlight.durable import replace_file
from pilotlight.views import JobView
from pilotlight.wire import VERSION, Context, JobRequest

HISTORY_MAX = 100
OLDEST = 2
"""The first version whose jobs can be taken up: later ones only added fields, which have defaults."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A running path job, with all that opening it again needs. `request`: as the manager resolved it."""

    version: int = VERSION
    job: str
    detached: bool
    began_s: float
    request: JobRequest


class PoolJournal:
    """The folder's memory. One manager at a time uses it: the holder of the pool's lock, and of its highest epoch,
    which is seen also where the lock is not.

    Methods that write raise `OutputError` where what they say did not reach the disk; then nothing changed. A pool that
    ends with its client (`keeps` False) remembers nothing on disk; the history is then in memory only.
    """

    def __init__(self, pool: Path, note: Callable[[str, str, str], None], *, keeps: bool, epoch: int = 0) -> None:
        """`read` it before anything else; `note` is told what can't be read or written. epoch: of the manager that
        writes; 0: of none, when no manager can be there."""
        self._pool = pool
        self._note = note
        self._keeps = keeps
        self._epoch = epoch
        self.history: deque[JobView] = deque(maxlen=HISTORY_MAX)
        self._lines = 0
        self._number = 0
        self._counting = threading.Lock()
        self.pilots: dict[str, str] = {}
        self.pins: dict[str, Context] = {}
        self.jobs: dict[str, JobRecord] = {}

    # --- jobs

    def next_number(self) -> int:
        """A number that no job of this pool had or will have. May run in any thread."""
        with self._counting:
            number = self._number + 1
            self._replace("numbers", msgspec.json.encode(number))
            self._number = number
        return number

    def begin_job(self, record: JobRecord) -> None:
        """A job begins. May run in any thread."""
        self._replace(f"jobs/{record.job}.json", msgspec.json.encode(record))
        self.jobs[record.job] = record

    def end_job(self, view: JobView) -> None:
        """A job is over: it goes into the history. Never raises: what a full disk loses is a line of history."""
        self.drop_job(view.job)
        view = msgspec.structs.replace(view, ended_s=time.time())
        self.history.append(view)
        if self._keeps:
            self._guarded(lambda: self._write_history(view))

    def drop_job(self, job_id: str) -> None:
        """As if a job had never begun. Never raises."""
        self.jobs.pop(job_id, None)
        if self._keeps:
            self._guarded(lambda: self._remove(f"jobs/{job_id}.json"))

    # --- pilots and pins

    def keep_pilots(self, pilots: Mapping[str, str]) -> None:
        """The pilots that run now. Never raises."""
        self.pilots = dict(pilots)
        self._guarded(lambda: self._replace("pilots.json", msgspec.json.encode(self.pilots), sync=False))

    def keep_pins(self, pins: Mapping[str, Context]) -> None:
        """The contexts that someone wants live, by variant."""
        self._replace("pins.json", msgspec.json.encode(pins))
        self.pins = dict(pins)

    # --- reading

    def read(self) -> None:
        """Take in what earlier managers left."""
        if not self._keeps:
            return
        self._guarded(lambda: (self._pool / "jobs").mkdir(mode=0o700, exist_ok=True))
        for path in sorted((self._pool / "jobs").glob("*.json")):
            record = self._decoded(path, JobRecord)
            if record is not None and OLDEST <= record.version <= VERSION and path.stem == record.job:
                self.jobs[record.job] = record
            elif record is not None:
                self._pass_over(path, f"it is of version {record.version} and names {record.job}")
        self.jobs = dict(sorted(self.jobs.items(), key=lambda item: item[1].began_s))
        self.pilots = self._decoded(self._pool / "pilots.json", dict[str, str]) or {}
        self.pins = self._decoded(self._pool / "pins.json", dict[str, Context]) or {}
        self._read_history()
        # Numbers also follow from the jobs' names, should the counter itself be lost.
        named = [*self.jobs, *(view.job for view in self.history)]
        numbers = [int(name.split("-")[1]) for name in named if name.split("-")[1:2] and name.split("-")[1].isdigit()]
        self._number = max([self._decoded(self._pool / "numbers", int) or 0, *numbers])

    def _read_history(self) -> None:
        path = self._pool / "history.jsonl"
        torn = 0
        try:
            lines = [line for line in path.read_bytes().splitlines() if line]
        except FileNotFoundError:
            return
        except OSError as error:
            self._pass_over(path, error.strerror or str(error))
            return
        for line in lines:
            try:
                self.history.append(msgspec.json.decode(line, type=JobView))
            except msgspec.MsgspecError:
                torn += 1
        self._lines = len(lines)
        if torn:
            self._note("warning", f"{path}: {torn} lines can't be read and are passed over", "")

    def _decoded(self, path: Path, kind: Any) -> Any:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._pass_over(path, error.strerror or str(error))
        except msgspec.MsgspecError as error:
            self._pass_over(path, str(error))
        return None

    def _pass_over(self, path: Path, why: str) -> None:
        self._note("warning", f"{path} can't be read and is passed over: {why}", "")

    # --- writing

    def _check(self) -> None:
        """Raise where the folder is another manager's by now."""
        if self._epoch and epoch_of(self._pool) > self._epoch:
            raise OutputError(f"another manager serves the pool in {self._pool} now: this one writes nothing there")

    def _remove(self, name: str) -> None:
        self._check()
        (self._pool / name).unlink(missing_ok=True)

    def _write_history(self, view: JobView) -> None:
        self._check()
        path = self._pool / "history.jsonl"
        if self._lines >= 2 * HISTORY_MAX:
            self._replace("history.jsonl", b"".join(msgspec.json.encode(each) + b"\n" for each in self.history))
            self._lines = len(self.history)
            return
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            cut_short = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # by a full disk, or a crash
            os.write(fd, b"\n" * cut_short + msgspec.json.encode(view) + b"\n")
        finally:
            os.close(fd)
        self._lines += 1

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (OSError, OutputError) as error:
            self._note("warning", str(error), "")

    def _replace(self, name: str, data: bytes, *, sync: bool = True) -> None:
        """`sync`: it must survive a power cut."""
        if self._keeps:
            self._check()
            keep_file(self._pool / name, data, sync=sync)


def epoch_of(pool: Path) -> int:
    """The epoch of the pool's newest manager; 0 where there was none, or nobody can tell."""
    try:
        return int((pool / "epoch").read_text())
    except (OSError, ValueError):
        return 0


def keep_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """See `durable.replace_file`. Raises `OutputError`."""
    try:
        replace_file(path, data, sync=sync)
    except OSError as error:
        raise OutputError(f"the pool can't keep {path}: {error.strerror or error}") from error
