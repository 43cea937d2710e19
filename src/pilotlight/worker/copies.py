"""The agent's copies of model files, as its loop asks for them: each wish ends in one event, and nothing blocks.

What works is in `cache` (staged, shared by the machine's workers) and `parking` (parked, in this agent's memory).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import TypeVar, cast

from pilotlight.core import events as ev
from pilotlight.core.transitions import Level
from pilotlight.files.cache import Cache, Staged
from pilotlight.files.locks import CopyError
from pilotlight.worker import log
from pilotlight.worker.parking import Parked, Parking, digests_of

T = TypeVar("T")
CopyEvent = ev.CopyMade | ev.CopyFailed | ev.CopyGone


class Copies:
    """Makes, lends and drops copies of variants' files. `tell` takes the events; all methods run in the loop.

    A replica that loads from a copy has it lent: a staged one until it ends, a parked one until it is live (it has
    mapped the memory by then).
    """

    def __init__(self, cache: Cache, parking: Parking, tell: Callable[[CopyEvent], None]) -> None:
        self._cache = cache
        self._parking = parking
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()
        self._lent: dict[str, tuple[str, Staged]] = {}
        self._unwanted: set[str] = set()
        self._loading: dict[str, str] = {}
        self._borrowing: set[str] = set()
        self._loaded = asyncio.Condition()
        self._looking = False

    # --- wishes

    def make(self, variant_id: str, level: Level, model: str, source: str = "") -> None:
        """Stage or park what is in the folder `model`, or on the machine of the worker `source`. Ends in `CopyMade` or
        `CopyFailed`."""
        self._unwanted.discard(variant_id)
        if source:
            work = self._fetch(source)
        elif level is Level.STAGED:
            work = self._stage(variant_id, Path(model))
        else:
            work = self._park(variant_id, Path(model))
        self._run(self._made(variant_id, level, work))

    def unpark(self, variant_id: str) -> None:
        """Let go of a parked copy as soon as no replica is being built from it. Ends in `CopyGone`."""
        self._run(self._unparked(variant_id))

    def unstage(self, variant_id: str) -> None:
        """Remove a variant from the machine's cache, unless it is in use elsewhere; what is in use here goes when its
        last replica ends. `CopyGone` if it went."""
        self._run(self._unstaged(variant_id))

    def look(self, variant_ids: Iterable[str]) -> None:
        """See whether these are still staged: other workers of the machine evict too. `CopyGone` for what is not."""
        if not self._looking:
            self._looking = True
            self._run(self._looked(list(variant_ids)))

    # --- loans

    async def borrow(self, replica_id: str, variant_id: str, origin: str) -> Path | None:
        """Where a replica finds the copy that it is to load from; None where that is gone, or was not meant."""
        if origin == Level.PARKED.value:
            parked = self._parking.find(variant_id)
            if parked is not None:
                self._loading[replica_id] = variant_id
                return parked.path
        elif origin == Level.STAGED.value:
            self._unwanted.discard(variant_id)
            self._borrowing.add(replica_id)
            staged: Staged | None = None
            try:
                staged = await _in_thread(self._cache.find, variant_id, late=_close)
            except CopyError as error:
                log.say(f"{variant_id} is not loaded from its staged copy: {error}")
            finally:
                is_gone = replica_id not in self._borrowing
                self._borrowing.discard(replica_id)
            if is_gone:
                _close(staged)
                return None
            if staged is not None:
                self._lent[replica_id] = variant_id, staged
                return staged.path
            self._tell(ev.CopyGone(variant_id, Level.STAGED))
        return None

    def loaded(self, replica_id: str) -> None:
        """A replica has loaded."""
        if self._loading.pop(replica_id, None) is not None:
            self._run(self._notify())

    def ended(self, replica_id: str) -> None:
        """A replica is gone."""
        self.loaded(replica_id)
        self._borrowing.discard(replica_id)
        variant_id, staged = self._lent.pop(replica_id, ("", None))
        if staged is not None:
            staged.close()
        if variant_id in self._unwanted:
            self.unstage(variant_id)

    async def close(self) -> None:
        """Give up what is under way, and let go of everything."""
        self._cache.stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, staged in self._lent.values():
            staged.close()
        self._lent.clear()
        self._parking.close()

    # --- the work

    async def _made(self, variant_id: str, level: Level, work: Awaitable[int]) -> None:
        began = time.monotonic()
        try:
            size = await work
        except CopyError as error:
            self._failed(variant_id, level, str(error))
            return
        except Exception as error:
            log.say_error()
            self._failed(variant_id, level, f"{type(error).__name__}: {error}")
            return
        took_s = time.monotonic() - began
        log.say(f"{level.value} {variant_id}: {size / 1e9:.2f} GB in {took_s:.1f} s")
        self._tell(ev.CopyMade(variant_id, level, size, took_s))

    def _failed(self, variant_id: str, level: Level, reason: str) -> None:
        log.say(f"{variant_id} is not {level.value}: {reason}")
        self._tell(ev.CopyFailed(variant_id, level, reason))

    async def _fetch(self, source: str) -> int:
        raise CopyError(f"files can't be fetched from {source} yet: only what this machine can read is copied")

    async def _stage(self, variant_id: str, model: Path) -> int:
        staged = await _in_thread(self._cache.make, variant_id, model)
        staged.close()
        return staged.bytes

    async def _park(self, variant_id: str, model: Path) -> int:
        return (await _in_thread(self._park_here, variant_id, model)).bytes

    def _park_here(self, variant_id: str, model: Path) -> Parked:
        staged: Staged | None = None
        with contextlib.suppress(CopyError):
            staged = self._cache.find(variant_id)
        try:
            known = {name: entry.digest for name, entry in staged.files.items()} if staged is not None else {}
            source = staged.path if staged is not None else model
            return self._parking.park(variant_id, source, digests_of(known, self._cache.digest))
        finally:
            if staged is not None:
                staged.close()

    async def _unparked(self, variant_id: str) -> None:
        async with self._loaded:
            await self._loaded.wait_for(lambda: variant_id not in self._loading.values())
        try:
            await _in_thread(self._parking.drop, variant_id)
        except Exception:
            log.say_error()
        self._tell(ev.CopyGone(variant_id, Level.PARKED))

    async def _unstaged(self, variant_id: str) -> None:
        try:
            gone = await _in_thread(self._cache.drop, variant_id)
        except CopyError as error:
            log.say(f"{variant_id} stays staged: {error}")
            return
        if gone:
            self._unwanted.discard(variant_id)
            self._tell(ev.CopyGone(variant_id, Level.STAGED))
        elif any(lent == variant_id for lent, _ in self._lent.values()):
            self._unwanted.add(variant_id)

    async def _looked(self, variant_ids: list[str]) -> None:
        try:
            there = await _in_thread(self._there, variant_ids)
        finally:
            self._looking = False
        for variant_id, has in zip(variant_ids, there, strict=True):
            if not has:
                self._tell(ev.CopyGone(variant_id, Level.STAGED))

    def _there(self, variant_ids: list[str]) -> list[bool]:
        return [self._cache.has(variant_id) for variant_id in variant_ids]

    async def _notify(self) -> None:
        async with self._loaded:
            self._loaded.notify_all()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _close(staged: Staged | None) -> None:
    if staged is not None:
        staged.close()


async def _in_thread(work: Callable[..., T], *arguments: object, late: Callable[[T], None] | None = None) -> T:
    """Wait for what blocks. Its thread is nobody's to wait for at the end, unlike those of asyncio's own: a file system
    that hangs must not keep a worker from ending. `late` takes a result for which nobody waits any more."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.cancelled():
            if error is None and late is not None:
                late(cast("T", result))
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def run() -> None:
        result, failed = None, None
        try:
            result = work(*arguments)
        except Exception as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, daemon=True, name=f"files-{work.__name__}").start()
    return await done
