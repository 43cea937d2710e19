"""How workers are told from where to fetch a variant's files: what there is, where, and the tokens that open it.

Whom a worker is sent to, `core.fetches` decides. A peer is offered with what it said that it has, or was itself offered
and passes on. The origin is offered only to a worker that can't read the model's folder: the manager's file service
then says what the folder consists of, and serves it.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from pilotlight.core.errors import PilotlightError
from pilotlight.files import tokens
from pilotlight.files.beside import FileService
from pilotlight.messages import Beat, Copy, CopyFailed, Join, Kept, SourceAsked, SourceNamed, WorkerMessage
from pilotlight.ports import ManagerLink
from pilotlight.wire import Arrival, Context, FileFact, Listing, Offer, Served


@dataclass(slots=True)
class _Peer:
    """A worker. ahead_s: how far its machine's clock is ahead of this one's. listings: of what it has, or is about to,
    by variant. remote: variants whose origin it can't read. arriving: what is on its way, by its last sign of life.
    told: why it got no files of a variant, as far as that was told."""

    served: Served | None
    ahead_s: float
    listings: dict[str, Listing] = field(default_factory=dict[str, Listing])
    remote: set[str] = field(default_factory=set[str])
    arriving: list[Arrival] = field(default_factory=list[Arrival])
    told: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])


class Offers:
    """Answers to `SourceAsked`. `service` is the manager's own, once one was started: where workers of other machines
    may dial in."""

    def __init__(
        self, epoch: int, link: ManagerLink, note: Callable[[str, str, str], None], name_of: Callable[[str], str]
    ) -> None:
        """note: takes a level, a sentence, and the worker that it is about. name_of: what people call a variant."""
        self.service: FileService | None = None
        self._epoch = epoch
        self._link = link
        self._note = note
        self._name_of = name_of
        self._peers: dict[str, _Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._described: dict[str, asyncio.Task[Listing]] = {}

    # --- workers

    def heard(self, worker_id: str, message: WorkerMessage) -> None:
        """What a worker says, whatever it is."""
        match message:
            case Join():
                self._joined(message)
            case Kept(copy=copy):
                self._kept(worker_id, copy)
            case SourceAsked(variant=variant_id, remote=True):
                if worker_id in self._peers:
                    self._peers[worker_id].remote.add(variant_id)
            case CopyFailed(variant=variant_id, source="", reason=reason):
                self._failed(worker_id, variant_id, reason)
            case Beat(arriving=arriving):
                if worker_id in self._peers:
                    self._peers[worker_id].arriving = arriving
            case _:
                pass

    def _joined(self, join: Join) -> None:
        ahead_s = join.serves.now_s - time.monotonic() if join.serves is not None else 0.0
        self._peers[join.worker] = _Peer(join.serves, ahead_s)
        for copy in join.copies:
            self._kept(join.worker, copy)

    def _kept(self, worker_id: str, copy: Copy) -> None:
        peer = self._peers.get(worker_id)
        if peer is None or copy.level != "staged":
            return
        if copy.listing is not None:
            peer.listings[copy.variant] = copy.listing
        elif not copy.bytes:
            peer.listings.pop(copy.variant, None)
        peer.remote.discard(copy.variant)

    def _failed(self, worker_id: str, variant_id: str, reason: str) -> None:
        """The origin is tried a few times more; why it failed is told once, and only where the worker has no other."""
        peer = self._peers.get(worker_id)
        if peer is not None and variant_id in peer.remote and (variant_id, reason) not in peer.told:
            peer.told.add((variant_id, reason))
            self._note("warning", f"{worker_id} gets no files of {self._name_of(variant_id)}: {reason}", worker_id)

    def arriving(self, worker_id: str) -> list[Arrival]:
        """What a worker is staging now."""
        return self._peers[worker_id].arriving if worker_id in self._peers else []

    def forget_worker(self, worker_id: str) -> None:
        """A worker is gone."""
        self._peers.pop(worker_id, None)

    async def close(self) -> None:
        """Leave what is being looked at."""
        for task in (*self._tasks, *self._described.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.service is not None:
            await self.service.close()

    # --- offers

    def name(self, worker_id: str, variant_id: str, source: str, context: Context | None) -> None:
        """Tell a worker from where to stage: a peer, or the origin (""), which may take some time to be described."""
        peer, described = self._peers.get(worker_id), self._described.get(variant_id)
        if source:
            if described is not None and variant_id not in self._listings_of(source):
                self._run(self._name_when_described(worker_id, variant_id, described, source))  # it waits for the same
            else:
                self._send(worker_id, variant_id, source, self._of_peer(worker_id, variant_id, source))
        elif peer is None or variant_id not in peer.remote:
            self._send(worker_id, variant_id)
        elif self.service is None or context is None or context.model_path is None:
            self._send(worker_id, variant_id, refusal="the pool's manager does not serve files: it does not listen")
        else:
            if described is None:
                described = asyncio.get_running_loop().create_task(_describe(self.service, context))
                self._described[variant_id] = described
                described.add_done_callback(lambda _: self._described.pop(variant_id, None))
            self._run(self._name_when_described(worker_id, variant_id, described))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _listings_of(self, worker_id: str) -> dict[str, Listing]:
        return self._peers[worker_id].listings if worker_id in self._peers else {}

    def _send(
        self, worker_id: str, variant_id: str, source: str = "", offer: Offer | None = None, refusal: str = ""
    ) -> None:
        named = SourceNamed(epoch=self._epoch, variant=variant_id, source=source, offer=offer, refusal=refusal)
        self._link.send(worker_id, named)

    def _of_peer(self, worker_id: str, variant_id: str, source: str) -> Offer | None:
        asker, peer = self._peers.get(worker_id), self._peers.get(source)
        if asker is None or peer is None or peer.served is None or variant_id not in peer.listings:
            return None
        listing = asker.listings[variant_id] = peer.listings[variant_id]
        return _offer(listing, peer.served.key, peer.ahead_s, peer.served.url)

    async def _name_when_described(
        self, worker_id: str, variant_id: str, described: asyncio.Task[Listing], source: str = ""
    ) -> None:
        """Those who wait for one description are answered in the order of their questions, sources first."""
        try:
            listing = await asyncio.shield(described)
        except PilotlightError as error:  # of the origin, whoever was named: a peer is not to blame
            self._send(worker_id, variant_id, refusal=str(error))
            return
        except Exception as error:
            traceback.print_exc()
            self._send(worker_id, variant_id, refusal=f"{type(error).__name__}: {error}")
            return
        if source:
            self._send(worker_id, variant_id, source, self._of_peer(worker_id, variant_id, source))
        elif worker_id in self._peers and self.service is not None:
            self._peers[worker_id].listings[variant_id] = listing
            self._send(worker_id, variant_id, offer=_offer(listing, self.service.key, 0.0))


async def _describe(service: FileService, context: Context) -> Listing:
    assert context.model_path is not None
    described = await service.describe(context.model_path, context.identity)
    files = {name: FileFact(digest, size) for name, (digest, size) in described.files.items()}
    return Listing(files=files, single=described.single)


def _offer(listing: Listing, key: bytes, ahead_s: float, url: str = "") -> Offer:
    """With tokens for the listed content only."""
    until_s = time.monotonic() + ahead_s + tokens.LIFE_S
    given = {fact.digest: tokens.mint(key, fact.digest, until_s) for fact in listing.files.values()}
    return Offer(listing=listing, tokens=given, url=url)
