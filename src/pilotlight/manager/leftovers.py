"""What workers leave behind that have ended for good, kept from growing for ever in a pool that lasts.

A worker's scratch folder is its guardian's to remove; where that was killed too, it goes here. Logs of the last workers
that ended stay, so that one can see why.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import deque
from collections.abc import Collection
from pathlib import Path

GONE_MAX = 20
"""Of so many workers that ended the logs are kept."""
_OF_WORKER = re.compile(r"(worker-[0-9-]+)(\.[0-9]+|-server-[a-z]+)?\.log")


class Leftovers:
    """Of one pool. A log's name begins with its worker's: `worker-7.log`, `worker-7.2.log` of a replica,
    `worker-7-server-echo.log`."""

    def __init__(self, pool: Path, log_dir: Path) -> None:
        self._pool = pool
        self._log_dir = log_dir
        self._gone: deque[str] = deque()

    def found(self, alive: Collection[str]) -> None:
        """Take over what the manager before this one left, given the workers that live on, or may."""
        logs = sorted(self._logs(), key=lambda log: log[0])
        for _, name in logs:
            if name not in alive:
                self.ended(name)

    def ended(self, name: str) -> None:
        """A worker of that name, which is never used again, has ended."""
        shutil.rmtree(self._pool / name, ignore_errors=True)
        if name not in self._gone:
            self._gone.append(name)
        while len(self._gone) > GONE_MAX:
            old = self._gone.popleft()
            for path in self._log_dir.glob(f"{old}*.log"):
                found = _OF_WORKER.fullmatch(path.name)
                if found is not None and found[1] == old:
                    path.unlink(missing_ok=True)

    def _logs(self) -> list[tuple[float, str]]:
        logs: list[tuple[float, str]] = []
        for path in self._log_dir.glob("worker-*.log"):
            found = _OF_WORKER.fullmatch(path.name)
            with contextlib.suppress(OSError):
                if found is not None:
                    logs.append((path.stat().st_mtime, found[1]))
        return logs
