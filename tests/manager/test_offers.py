"""What workers are offered: tokens for what was asked for, a peer's own listing, and one look at the origin for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec

from pilotlight.files import tokens
from pilotlight.files.control import Described
from pilotlight.files.locks import CopyError
from pilotlight.manager.offers import Offers
from pilotlight.messages import Beat, Copy, CopyFailed, Join, Kept, SourceAsked, SourceNamed
from pilotlight.wire import Arrival, Context, FileFact, Listing, Served

FILES = {"config.json": ("a" * 64, 2), "model.safetensors": ("b" * 64, 1000)}
LISTING = Listing(files={name: FileFact(*fact) for name, fact in FILES.items()})
CONTEXT = Context(runtime="echo", name="m", identity="m", model_path="/models/m")
AHEAD_S = 1e6
"""How far another machine's clock is ahead."""


class Link:
    """Remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, SourceNamed]] = []
        self.notes: list[tuple[str, str, str]] = []
        self._more = asyncio.Event()

    def send(self, worker_id: str, message: SourceNamed) -> None:
        self.sent.append((worker_id, message))
        self._more.set()

    async def until(self, count: int) -> None:
        """Wait until so many messages were sent."""
        while len(self.sent) < count:
            self._more.clear()
            await asyncio.wait_for(self._more.wait(), 30.0)


class Service:
    """A file service that describes when it is told to."""

    def __init__(self) -> None:
        self.key = b"managers"
        self.asked: list[tuple[str, str]] = []
        self.answer: asyncio.Future[Described] = asyncio.get_running_loop().create_future()

    async def describe(self, model: str, identity: str) -> Described:
        self.asked.append((model, identity))
        return await self.answer

    async def close(self) -> None:
        pass


def join(name: str, *, serves: bool = True, has: bool = False) -> Join:
    served = Served(url=f"http://{name}:1", key=name.encode(), now_s=time.monotonic() + AHEAD_S) if serves else None
    copies = [Copy(variant="v", level="staged", bytes=1002, listing=LISTING)] if has else []
    return Join(worker=name, pid=1, host=name, devices=[], serves=served, copies=copies)


def played(play: Callable[[Offers, Link, Service], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        link, service = Link(), Service()
        offers = Offers(3, cast("Any", link), lambda *note: link.notes.append(note), str.upper)
        offers.service = cast("Any", service)
        for name in ("a", "b", "c"):
            offers.heard(name, join(name))
        await play(offers, link, service)
        await offers.close()

    asyncio.run(run())


def test_a_peer_is_offered_with_what_it_has_and_tokens_of_its_own_by_its_own_clock() -> None:
    async def play(offers: Offers, link: Link, _service: Service) -> None:
        offers.heard("p", join("p", has=True))
        offers.name("a", "v", "p", CONTEXT)
        ((to, named),) = link.sent
        assert (to, named.epoch, named.source) == ("a", 3, "p")
        assert named.offer is not None
        assert (named.offer.url, named.offer.listing) == ("http://p:1", LISTING)
        assert named.offer.tokens.keys() == {digest for digest, _ in FILES.values()}
        for digest, token in named.offer.tokens.items():
            there_s = time.monotonic() + AHEAD_S
            assert tokens.opens(b"p", digest, token, there_s)
            assert not tokens.opens(b"p", digest, token, there_s + tokens.LIFE_S + 5)
            assert not tokens.opens(b"a", digest, token, there_s)

    played(play)


def test_the_origin_is_offered_to_those_that_can_not_read_it() -> None:
    async def play(offers: Offers, link: Link, service: Service) -> None:
        offers.name("a", "v", "", CONTEXT)
        assert link.sent == [("a", SourceNamed(epoch=3, variant="v"))], "it may read the folder"
        link.sent.clear()
        for name in ("a", "b"):
            offers.heard(name, SourceAsked(variant="v", remote=True))
        offers.name("a", "v", "", CONTEXT)
        offers.name("b", "v", "", CONTEXT)
        offers.name("c", "v", "a", CONTEXT)
        await asyncio.sleep(0)
        assert link.sent == []
        service.answer.set_result(Described(files=FILES))
        await link.until(3)
        assert service.asked == [("/models/m", "m")], "one look does for all"
        told = {to: named.offer for to, named in link.sent}
        for name, url, key in (("a", "", b"managers"), ("b", "", b"managers"), ("c", "http://a:1", b"a")):
            offer = told[name]
            assert offer is not None
            assert (offer.url, offer.listing) == (url, LISTING)
            there_s = time.monotonic() + (AHEAD_S if url else 0.0)
            assert tokens.opens(key, "b" * 64, offer.tokens["b" * 64], there_s)

    played(play)


def test_what_can_not_be_offered_has_a_reason() -> None:
    async def play(offers: Offers, link: Link, service: Service) -> None:
        offers.heard("a", SourceAsked(variant="v", remote=True))
        service.answer.set_exception(CopyError("/models/m changed"))
        offers.name("a", "v", "", CONTEXT)
        await link.until(1)
        assert link.sent.pop() == ("a", SourceNamed(epoch=3, variant="v", refusal="/models/m changed"))
        offers.name("a", "v", "", None)
        offers.service = None
        offers.name("a", "v", "", CONTEXT)
        assert [named.refusal for _, named in link.sent] == [
            "the pool's manager does not serve files: it does not listen"
        ] * 2

    played(play)


def test_nothing_is_offered_of_who_has_nothing_serves_nothing_or_is_gone() -> None:
    async def play(offers: Offers, link: Link, _service: Service) -> None:
        offers.heard("p", join("p", has=True))
        offers.heard("p", Kept(copy=Copy(variant="v", level="staged", bytes=0)))
        offers.heard("q", join("q", has=True, serves=False))
        offers.heard("r", join("r", has=True))
        offers.forget_worker("r")
        for source in ("p", "q", "r"):
            offers.name("a", "v", source, CONTEXT)
        assert [named.offer for _, named in link.sent] == [None] * 3

    played(play)


def test_what_is_on_its_way_is_known_by_the_last_sign_of_life() -> None:
    async def play(offers: Offers, _link: Link, _service: Service) -> None:
        arrival = Arrival(variant="v", done_bytes=3, total_bytes=10, source="a")
        offers.heard("b", Beat(arriving=[arrival]))
        offers.heard("stranger", Beat(arriving=[arrival]))
        assert (offers.arriving("a"), offers.arriving("b"), offers.arriving("stranger")) == ([], [arrival], [])
        offers.heard("b", Beat())
        assert offers.arriving("b") == []

    played(play)


def test_who_gets_no_files_is_named_once_with_the_reason() -> None:
    async def play(offers: Offers, link: Link, _service: Service) -> None:
        failed = CopyFailed(variant="v", reason="its disk is full")
        offers.heard("a", failed)
        assert link.notes == [], "it reads them in their folder"
        offers.heard("a", SourceAsked(variant="v", remote=True))
        for _ in range(2):
            offers.heard("a", failed)
            offers.heard("a", CopyFailed(variant="v", source="b", reason="it is gone"))
        assert link.notes == [("warning", "a gets no files of V: its disk is full", "a")]

    played(play)


def test_a_description_that_is_over_as_it_is_waited_for_is_used() -> None:
    async def play(offers: Offers, link: Link, service: Service) -> None:
        offers.name("a", "v", "", CONTEXT)
        offers.heard("a", SourceAsked(variant="v", remote=True))
        offers.name("a", "v", "", CONTEXT)
        await asyncio.sleep(0)
        service.answer.set_result(Described(files=FILES))
        await asyncio.sleep(0)
        offers.heard("b", SourceAsked(variant="v", remote=True))
        offers.name("b", "v", "", CONTEXT)
        await link.until(3)
        assert all(named.offer is not None for _, named in link.sent[1:])

    played(play)


def test_a_key_goes_to_no_worker() -> None:
    async def play(offers: Offers, link: Link, _service: Service) -> None:
        offers.heard("secretive", join("secretive", has=True))
        offers.name("a", "v", "secretive", CONTEXT)
        (_, named) = link.sent[0]
        assert named.offer is not None
        quiet = msgspec.structs.replace(named, source="", offer=msgspec.structs.replace(named.offer, url=""))
        assert b"secretive" not in msgspec.msgpack.encode(quiet)

    played(play)
