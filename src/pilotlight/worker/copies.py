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

from pilotlight.connection import bracketed
from pilotlight.core import events as ev
from pilotlight.core.files import ASK_S, LOAD_S_MAX
from pilotlight.core.transitions import Level
from pilotlight.files import identity
from pilotlight.files.beside import FileService
from pilotlight.files.cache import Cache, Staged
from pilotlight.files.fetching import Peer
from pilotlight.files.locks import CopyError, Leaving
from pilotlight.files.manifest import Entry, Manifest
from pilotlight.files.progress import Progress
from pilotlight.messages import SourceNamed
from pilotlight.wire import Arrival, Context, FileFact, Listing, Served
from pilotlight.worker import log
from pilotlight.worker.parking import Parked, Parking, digests_of

T = TypeVar("T")
CopyEvent = ev.CopyMade | ev.CopyFailed | ev.CopyGone


class NotFetched(CopyError):
    """Files are on other machines only, and could not be fetched from there."""


class Copies:
    """Makes, lends and drops copies of variants' files. All methods run in the loop, `begin` first.

    A replica that loads from a copy has it lent: a staged one until it ends, a parked one until it is live (it has
    mapped the memory by then).
    """

    def __init__(self, cache: Cache, parking: Parking, service: FileService | None = None) -> None:
        """service: serves what is staged to workers of other machines; it is started and ended here."""
        self._cache = cache
        self._parking = parking
        self._service = service
        self._serves_at = ""
        self._manager = ""
        self._tell: Callable[[CopyEvent], None] = _nobody
        self._ask: Callable[[str], None] = _nobody
        self._offers: dict[str, SourceNamed] = {}
        self._offered = asyncio.Condition()
        self._listings: dict[str, Listing] = {}
        self.cache_name = ""
        with contextlib.suppress(CopyError):  # it can't be used, by nobody else either
            self.cache_name = cache.name
        self._tasks: set[asyncio.Task[None]] = set()
        self._lent: dict[str, tuple[str, Staged]] = {}
        self._unwanted: set[str] = set()
        self._loading: dict[str, str] = {}
        self._borrowing: set[str] = set()
        self._loaded = asyncio.Condition()
        self._looking = False
        self._arriving: dict[str, tuple[Progress, str]] = {}

    def begin(self, tell: Callable[[CopyEvent], None], ask: Callable[[str], None]) -> None:
        """tell: takes the events. ask: has the manager offer a variant of which nothing is on this machine; `named`
        brings its answer."""
        self._tell = tell
        self._ask = ask
        if self._service is not None:
            self._service.start()

    # --- other machines

    def serve(self, ends: tuple[str, str] | None) -> None:
        """A manager was reached, over a network with these ends (as `ports.WorkerLink.ends`): serve files at our own.
        Raises `ConfigError` where the port for that can't be had."""
        if ends is None:
            return
        self._manager, here = ends
        if self._service is not None and not self._serves_at:
            self._service.listen(here)
            self._serves_at = here

    def served(self) -> Served | None:
        """How others fetch what is staged here."""
        if self._service is None or not self._serves_at:
            return None
        url = f"http://{bracketed(self._serves_at)}:{self._service.port}"
        return Served(url=url, key=self._service.key, now_s=time.monotonic())

    def listing(self, variant_id: str) -> Listing | None:
        """The files of a staged copy, where others can fetch them."""
        return self._listings.get(variant_id) if self._serves_at else None

    def named(self, answer: SourceNamed) -> None:
        """The manager says from where to stage."""
        self._offers[answer.variant] = answer
        self._run(self._notify(self._offered))

    def arriving(self) -> list[Arrival]:
        """What is being staged, and how far that is."""
        found: list[Arrival] = []
        for variant_id, (progress, source) in self._arriving.items():
            done, total = progress.bytes
            if total:
                found.append(Arrival(variant=variant_id, done_bytes=done, total_bytes=total, source=source))
        return found

    # --- wishes

    def make(self, variant_id: str, level: Level, context: Context, source: str = "") -> None:
        """Stage or park a context's files, from the machine of the worker `source` if it is not empty. Ends in
        `CopyMade` or `CopyFailed`."""
        self._unwanted.discard(variant_id)
        work = self._park(variant_id, context) if level is Level.PARKED else self._stage(variant_id, context, source)
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
            self._run(self._notify(self._loaded))

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
        if self._service is not None:
            await self._service.close()

    # --- the work

    async def _made(self, variant_id: str, level: Level, work: Awaitable[int]) -> None:
        began = time.monotonic()
        try:
            size = await work
        except CopyError as error:
            self._failed(variant_id, level, str(error), remote=isinstance(error, NotFetched))
            return
        except Exception as error:
            log.say_error()
            self._failed(variant_id, level, f"{type(error).__name__}: {error}")
            return
        took_s = time.monotonic() - began
        log.say(f"{level.value} {variant_id}: {size / 1e9:.2f} GB in {took_s:.1f} s")
        self._tell(ev.CopyMade(variant_id, level, size, took_s))

    def _failed(self, variant_id: str, level: Level, reason: str, *, remote: bool = False) -> None:
        log.say(f"{variant_id} is not {level.value}: {reason}")
        self._tell(ev.CopyFailed(variant_id, level, reason, remote))

    async def _stage(self, variant_id: str, context: Context, source: str) -> int:
        self._arriving[variant_id] = Progress(), source
        try:
            return await self._staged(variant_id, context, source)
        finally:
            self._arriving.pop(variant_id, None)

    async def _staged(self, variant_id: str, context: Context, source: str) -> int:
        answer = self._offers.pop(variant_id, None)
        staged: Staged | None = None
        if not source and (answer is None or answer.offer is None):
            staged = await _in_thread(self._from_here, variant_id, context, late=_close)
            if staged is None:
                answer = await self._offer_of(variant_id)
                source = answer.source
                self._arriving[variant_id] = self._progress(variant_id), source
        if staged is None:
            staged = await _in_thread(self._fetch, variant_id, answer, source, late=_close)
        staged.close()
        files = {name: FileFact(entry.digest, entry.size) for name, entry in staged.files.items()}
        self._listings[variant_id] = Listing(files=files, single=staged.path.is_file())
        return staged.bytes

    def _from_here(self, variant_id: str, context: Context) -> Staged | None:
        """What this machine has already, or can read where the context says or in its own hub cache; else None."""
        staged = self._cache.find(variant_id)
        if staged is not None:
            return staged
        places = identity.places(context.model_path or "", context.identity)
        model = next((path for path in places if identity.is_at(path, context.identity)), None)
        return self._cache.make(variant_id, model, self._progress(variant_id)) if model is not None else None

    def _progress(self, variant_id: str) -> Progress:
        progress, _ = self._arriving.get(variant_id, (Progress(), ""))  # nobody waits any more
        return progress

    async def _offer_of(self, variant_id: str) -> SourceNamed:
        """Ask the manager until it answers."""
        async with asyncio.timeout(LOAD_S_MAX), self._offered:
            while (answer := self._offers.pop(variant_id, None)) is None or not (answer.offer or answer.refusal):
                self._ask(variant_id)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._offered.wait_for(lambda: variant_id in self._offers), ASK_S)
        return answer

    def _fetch(self, variant_id: str, answer: SourceNamed | None, source: str) -> Staged:
        if answer is None or answer.offer is None:
            why = answer.refusal if answer is not None else ""
            raise NotFetched(why or f"{source} was named, but not where it serves files")
        listing, url = answer.offer.listing, answer.offer.url or f"http://{self._manager}"
        files = {name: Entry(fact.digest, fact.size) for name, fact in listing.files.items()}
        listed = Manifest(variant_id, files, listing.single)
        try:
            with Peer(url, answer.offer.tokens, source or "the manager", self._cache.stop) as peer:
                return self._cache.fetch(listed, peer.pieces, self._progress(variant_id))
        except Leaving:
            raise
        except CopyError as error:
            raise NotFetched(str(error)) from error

    async def _park(self, variant_id: str, context: Context) -> int:
        return (await _in_thread(self._park_here, variant_id, Path(context.model_path or ""))).bytes

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

    @staticmethod
    async def _notify(condition: asyncio.Condition) -> None:
        async with condition:
            condition.notify_all()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _nobody(_: object) -> None:
    pass


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
