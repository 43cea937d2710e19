"""One file from its source into the cache: cloned where the file system can, else read once, hashed and written.

What was read is known by its SHA-256. A source that changes meanwhile is noticed, and nothing is kept of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator

from pilotlight.files.locks import CopyError, Leaving
from pilotlight.files.modelfiles import Source

FICLONE = 0x40049409
"""ioctl_ficlone(2): let one file share another's blocks until either changes."""
CHUNK_BYTES = 4 << 20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Read = Callable[[int], Iterator[memoryview]]


def read(fd: int) -> Iterator[memoryview]:
    """The content of an open file from its start, in pieces that are valid until the next is asked for."""
    os.lseek(fd, 0, os.SEEK_SET)
    view = memoryview(bytearray(CHUNK_BYTES))
    while count := os.readv(fd, [view]):
        yield view[:count]


def digest_of(source: Source, stop: threading.Event, read: Read = read) -> str:
    """The SHA-256 of a source, which is read once. Raises `CopyError`, OSError."""
    with opened(source) as fd:
        return _pass_on(fd, None, stop, read)


def copy(source: Source, target: int, stop: threading.Event, known: str | None, read: Read = read) -> str:
    """Bring a source's content into an open empty file; returns its SHA-256. Raises `CopyError`, OSError.

    known: the digest, where this very source was read before; a clone then reads nothing.
    """
    with opened(source) as fd:
        if not clone(fd, target):
            return _pass_on(fd, target, stop, read)
        return known or _pass_on(target, None, stop, read)


@contextlib.contextmanager
def opened(source: Source) -> Generator[int]:
    """Read a source in this block; afterwards it must still be what it was. Raises `CopyError`, OSError."""
    fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _unchanged(source, os.fstat(fd))
        yield fd
        _unchanged(source, os.fstat(fd))
        _unchanged(source, os.stat(source.path))
    finally:
        os.close(fd)


def _unchanged(source: Source, status: os.stat_result) -> None:
    if not source.same(status):
        raise CopyError(f"{source.path} changed while it was copied")


def clone(fd: int, target: int) -> bool:
    """Let `target` share the blocks of `fd`. False where the file systems can't."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, FICLONE, fd)
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    return True


def _pass_on(fd: int, target: int | None, stop: threading.Event, read: Read) -> str:
    total = hashlib.sha256()
    for piece in read(fd):
        if stop.is_set():
            raise Leaving("this worker ends")
        total.update(piece)
        if target is not None:
            left = piece
            while left:
                left = left[os.write(target, left) :]
    return total.hexdigest()
