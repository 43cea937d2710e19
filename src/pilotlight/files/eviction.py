"""What leaves the cache of model files when it is full, and what was never finished.

The variant goes first that is cheapest to bring back per byte that its end frees, the longer it lay idle the sooner:
seconds that its files took to come here, divided by those bytes and by its idle time. A slow origin and a recent use
keep it; files that another variant or the hub's own cache holds too free nothing, so such variants stay.
All functions are called by one process at a time, which holds the lock `collect`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from pilotlight.files import incoming
from pilotlight.files.locks import try_take
from pilotlight.files.manifest import Entry, Manifest

IDLE_S_MIN = 1.0
PARTIAL_S_MAX = 3600.0
"""What has come of a file is kept for so long after its last byte, for a try that goes on with it."""


class Stock(Protocol):
    """The cache, as its clearing sees it."""

    root: Path

    def files(self) -> Iterator[Path]:
        """All content that is here."""
        ...

    def file(self, digest: str) -> Path:
        """Where content is."""
        ...

    def views(self) -> Iterator[tuple[str, Manifest, float]]:
        """All staged variants: id, manifest, and when it was last used."""
        ...

    def discard(self, variant_id: str) -> bool:
        """Remove a view, unless it is in use."""
        ...

    def room(self) -> tuple[int, str]:
        """Bytes that may come in."""
        ...


def own_bytes(path: Path) -> int:
    """What the end of a file here would free: nothing while another name (the hub's) holds it too, or where it is a
    link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_nlink == 1 and not stat.S_ISLNK(status.st_mode) else 0


def evict(stock: Stock, need: int, now: float, going_on: Collection[str] = ()) -> None:
    """Remove what no variant needs, then variants that nobody uses, until `need` bytes fit or nothing is left.

    going_on: digests of which what has come so far is about to be gone on with.
    """
    sweep(stock)
    _forget_partials(stock, now, going_on)
    stuck: set[str] = set()
    while stock.room()[0] < need:
        victim = _cheapest(stock, stuck, now)
        if victim is None:
            return
        if not stock.discard(victim):
            stuck.add(victim)
        sweep(stock)


def _cheapest(stock: Stock, stuck: set[str], now: float) -> str | None:
    views = list(stock.views())
    holders = Counter(digest for _, listed, _ in views for digest in {e.digest for e in listed.files.values()})
    best: tuple[float, str] | None = None
    for variant_id, listed, used_at in views:
        freed = sum(
            own_bytes(stock.file(digest))
            for digest in {entry.digest for entry in listed.files.values()}
            if holders[digest] == 1
        )
        if variant_id in stuck or freed == 0:
            continue
        cost = listed.took_s / freed / max(IDLE_S_MIN, now - used_at)
        best = min(best or (cost, variant_id), (cost, variant_id))
    return best[1] if best is not None else None


def sweep(stock: Stock) -> None:
    """Remove files that no variant lists and nobody is about to list, and what is remembered of their sources."""
    needed = {entry.digest for _, listed, _ in stock.views() for entry in listed.files.values()}
    for path in stock.files():
        if path.name in needed:
            continue
        if path.is_symlink() and not path.exists():
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock = try_take(path)
            if lock is not None:
                path.unlink(missing_ok=True)
                os.close(lock)
    for path in (stock.root / "sources").iterdir():
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if not stock.file(msgspec.json.decode(path.read_bytes(), type=Entry).digest).exists():
                path.unlink()


def _forget_partials(stock: Stock, before: float, going_on: Collection[str] = ()) -> None:
    """Remove what has come of files that nobody brings, and of which nothing came after a moment."""
    for path in incoming.partials(stock.root):
        if path.stem in going_on:
            continue
        with contextlib.suppress(OSError):
            lock = try_take(path)
            if lock is None:
                continue
            if path.stat().st_mtime <= before:
                path.unlink(missing_ok=True)
            os.close(lock)


def sweep_torn(stock: Stock, now: float) -> None:
    """Remove what processes that died were making: nobody holds its lock."""
    _forget_partials(stock, now - PARTIAL_S_MAX)
    for path in (stock.root / "tmp").iterdir():
        with contextlib.suppress(OSError):
            lock = try_take(path)
            if lock is None:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            os.close(lock)
