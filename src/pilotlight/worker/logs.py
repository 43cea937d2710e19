"""The log files of one worker's processes, kept from growing for ever in a pool that lasts.

A replica that ended as wished leaves no log; of those that died the last ones stay.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path
from typing import BinaryIO

from pilotlight.logfiles import tail

DEAD_MAX = 20
TAIL_BYTES = 4096


class Logs:
    """Where the processes of one worker write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dead: deque[Path] = deque()

    def path(self, name: str) -> Path:
        """The log of a process of that name."""
        return self._folder / f"{name}.log"

    def ended(self, path: Path, *, wished: bool) -> None:
        """A process is gone, and will not write to its log any more."""
        if not wished:
            self._dead.append(path)
            if len(self._dead) <= DEAD_MAX:
                return
            path = self._dead.popleft()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def opened(path: Path) -> BinaryIO:
    """A log to append to; nowhere, where the disk can't take it."""
    try:
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def last_line(path: Path) -> str:
    """The last line of a log, as the end of a sentence; nothing where it is empty."""
    try:
        lines = tail(path, TAIL_BYTES).decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1].strip()}" if lines else ""
