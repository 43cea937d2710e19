"""`python -m pilotlight.manager POOL_DIR`: the manager's process."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from pilotlight.core.allocation import Options
from pilotlight.core.errors import ConfigError, PilotlightError
from pilotlight.manager import build
from pilotlight.manager.clients import Clients
from pilotlight.manager.eventlog import EventLog
from pilotlight.manager.keeper import Keeper
from pilotlight.manager.loop import Manager
from pilotlight.poolfile import read_spec, remove_sockets
from pilotlight.wire import PoolSpec

EXIT_BROKEN = 70
"""sysexits.h's EX_SOFTWARE: a mistake of ours."""


def main(argv: list[str] | None = None) -> int:
    """Serve a pool until its owner leaves or a signal comes."""
    parser = argparse.ArgumentParser(prog="pilotlight manager", description=main.__doc__)
    parser.add_argument("pool_dir")
    parser.add_argument("--ready-fd", type=int, help="where to write a line once clients may connect")
    options = parser.parse_args(argv)
    parent_pid = os.getppid()
    try:
        spec = read_spec(Path(options.pool_dir))
        epoch = _take_epoch(Path(options.pool_dir), spec)
        asyncio.run(_serve(options.pool_dir, spec, epoch, options.ready_fd, parent_pid))
        if not spec.lasting:
            shutil.rmtree(options.pool_dir, ignore_errors=True)  # its owner may be gone
    except PilotlightError as error:
        print(f"pilotlight manager: {error}", file=sys.stderr)
        _say(options.ready_fd, msgspec.json.encode(_facts(error)) + b"\n")
        return error.exit_code
    return 0


async def _serve(pool_dir: str, spec: PoolSpec, epoch: int, ready_fd: int | None, parent_pid: int) -> None:
    link = build.manager_link(pool_dir, spec)
    options = Options(silence_s=spec.silence_s, keep_alive_s=spec.keep_alive_s)
    provider = build.provider(pool_dir, spec)

    def note(level: str, text: str, subject: str) -> None:
        manager.note(level, text, subject)

    manager = Manager(epoch, link, Keeper(provider, spec.workers, note), options)
    clients = Clients(pool_dir, spec, manager)
    log = EventLog(Path(spec.log_dir), epoch=epoch, pool=spec.name)
    manager.record = log.record
    loop = asyncio.get_running_loop()
    owner: asyncio.Task[None] | None = None
    loop.set_exception_handler(_broke)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, clients.over.set)
    try:
        await manager.start()
        await clients.start()
        if not _say(ready_fd, b"ready\n"):
            return  # whoever started it is gone already
        if not spec.lasting:
            owner = loop.create_task(clients.await_owner(parent_pid))
        await clients.over.wait()
    finally:
        if owner is not None:
            owner.cancel()
        await clients.stop()
        await manager.stop()
        await asyncio.to_thread(log.close)


def _broke(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> NoReturn:
    """A mistake of ours in a callback: say it in the log, and end as in a crash. What is on disk is what counts."""
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(EXIT_BROKEN)


def _take_epoch(pool: Path, spec: PoolSpec) -> int:
    """A number that no manager of this pool had before, on disk before anyone hears it; and the pool's manager lock."""
    lock = os.open(pool / "manager.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"another manager serves the pool in {pool}") from error
    path = pool / "epoch"
    epoch = int(path.read_text()) + 1 if path.exists() else 1
    fresh = pool / "epoch.new"
    with fresh.open("w") as file:
        file.write(f"{epoch}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    (pool / "manager.pid").write_text(f"{os.getpid()}\n")
    remove_sockets(pool, spec)
    return epoch


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
