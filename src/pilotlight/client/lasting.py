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
from pilotlight.client.connection import Place
from pilotlight.client.places import answers, elsewhere, file_of, folder_of
from pilotlight.client.session import Session
from pilotlight.core.errors import ConfigError, JobCancelled, LinkClosed, PilotlightError
from pilotlight.gate.invitation import Invitation
from pilotlight.messages import Hello, Shutdown
from pilotlight.poolfile import (
    ENDED,
    command,
    is_up,
    mark_ended,
    pool_folder,
    read_spec,
    remove_sockets,
    shall_be_up,
    socket_path,
    write_spec,
)
from pilotlight.views import ContextView, JobView
from pilotlight.wire import PoolSpec, WorkerShape

ORPHAN_TIMEOUT_S = 600.0
LISTENING_SILENCE_S = 3.0
"""A worker whose machine vanishes closes no connection: it is lost when it says nothing for so long."""
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
    listen: str | None = None
    advertise: tuple[str, ...] = ()

    def differences(self, spec: PoolSpec) -> list[str]:
        """What of this a running pool is not, in words."""
        pairs: list[tuple[str, object, object]] = [
            ("--workers", self.workers, spec.workers),
            ("--worker", list(self.shapes) or None, spec.shapes),
            ("--keep-alive", self.keep_alive_s, spec.keep_alive_s),
            ("--cache", self.cache_dir, spec.cache_dir),
            ("--cache-size", self.cache_bytes, spec.cache_bytes),
            ("--listen", self.listen, spec.listen),
            ("--advertise", list(self.advertise) or None, spec.advertise),
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
            "listen": self.listen,
            "advertise": list(self.advertise) or None,
            "silence_s": LISTENING_SILENCE_S if self.listen else None,
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
    workers: int | None = None
    """How many of its own it kept, if that can be told."""
    forced: bool = False
    was_gone: bool = False


# --- up --------------------------------------------------------------------------------------------------------


def bring_up(name: str, wishes: Wishes) -> Up:
    """Start the pool's manager, unless it runs. Raises `ConfigError` where a running pool is not as wished."""
    folder = folder_of(name)
    folders.make_folder(folder, "pool", "PILOTLIGHT_STATE_DIR")
    with _locked(folder):
        if (away := elsewhere(name)) is not None and answers(away):
            return Up(name, folder, _as_wished(folder, name, wishes), "found")
        if is_up(folder) and not shall_be_up(folder):
            _end(folder, DOWN_S_MAX)  # whoever was to end it was interrupted
        if is_up(folder):
            return Up(name, folder, _as_wished(folder, name, wishes), "found")
        crashed = shall_be_up(folder)
        spec = _spec_of(folder, name, wishes, crashed=crashed)
        _start(folder, spec)
    return Up(name, folder, spec, "resumed" if crashed else "started")


def _as_wished(folder: Path, name: str, wishes: Wishes) -> PoolSpec:
    """What a pool is that is up already. Raises `ConfigError` where that is not what is wished."""
    spec = read_spec(folder)
    if names := wishes.differences(spec):
        raise ConfigError(
            f"{', '.join(names)} would have no effect: pool {name} is up with {described(spec)}; end it first: "
            f"{command('down', name)}"
        )
    return spec


def revive(name: str) -> Up | None:
    """Start the manager of a pool that shall be up, if it crashed; None where there is no such pool. Raises
    `PilotlightError` where it can't be started."""
    folder = folder_of(name)
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


def find(name: str) -> Place:
    """Where the manager of a pool listens. Raises `ConfigError` where it is not up, with the command that brings it
    up."""
    away = elsewhere(name)
    if away is not None:
        return away
    folder = pool_folder(name)
    if not is_up(folder):
        raise ConfigError(f"pool {name} is not up; start it first: {command('up', name)}")
    return socket_path(folder, read_spec(folder), "client.sock")


def way_on(name: str) -> str:
    """What else may be done about a pool whose manager gives no answer, to be added to why."""
    if file_of(name) is not None or (away := elsewhere(name)) is None:
        return ""
    return f"; if {away.host} is gone, this machine can go on with the pool: {command('up', name)}"


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
    workers = len(wishes.shapes) or launch.default_workers() if wishes.workers is None else wishes.workers
    if len(wishes.shapes) > workers:
        raise ConfigError(f"{len(wishes.shapes)} workers are described and only {workers} wanted")
    spec = PoolSpec(
        name=str(folder) if "/" in name else name,
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
            mark_ended(folder)  # it never was up
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
    away = elsewhere(name)
    if away is not None and (file_of(name) is not None or answers(away)):
        return _end_elsewhere(away, grace_s)
    folder = pool_folder(name)
    if not (shall_be_up(folder) or is_up(folder)):
        return None
    with _locked(folder):
        if not (shall_be_up(folder) or is_up(folder)):
            return None
        return _end(folder, grace_s)


def _end_elsewhere(away: Invitation, grace_s: float) -> Down:
    """End a pool on another machine, and wait until nobody answers there. Raises `PilotlightError`."""
    ended = _asked_to_end(away, workers=None)
    if ended is None:
        raise LinkClosed(f"the manager of pool {away.pool} on {away.host} gives no answer: it may have ended already")
    deadline = time.monotonic() + grace_s
    while answers(away):
        if time.monotonic() >= deadline:
            raise PilotlightError(f"the manager of pool {away.pool} on {away.host} was told to end and does not")
        time.sleep(LOOK_S)
    return ended


def _end(folder: Path, grace_s: float) -> Down:
    """With the lock held."""
    spec = read_spec(folder)
    mark_ended(folder)  # first, so that no command brings it up again meanwhile
    was_gone = not is_up(folder)
    ended = None if was_gone else _asked_to_end(socket_path(folder, spec, "client.sock"), spec.workers)
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


def _asked_to_end(place: Place, workers: int | None) -> Down | None:
    """Tell the manager to end the pool; what there was by then, or None if it does not talk."""
    session = Session([])
    try:
        session.open(place, Hello(), timeout_s=TALK_S_MAX)
    except (PilotlightError, OSError):
        return None
    try:
        jobs, contexts = session.jobs(TALK_S_MAX), session.contexts(TALK_S_MAX)
    except PilotlightError:
        session.close(grace_s=0.0, error=JobCancelled("the pool ends"))
        return None
    session.close(Shutdown(), grace_s=TALK_S_MAX, error=JobCancelled("the pool ends"))
    running = [view for view in jobs if is_running(view)]
    return Down(jobs=running, contexts=contexts, workers=workers)


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


def has_crashed(name: str) -> bool:
    """Whether the pool shall be up on this machine, and its manager is gone."""
    if elsewhere(name) is not None:
        return False
    folder = pool_folder(name)
    return shall_be_up(folder) and not is_up(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One command at a time starts or ends the pool's manager. The lock's file is never removed."""
    with (folder / "up.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
