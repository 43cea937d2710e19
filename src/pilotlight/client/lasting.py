"""Pools that stay: bringing one up, finding it, bringing it up again after its manager crashed, taking it down.

A folder (`poolfile.py`) with a `pool.json` and without the mark `ended` says that a pool shall be up; whether its
manager lives is another question. The folder stays when the pool is taken down, so that its logs can be read and no
job's name is used twice. Who starts or ends a pool's manager holds `up.lock` meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from pilotlight.client import folders, launch
from pilotlight.client.session import Session
from pilotlight.core.errors import ConfigError, JobCancelled, PilotlightError
from pilotlight.messages import Ask, ContextsAnswer, Hello, JobsAnswer, Shutdown
from pilotlight.poolfile import command, is_up, pool_folder, read_spec, remove_sockets, socket_path, write_spec
from pilotlight.views import ContextView, JobView
from pilotlight.wire import PoolSpec, WorkerShape

ENDED = "ended"
ORPHAN_TIMEOUT_S = 600.0
DOWN_S_MAX = 60.0
"""A manager that takes longer to end is killed; its workers have 20 s for what they hold."""
TALK_S_MAX = 10.0
KILL_S_MAX = 10.0
LOOK_S = 0.05


@dataclass(frozen=True)
class Wishes:
    """What a user asks of a lasting pool; None: whatever it is, or the default."""

    workers: int | None = None
    shapes: tuple[WorkerShape, ...] = ()
    keep_alive_s: float | None = None
    cache_dir: str | None = None
    cache_bytes: int | None = None

    def differences(self, spec: PoolSpec) -> list[str]:
        """What of this a running pool is not, in words."""
        pairs: list[tuple[str, object, object]] = [
            ("--workers", self.workers, spec.workers),
            ("--worker", list(self.shapes) or None, spec.shapes),
            ("--keep-alive", self.keep_alive_s, spec.keep_alive_s),
            ("--cache-dir", self.cache_dir, spec.cache_dir),
            ("--cache-size", self.cache_bytes, spec.cache_bytes),
        ]
        return [name for name, wanted, is_so in pairs if wanted is not None and wanted != is_so]

    def over(self, spec: PoolSpec) -> PoolSpec:
        """The spec with these wishes in it."""
        given: dict[str, object] = {
            "workers": self.workers,
            "shapes": list(self.shapes) or None,
            "keep_alive_s": self.keep_alive_s,
            "cache_dir": self.cache_dir,
            "cache_bytes": self.cache_bytes,
        }
        wanted = {name: value for name, value in given.items() if value is not None}
        return msgspec.structs.replace(spec, **wanted) if wanted else spec


@dataclass(frozen=True)
class Up:
    """A pool that is up. how: `started` anew, `resumed` after its manager had crashed, or `found` up already."""

    name: str
    folder: Path
    spec: PoolSpec
    how: Literal["started", "resumed", "found"]


@dataclass(frozen=True)
class Down:
    """What taking a pool down ended. forced: its manager had to be killed. was_gone: it had ended before."""

    jobs: list[JobView] = field(default_factory=list[JobView])
    jobs_unseen: int = 0
    """How many jobs of a manager that could not say more."""
    contexts: list[ContextView] = field(default_factory=list[ContextView])
    workers: int = 0
    forced: bool = False
    was_gone: bool = False


# --- up --------------------------------------------------------------------------------------------------------


def bring_up(name: str, wishes: Wishes) -> Up:
    """Start the pool's manager, unless it runs. Raises `ConfigError` where a running pool is not as wished."""
    folder = pool_folder(name)
    folders.make_folder(folder, "pool", "PILOTLIGHT_STATE_DIR")
    with _locked(folder):
        if is_up(folder) and not shall_be_up(folder):
            _end(folder, DOWN_S_MAX)  # whoever was to end it was interrupted
        if is_up(folder):
            spec = read_spec(folder)
            if names := wishes.differences(spec):
                raise ConfigError(
                    f"{', '.join(names)} would have no effect: pool {name} is up with "
                    f"{described(spec)}; end it first: {command('down', name)}"
                )
            return Up(name, folder, spec, "found")
        crashed = shall_be_up(folder)
        spec = _spec_of(folder, name, wishes, crashed=crashed)
        _start(folder, spec)
    return Up(name, folder, spec, "resumed" if crashed else "started")


