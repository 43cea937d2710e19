"""`python -m pilotlight.manager POOL_DIR`: the manager's process.

The manager of a lasting pool is a daemon: whoever starts it gives it a session of its own and leaves. It ends in order
when a client says so, or at SIGTERM, which only pauses its jobs. The next one on the same folder goes on with those,
and after a crash with its workers too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from pilotlight.core.allocation import Options
from pilotlight.core.errors import ConfigError, PilotlightError
from pilotlight.descriptors import Shortage, raise_limit
from pilotlight.files import place
from pilotlight.files.beside import FileService
from pilotlight.gate.listening import Gate
from pilotlight.logfiles import shorten
from pilotlight.manager import build
from pilotlight.manager.clients import Clients
from pilotlight.manager.eventlog import EventLog
from pilotlight.manager.journal import PoolJournal, epoch_of, keep_file
from pilotlight.manager.keeper import Keeper
from pilotlight.manager.leftovers import Leftovers
from pilotlight.manager.loop import Manager
from pilotlight.poolfile import read_spec, remove_sockets
from pilotlight.wire import PoolSpec

LOOK_S = 2.0
"""How often the pool's folder is looked at."""
EXIT_BROKEN = 70
"""sysexits.h's EX_SOFTWARE: a mistake of ours."""
EXIT_FENCED = 75
"""EX_TEMPFAIL: another manager took over."""
RESUME_S_MAX = 30.0
"""How long workers that outlived a manager are kept waiting, so that its jobs can take what they finished meanwhile."""
LOG_S = 60.0
"""How often to see whether the log has grown too long."""
LOCK_TRIES = 20
LOCK_S = 0.05
"""Who asks whether a pool is up holds its lock for a moment."""


def main(argv: list[str] | None = None) -> int:
    """Serve a pool until its owner leaves or a signal comes."""
    parser = argparse.ArgumentParser(prog="pilotlight manager", description=main.__doc__)
    parser.add_argument("pool_dir")
    parser.add_argument("--ready-fd", type=int, help="where to write a line once clients may connect")
    options = parser.parse_args(argv)
    parent_pid = os.getppid()
    raise_limit()
    try:
        spec = read_spec(Path(options.pool_dir))
        if spec.cache_dir:
            os.environ[place.VARIABLE] = spec.cache_dir  # for whatever this process keeps there
        epoch = _take_epoch(Path(options.pool_dir), spec)
        asyncio.run(_serve(options.pool_dir, spec, epoch, options.ready_fd, parent_pid))
        _tidy(Path(options.pool_dir), spec)
    except PilotlightError as error:
        print(f"pilotlight manager: {error}", file=sys.stderr)
        _say(options.ready_fd, msgspec.json.encode(_facts(error)) + b"\n")
        return error.exit_code
    return 0


async def _serve(pool_dir: str, spec: PoolSpec, epoch: int, ready_fd: int | None, parent_pid: int) -> None:
    def note(level: str, text: str, subject: str) -> None:
        manager.note(level, text, subject)

    journal = PoolJournal(Path(pool_dir), note, keeps=spec.lasting, epoch=epoch)
    provider = build.provider(pool_dir, spec)
    leftovers = Leftovers(Path(pool_dir), Path(spec.log_dir))
    keeper = Keeper(provider, spec.workers, note, epoch=epoch, keep=journal.keep_pilots, ended=leftovers.ended)
    options = Options(
        silence_s=spec.silence_s, keep_alive_s=spec.keep_alive_s, epoch=epoch, workers_expected=spec.workers
    )
    shortage = Shortage("the pool's manager", note)
    gate, invitations = build.open_gate(Path(pool_dir), spec, epoch, note, shortage) or (None, None)
    manager = Manager(epoch, build.manager_link(pool_dir, spec, gate), keeper, options)
    journal.read()
    clients = Clients(pool_dir, spec, manager, journal, gate)
    log = EventLog(Path(spec.log_dir), epoch=epoch, pool=spec.name)
    manager.record = log.record
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(functools.partial(_told, shortage))
    _heed_signals(loop, clients, spec)
    over = loop.create_task(clients.over.wait())
    tasks = [
        over,
        loop.create_task(_keep_short(Path(spec.log_dir) / "manager.log")),
        loop.create_task(_leave_with(Path(pool_dir), manager, clients)),
    ]
    try:
        if alive := keeper.adopt(journal.pilots):
            manager.note("info", f"still there from the manager before this one: {', '.join(alive)}")
        if spec.lasting:
            leftovers.found(journal.pilots)
        resumed = clients.submissions.resume() if journal.jobs else None
        if resumed is None:
            await manager.start()
        await clients.start()
        if gate is not None and invitations is not None:
            gate.start()
            invitations.write()
            tasks.append(loop.create_task(invitations.keep_fresh()))
            _serve_files(manager, gate, spec)
        if not _say(ready_fd, b"ready\n"):
            return  # whoever started it is gone already
        if not spec.lasting:
            tasks.append(loop.create_task(clients.await_owner(parent_pid)))
        if resumed is not None:
            await asyncio.wait({resumed, over}, timeout=RESUME_S_MAX, return_when=asyncio.FIRST_COMPLETED)
            if not clients.over.is_set():
                await manager.start()
        await over
    finally:
        for task in tasks:
            task.cancel()
        await clients.stop()
        await manager.stop()
        if gate is not None:
            await gate.close()
        await asyncio.to_thread(log.close)


