"""Content that comes from another machine: each file by its digest, several at once, kept when it is cut.

    partial/DIGEST.SIZE   what has come of a file so far; whoever brings it holds its lock

A partial file outlives the attempt that began it, so the next one, from whichever source, goes on at its end. The file
service may read it meanwhile and pass on what is still coming; nothing is believed before its digest is right.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pilotlight.files import filecopy
from pilotlight.files.locks import CopyError, Leaving, share, take
from pilotlight.files.manifest import Entry, is_digest

FILES_AT_ONCE = 4
"""Streams of one fetch: a few fill a line over which one stream is slow, and small files don't wait for large ones."""

Pieces = Callable[[str, int, int], Iterator[bytes]]
"""Reads content: its digest, its size and how much of it is there already. Ends where the content ends, or raises
`CopyError`."""


class Stock(Protocol):
    """The cache, as what comes in sees it."""

    root: Path
    stop: threading.Event

    def pin(self, digest: str, size: int) -> int | None:
        """Keep content from being evicted, if it is here."""
        ...

    def admit(self, path: Path, digest: str) -> None:
        """Give a file whose content has that digest its place."""
        ...


def partial(root: Path, digest: str, size: int) -> Path:
    """Where what has come of a file is."""
    assert is_digest(digest)
    return root / "partial" / f"{digest}.{size}"


def partials(root: Path) -> list[Path]:
    """All that has come of files that are not whole."""
    return [path for path in (root / "partial").glob("*.*") if is_digest(path.stem) and path.suffix[1:].isdecimal()]


def there(path: Path) -> int:
    """Bytes of a partial file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def bring(stock: Stock, wanted: Mapping[str, int], pieces: Pieces, pins: list[int]) -> dict[str, Entry]:
    """Have content here and pinned: size by digest in, entries by digest out. Raises `CopyError`, OSError.

    The largest come first, and everywhere in the same order, so that who fetches from one that still fetches finds
    what it asks for.
    """
    given_up = threading.Event()

    def one(digest: str, size: int) -> Entry:
        try:
            return _bring(stock, digest, size, pieces, pins, given_up)
        except BaseException:
            given_up.set()
            raise

    order = sorted(wanted.items(), key=lambda pair: (-pair[1], pair[0]))
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="fetch") as threads:
        futures = [threads.submit(one, digest, size) for digest, size in order]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Leaving))
    return {digest: future.result() for (digest, _), future in zip(order, futures, strict=True)}


def _bring(stock: Stock, digest: str, size: int, pieces: Pieces, pins: list[int], given_up: threading.Event) -> Entry:
    began = time.monotonic()
    path = partial(stock.root, digest, size)
    fd = take(path, stock.stop, create=True)
    try:
        if (pin := stock.pin(digest, size)) is not None:
            path.unlink(missing_ok=True)
            pins.append(pin)
            return Entry(digest, size)
        if given_up.is_set():
            raise Leaving("another of the files can't be had")
        _fill(fd, digest, size, pieces, stock.stop, given_up)
        os.fsync(fd)
        stock.admit(path, digest)
        os.fchmod(fd, 0o444)  # not before: a crash would leave a partial file that can't be opened again
        path.unlink(missing_ok=True)
        share(fd)  # it is what has its place now, or nothing any more
        pin = stock.pin(digest, size)
        if pin is None:
            raise CopyError(f"{digest[:12]} went as soon as it had come")
        pins.append(pin)
        return Entry(digest, size, time.monotonic() - began)
    except _Wrong as error:
        path.unlink(missing_ok=True)
        raise CopyError(str(error)) from error
    finally:
        if size and there(path) == 0:
            path.unlink(missing_ok=True)
        os.close(fd)


class _Wrong(Exception):
    """What came is not what was asked for."""


def _fill(fd: int, digest: str, size: int, pieces: Pieces, stop: threading.Event, given_up: threading.Event) -> None:
    """Go on where the file ends, until all of it is there and right."""
    total, have = hashlib.sha256(), 0
    for piece in filecopy.read(fd):
        total.update(piece)
        have += len(piece)
    for piece in pieces(digest, size, have) if have < size else ():
        if stop.is_set() or given_up.is_set():
            raise Leaving("this worker ends" if stop.is_set() else "another of the files can't be had")
        total.update(piece)
        have += len(piece)
        left = memoryview(piece)
        while left:
            left = left[os.write(fd, left) :]
    if have != size or total.hexdigest() != digest:
        raise _Wrong(
            f"what came as {digest[:12]} has another content: {have:,} of {size:,} bytes, "
            f"SHA-256 {total.hexdigest()[:12]}"
        )
