"""The log files of one worker's processes, kept from growing for ever in a pool that lasts.

A replica that ended as wished leaves no log; of those that died the last ones stay. A log that grows long loses its
beginning.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

DEAD_MAX = 20
LOG_BYTES_MAX = 8 << 20
KEPT_BYTES = 64 << 10
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


def shorten(paths: Iterable[Path]) -> None:
    """Cut the beginning off logs that have grown too long. Their writers append, so they go on at the new end."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_size <= LOG_BYTES_MAX:
                continue
            kept = tail(path, KEPT_BYTES)
            with path.open("r+b") as log:
                log.truncate(0)
            with path.open("ab") as log:
                log.write(b"(what was here is gone)\n" + kept)


def tail(path: Path, size: int) -> bytes:
    """The last bytes of a file. Raises OSError."""
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - size))
        return log.read()


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
