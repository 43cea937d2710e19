"""File locks between the workers of a machine (flock): they end with the process that holds them, however it ends.

A lock is the open descriptor itself. Waiting is done in small steps, so that a thread that waits for another process
can be told to give up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Generator
from pathlib import Path

from pilotlight.core.errors import PilotlightError

LOOK_AGAIN_S = 0.05


class CopyError(PilotlightError):
    """A copy of a model's files can't be made; the text says why, as the end of a sentence."""

    kind = "copy_failed"


class Leaving(CopyError):
    """This worker ends, and what it was doing with files is no longer wanted."""


def take(path: Path, stop: threading.Event, *, shared: bool = False, create: bool = False) -> int:
    """Wait for a lock on a file or folder and return the descriptor that holds it; closing it lets go.

    Raises `Leaving` when `stop` is set, FileNotFoundError where there is nothing of that name (any more).
    """
    while True:
        fd = try_take(path, shared=shared, create=create)
        if fd is not None:
            return fd
        if stop.wait(LOOK_AGAIN_S):
            raise Leaving("this worker ends")


def try_take(path: Path, *, shared: bool = False, create: bool = False) -> int | None:
    """Take the lock if nobody's is in the way. Raises FileNotFoundError."""
    while True:
        fd = os.open(path, (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY) | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _still_there(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was removed or replaced between open and lock


def share(fd: int) -> None:
    """Let others share a lock that was this process's alone. Nobody gets between."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def _still_there(fd: int, path: Path) -> bool:
    held = os.fstat(fd)
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


@contextlib.contextmanager
def held(path: Path, stop: threading.Event, *, shared: bool = False) -> Generator[None]:
    """Hold a lock file, made if need be, for the time of a block."""
    fd = take(path, stop, shared=shared, create=True)
    try:
        yield
    finally:
        os.close(fd)
