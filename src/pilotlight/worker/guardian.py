"""The guardian: a tiny process that outlives its agent just long enough to end whatever the agent left.

It is forked from the agent before anything else starts, leaves the agent's session, and waits at a pipe whose other
end only the agent holds. When that end closes, however the agent died, it kills every process of the agent's session
and every process that carries the worker's mark in its environment, and removes the worker's scratch folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

MARK = "PILOTLIGHT_WORKER_MARK"
ROUNDS_MAX = 200


def spawn(mark: str, scratch: Path, afterwards: Callable[[], None]) -> None:
    """Fork the guardian of this process. `afterwards` runs last, when the worker's tree is gone.

    Call it first thing, in a process that has one thread and leads its own session.
    """
    session = os.getsid(0)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(read_end)
        return
    try:
        os.close(write_end)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.chdir("/")
        while os.read(read_end, 1):
            pass
        end_tree(session, mark)
        shutil.rmtree(scratch, ignore_errors=True)
        afterwards()
    finally:
        os._exit(0)


def end_tree(session: int, mark: str) -> None:
    """Kill all processes of a session or with a mark, until none is left."""
    for _ in range(ROUNDS_MAX):
        pids = [pid for pid in _processes() if pid != os.getpid() and _belongs(pid, session, mark)]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        import psutil

        return psutil.pids()


def _belongs(pid: int, session: int, mark: str) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()[0]
        if state == "Z":
            return False
    try:
        if os.getsid(pid) == session:
            return True
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")