def _heed_signals(loop: asyncio.AbstractEventLoop, clients: Clients, spec: PoolSpec) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, clients.signalled)
    if spec.lasting:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # ignored, but not by its workers


def _serve_files(manager: Manager, gate: Gate, spec: PoolSpec) -> None:
    """Let workers of other machines fetch through the gate what is on this one."""
    try:
        service = FileService(place.choose(spec.cache_dir).path)
    except ConfigError as error:
        manager.note("warning", f"workers of other machines get no files from this one: {error}")
        return
    service.start()
    manager.offers.service = service
    gate.on_http = service.hand_over


async def _leave_with(pool: Path, manager: Manager, clients: Clients) -> None:
    """End the pool when its folder is gone, or another's: nobody could find it any more. Its jobs can go on later.

    Where another manager serves the pool (on a machine that does not see this one's lock), end as in a crash: all that
    is in the folder is the other's now, and workers dial anew.
    """
    lock = pool / "manager.lock"
    mine = _inode(lock)
    while True:
        await asyncio.sleep(LOOK_S)
        if (newest := await asyncio.to_thread(epoch_of, pool)) > manager.epoch:
            manager.note("error", f"manager {newest} serves the pool now: this one, number {manager.epoch}, ends")
            os._exit(EXIT_FENCED)
        if await asyncio.to_thread(_inode, lock) not in {mine, None}:
            manager.note("error", f"the pool's folder {pool} was removed: the pool ends")
            clients.signalled()
            return


def _inode(path: Path) -> int | None:
    """A file's number on its disk; 0 where it is gone, None where nobody can tell."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
    except OSError:
        return None


async def _keep_short(log: Path) -> None:
    """It is where our stderr goes, for as long as the pool lasts."""
    while True:
        await asyncio.to_thread(shorten, [log])
        await asyncio.sleep(LOG_S)


def _told(shortage: Shortage, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What an event loop has to tell: a Unix socket that can't accept a connection now, and will try again; or a
    mistake of ours in a callback. Then say it in the log, and end as in a crash: what is on disk is what counts."""
    if "socket" in context and shortage.is_why(context.get("exception")):
        return
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(EXIT_BROKEN)


def _take_epoch(pool: Path, spec: PoolSpec) -> int:
    """A number that no manager of this pool had before, on disk before anyone hears it; and the pool's manager lock."""
    lock = os.open(pool / "manager.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if not tries_left:
                raise ConfigError(f"another manager serves the pool in {pool}") from error
            time.sleep(LOCK_S)
    path = pool / "epoch"
    try:
        epoch = int(path.read_text()) + 1 if path.exists() else 1
    except (OSError, ValueError):
        epoch = int(time.time())  # larger than any that was counted
    keep_file(path, f"{epoch}\n".encode())
    keep_file(pool / "manager.pid", f"{os.getpid()}\n".encode(), sync=False)
    remove_sockets(pool, spec)
    return epoch


def _tidy(pool: Path, spec: PoolSpec) -> None:
    """Leave what the next manager of the pool needs, if there can be one."""
    if not spec.lasting:
        shutil.rmtree(pool, ignore_errors=True)  # its owner may be gone
        return
    remove_sockets(pool, spec)
    for folder in pool.glob("worker-*"):
        shutil.rmtree(folder, ignore_errors=True)
    (pool / "manager.pid").unlink(missing_ok=True)
    if spec.socket_dir:
        with contextlib.suppress(OSError):
            os.rmdir(spec.socket_dir)


def _facts(error: PilotlightError) -> dict[str, object]:
    return {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}


def _say(fd: int | None, text: bytes) -> bool:
    """Tell who started this process; False where nobody is there to hear it."""
    if fd is None:
        return True
    try:
        os.write(fd, text)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


if __name__ == "__main__":
    sys.exit(main())
