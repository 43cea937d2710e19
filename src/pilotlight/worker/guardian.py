"""The guardian: a small process that outlives its agent just long enough to end whatever the agent left.

`Guard` is the agent's side: it starts the guardian before anything else, in a session of its own, and holds the only
end of a pipe that the guardian reads. When that end closes, however the agent died, the guardian kills every process of
the agent's session and every process that carries the worker's mark in its environment, and removes the worker's
folders. A guardian that is killed itself is replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MARK = "PILOTLIGHT_WORKER_MARK"
ROUNDS_MAX = 200
LOOK_S = 0.5


class Guard:
    """The guardian of this process, which must lead its own session. Blocks shortly, and once a moment at most.

    folders: the worker's own. last: the pool's folder, if the last worker to leave a dead pool is to remove it.
    """

    def __init__(self, mark: str, folders: Sequence[Path], last: Path | None) -> None:
        pool = ["--last", str(last)] if last is not None else []
        self._arguments = [*pool, str(os.getsid(0)), mark, *map(str, folders)]
        self._read, self._write = os.pipe()
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pilotlight.worker.guardian", f"--fd={self._read}", *self._arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[self._read],
            start_new_session=True,
            cwd="/",
        )

    async def stay(self) -> None:
        """Replace the guardian whenever it is gone; never ends by itself."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._process.poll() is not None:
                with contextlib.suppress(OSError):  # no room for a process: the next look tries again
                    self._process = self._spawn()


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


def _manager_lives(pool: Path) -> bool:
    try:
        os.kill(int((pool / "manager.pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def main(argv: list[str] | None = None) -> None:
    """`python -m pilotlight.worker.guardian --fd FD [--last POOL] SESSION MARK FOLDER...`: started by an agent only."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="pilotlight guardian", description=main.__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--last", type=Path)
    parser.add_argument("session", type=int)
    parser.add_argument("mark")
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args(argv)
    while os.read(options.fd, 1):
        pass
    end_tree(options.session, options.mark)
    for folder in options.folders:
        shutil.rmtree(folder, ignore_errors=True)
    if options.last is not None and not _manager_lives(options.last):
        shutil.rmtree(options.last, ignore_errors=True)


if __name__ == "__main__":
    main()
