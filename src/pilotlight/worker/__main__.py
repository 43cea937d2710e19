"""`pilotlight worker`: one agent process, and through it everything that runs on this machine for a pool."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pilotlight.core.errors import PilotlightError
from pilotlight.poolfile import read_spec
from pilotlight.wire import PoolSpec
from pilotlight.worker import build, devices, guardian, log
from pilotlight.worker.copies import Copies, CopyEvent
from pilotlight.worker.loop import AgentLoop

PR_SET_CHILD_SUBREAPER = 36
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str] | None = None) -> int:
    """Run a worker until its manager ends it, its orphan timeout is over, or a signal has drained it."""
    parser = argparse.ArgumentParser(prog="pilotlight worker", description=main.__doc__)
    parser.add_argument("--pool", required=True, help="the pool's folder")
    parser.add_argument("--name", required=True, help="the worker's name, unique in its pool")
    parser.add_argument("--slot", default="0/1", help="which share of this machine is its own: number/of-how-many")
    options = parser.parse_args(argv)
    try:
        slot, slots = (int(part) for part in options.slot.split("/"))
        spec = read_spec(Path(options.pool))
        _own_session()
        scratch, guard = _guard(Path(options.pool), options.name, spec)
        shape = spec.shapes[slot] if slot < len(spec.shapes) else None
        found = devices.find(slot, slots, shape=shape)
        memory_bytes = devices.host_memory_bytes(slots, found, shape)
        link = build.worker_link(options.pool, spec)

        def copies(tell: Callable[[CopyEvent], None]) -> Copies:
            return build.copies(spec, scratch, tell)

        asyncio.run(_guarded(AgentLoop(options.name, spec, found, link, memory_bytes, copies), guard))
    except PilotlightError as error:
        log.say_plainly(f"pilotlight worker: {error}")
        return error.exit_code
    return 0


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


def _guard(pool: Path, name: str, spec: PoolSpec) -> tuple[Path, guardian.Guard]:
    """Have a guardian; returns the worker's scratch folder, which the guardian removes."""
    mark = f"{pool}:{name}:{os.getpid()}"
    os.environ[guardian.MARK] = mark
    scratch = pool / name
    scratch.mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = str(scratch)
    return scratch, guardian.Guard(mark, scratch, None if spec.lasting else pool)


if __name__ == "__main__":
    code = main()
    log.flush()
    os._exit(code)  # a log that could not be flushed must not turn the exit code into Python's 120
