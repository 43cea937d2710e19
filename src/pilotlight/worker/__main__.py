"""A worker: one agent process, and through it everything that runs on this machine for a pool.

`python -m pilotlight.worker` is what a pool starts beside its manager; `pilotlight worker` calls `dial_in`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from pilotlight.core.errors import ConfigError, PilotlightError
from pilotlight.descriptors import raise_limit
from pilotlight.files import place
from pilotlight.gate.invitation import read_invitation
from pilotlight.poolfile import read_spec
from pilotlight.ports import WorkerLink
from pilotlight.wire import PoolSpec
from pilotlight.worker import build, devices, guardian, log
from pilotlight.worker.loop import AgentLoop
from pilotlight.worker.scratch import make as make_scratch

PR_SET_CHILD_SUBREAPER = 36
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str] | None = None) -> int:
    """Run a worker beside its manager until that ends it, its orphan timeout is over, or a signal has drained it."""
    parser = argparse.ArgumentParser(prog="python -m pilotlight.worker", description=main.__doc__)
    parser.add_argument("--pool", required=True, help="the pool's folder")
    parser.add_argument("--name", required=True, help="the worker's name, unique in its pool")
    parser.add_argument("--cache", default="", help="where this machine's cache of model files is")
    parser.add_argument("--slot", default="0/1", help="which share of this machine is its own: number/of-how-many")
    options = parser.parse_args(argv)
    pool = Path(options.pool)
    try:
        slot, slots = (int(part) for part in options.slot.split("/"))
        spec = read_spec(pool)
        link = build.worker_link(pool, spec, options.name)
        last = None if spec.lasting else pool
        serve(options.name, spec, link, pool / options.name, cache=options.cache, last=last, slot=slot, slots=slots)
    except PilotlightError as error:
        log.say_plainly(f"pilotlight worker: {error}")
        return error.exit_code
    return 0


def dial_in(file: Path, name: str, cache: str = "", port: int | None = 0) -> None:
    """Run a worker for the pool of a pool file, wherever that is, with a scratch folder of its own. cache: where this
    machine's is, if the user says so. port: where it serves files to others (0: any; None: nowhere). Ends as `main`
    does; raises `PilotlightError` where it can't join."""
    invitation = read_invitation(file, "worker")
    scratch = Path(tempfile.mkdtemp(prefix=f"pilotlight-{os.getuid()}-{name}-"))
    kept_logs = os.environ.get("PILOTLIGHT_LOG_DIR")
    log_dir = Path(kept_logs).expanduser().absolute() / name if kept_logs else scratch / "logs"
    try:
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no logs can be written in {log_dir} ({error.strerror}); set PILOTLIGHT_LOG_DIR") from error
    spec = PoolSpec(
        workers=0,
        log_dir=str(log_dir),
        name=invitation.pool,
        lasting=True,
        orphan_timeout_s=invitation.orphan_timeout_s,
        grace_s=invitation.grace_s,
    )
    log.say(f"worker {name} of pool {invitation.pool} dials {', '.join(invitation.addresses)}; its logs: {log_dir}")
    try:
        serve(name, spec, build.dialling_link(file, name), scratch, cache=cache, port=port)
    except PilotlightError:
        shutil.rmtree(scratch, ignore_errors=True)  # it may have had no guardian yet
        raise


def serve(
    name: str,
    spec: PoolSpec,
    link: WorkerLink,
    scratch: Path,
    *,
    cache: str = "",
    last: Path | None = None,
    port: int | None = None,
    slot: int = 0,
    slots: int = 1,
) -> None:
    """Be the worker of that name until it ends. scratch: its own folder, which goes when it does, for what can't lie
    beneath the cache. cache: where that is, if the user says so. last: the pool's folder, if the last worker to leave a
    dead pool is to remove it. port: where it serves files to others. Raises `PilotlightError`."""
    _own_session()
    raise_limit()
    chosen = place.choose(cache or spec.cache_dir)
    own = make_scratch(chosen.path, scratch, network=place.look(chosen).network)
    guard = _guard([own, scratch], last)
    shape = spec.shapes[slot] if slot < len(spec.shapes) else None
    found = devices.find(slot, slots, shape=shape)
    memory_bytes = devices.host_memory_bytes(slots, found, shape)

    copies = build.copies(chosen.path, spec.cache_bytes, own, port)
    surroundings = build.surroundings(chosen, own, found)
    asyncio.run(_guarded(AgentLoop(name, spec, found, link, memory_bytes, copies, surroundings), guard))


def _stand_in(child: int) -> NoReturn:
    """Be the worker for whoever started it: hand signals on, and end as it ends."""

    def hand_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _own_session() -> None:
    if os.getsid(0) != os.getpid():
        try:
            os.setsid()
        except PermissionError:  # leads its group already: a shell's job
            signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
            child = os.fork()
            if child:
                _stand_in(child)
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def _guarded(agent: AgentLoop, guard: guardian.Guard) -> None:
    staying = asyncio.get_running_loop().create_task(guard.stay())
    try:
        await agent.run()
    finally:
        staying.cancel()


def _guard(folders: list[Path], last: Path | None) -> guardian.Guard:
    """Have a guardian, which removes the folders at the end; the first is for temporary files."""
    mark = f"{folders[0]}:{os.getpid()}"
    os.environ[guardian.MARK] = mark
    os.environ["TMPDIR"] = str(folders[0])
    return guardian.Guard(mark, folders, last)


if __name__ == "__main__":
    code = main()
    log.flush()
    os._exit(code)  # a log that could not be flushed must not turn the exit code into Python's 120