def revive(name: str) -> Up | None:
    """Start the manager of a pool that shall be up, if it crashed; None where there is no such pool. Raises
    `PilotlightError` where it can't be started."""
    folder = pool_folder(name)
    if not shall_be_up(folder):
        return None
    with _locked(folder):
        if not shall_be_up(folder):
            return None
        spec = read_spec(folder)
        if is_up(folder):
            return Up(name, folder, spec, "found")
        _start(folder, spec)
    return Up(name, folder, spec, "resumed")


def find(name: str) -> tuple[Path, PoolSpec]:
    """Folder and spec of a pool that is up. Raises `ConfigError` with the command that brings it up."""
    folder = pool_folder(name)
    if not is_up(folder):
        raise ConfigError(f"pool {name} is not up; start it first: {command('up', name)}")
    return folder, read_spec(folder)


def described(spec: PoolSpec) -> str:
    """`2 workers`, with what is special about them."""
    workers = f"{spec.workers} worker{'' if spec.workers == 1 else 's'}"
    shaped = [shape for shape in spec.shapes if shape != WorkerShape()]
    return workers + (f", {len(shaped)} of them slower or smaller" if shaped else "")


def _spec_of(folder: Path, name: str, wishes: Wishes, *, crashed: bool) -> PoolSpec:
    """What the pool shall be. After a crash: what it was, but for what is wished now."""
    if crashed:
        spec = wishes.over(read_spec(folder))
        Path(spec.log_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        return spec
    workers = wishes.workers or len(wishes.shapes) or launch.default_workers()
    if len(wishes.shapes) > workers:
        raise ConfigError(f"{len(wishes.shapes)} workers are described and only {workers} wanted")
    spec = PoolSpec(
        name=name,
        lasting=True,
        workers=workers,
        orphan_timeout_s=ORPHAN_TIMEOUT_S,
        log_dir=str(folders.new_log_folder(folder / "logs", "PILOTLIGHT_STATE_DIR")),
        socket_dir=folders.socket_folder(folder),
        python=launch.python(),
    )
    return wishes.over(spec)


def _start(folder: Path, spec: PoolSpec) -> None:
    if spec.socket_dir:
        Path(spec.socket_dir).mkdir(mode=0o700, exist_ok=True)  # /tmp is swept by some systems
    was_ended = not shall_be_up(folder)
    write_spec(folder, spec)
    try:
        launch.start_manager(folder, spec, environment=_environment(), cwd=folder)
    except BaseException:
        if was_ended:
            (folder / ENDED).touch(mode=0o600)  # it never was up
        raise
    (folder / ENDED).unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """Ours, for a process whose current folder is another one."""
    environment = dict(os.environ)
    if paths := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    return environment


# --- down ------------------------------------------------------------------------------------------------------


def take_down(name: str, *, grace_s: float = DOWN_S_MAX) -> Down | None:
    """End the pool's manager and workers, and wait until they are gone; None if there is nothing to end."""
    folder = pool_folder(name)
    if not (shall_be_up(folder) or is_up(folder)):
        return None
    with _locked(folder):
        if not (shall_be_up(folder) or is_up(folder)):
            return None
        return _end(folder, grace_s)


def _end(folder: Path, grace_s: float) -> Down:
    """With the lock held."""
    spec = read_spec(folder)
    (folder / ENDED).touch(mode=0o600)  # first, so that no command brings it up again meanwhile
    was_gone = not is_up(folder)
    ended = None if was_gone else _asked_to_end(folder, spec)
    forced = not was_gone and (ended is None or not _is_gone_within(folder, grace_s))
    if forced:
        _kill_manager(folder)
    jobs_unseen = _end_what_is_left(folder, spec)
    remove_sockets(folder, spec)
    if spec.socket_dir:
        with contextlib.suppress(OSError):
            Path(spec.socket_dir).rmdir()
    if ended is None:
        return Down(jobs_unseen=jobs_unseen, workers=spec.workers, forced=forced, was_gone=was_gone)
    return replace(ended, forced=forced)


def _asked_to_end(folder: Path, spec: PoolSpec) -> Down | None:
    """Tell the manager to end the pool; what there was by then, or None if it does not talk."""
    session = Session([])
    try:
        session.open(socket_path(folder, spec, "client.sock"), Hello(), timeout_s=TALK_S_MAX)
    except (PilotlightError, OSError):
        return None
    try:
        jobs = session.ask(lambda ticket: Ask(ticket=ticket, what="jobs"), TALK_S_MAX)
        contexts = session.ask(lambda ticket: Ask(ticket=ticket, what="contexts"), TALK_S_MAX)
    except PilotlightError:
        session.close(grace_s=0.0, error=JobCancelled("the pool ends"))
        return None
    session.close(Shutdown(), grace_s=TALK_S_MAX, error=JobCancelled("the pool ends"))
    assert isinstance(jobs, JobsAnswer)
    assert isinstance(contexts, ContextsAnswer)
    running = [view for view in jobs.jobs if is_running(view)]
    return Down(jobs=running, contexts=contexts.contexts, workers=spec.workers)


def is_running(view: JobView) -> bool:
    """Whether a job is not over yet."""
    return view.state not in {"completed", "failed", "cancelled", "suspended"}


def _is_gone_within(folder: Path, grace_s: float) -> bool:
    deadline = time.monotonic() + grace_s
    while is_up(folder):
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _kill_manager(folder: Path) -> None:
    """Kill the process that holds the manager's lock, if there is one."""
    if not is_up(folder):
        return
    with contextlib.suppress(OSError, ValueError):
        # Its own session's leader, as `launch` starts it.
        os.killpg(int((folder / "manager.pid").read_text()), signal.SIGKILL)
    if not _is_gone_within(folder, KILL_S_MAX):
        raise PilotlightError(
            f"the manager of the pool in {folder} can't be ended; manager.pid there names its process"
        )


def _end_what_is_left(folder: Path, spec: PoolSpec) -> int:
    """End workers that outlived their manager, and its jobs, so that a later pool does not go on with them. Returns how
    many jobs those were."""
    from pilotlight.manager import build, views
    from pilotlight.manager.journal import PoolJournal

    with contextlib.suppress(OSError, msgspec.DecodeError):
        pilots = msgspec.json.decode((folder / "pilots.json").read_bytes(), type=dict[str, str])
        if any(pilots.values()):
            provider = build.provider(str(folder), spec)
            for pilot_id in pilots.values():
                provider.adopt(pilot_id)
            provider.close()
        (folder / "pilots.json").unlink()
    jobs = list((folder / "jobs").glob("*.json"))
    if jobs:
        journal = PoolJournal(folder, lambda _level, _text, _subject: None, keeps=True)
        journal.read()
        for record in list(journal.jobs.values()):
            message = "the pool was taken down when its manager was gone; what was written stays"
            journal.end_job(views.unopened_job(record, message, state="cancelled"))
    for path in jobs:
        path.unlink(missing_ok=True)  # one that could not be read
    return len(jobs)


# --- both ------------------------------------------------------------------------------------------------------


def shall_be_up(folder: Path) -> bool:
    """Whether the pool was brought up and not taken down since; its manager may have crashed."""
    return (folder / "pool.json").exists() and not (folder / ENDED).exists()


def has_crashed(name: str) -> bool:
    """Whether the pool shall be up, and its manager is gone."""
    folder = pool_folder(name)
    return shall_be_up(folder) and not is_up(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One command at a time starts or ends the pool's manager. The lock's file is never removed."""
    with (folder / "up.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
