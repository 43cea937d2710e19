"""The agent's copies: one event for each wish, loans that nothing takes away, and an end that waits for no disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import msgspec
import pytest

from pilotlight.core import events as ev
from pilotlight.core.transitions import Level
from pilotlight.files import filecopy, identity
from pilotlight.files.cache import Cache, Staged
from pilotlight.messages import SourceNamed
from pilotlight.wire import Arrival, Context, FileFact, Listing, Offer
from pilotlight.worker.copies import Copies, CopyEvent
from pilotlight.worker.parking import Parking
from tests.files.bench import Machine, digest, model, serving

WITHIN_S = 30.0


class Bench:
    """Copies over a cache of their own, and what they told."""

    def __init__(self, folder: Path, read: filecopy.Read = filecopy.read) -> None:
        self.cache = Cache(folder / "cache", read=read)
        self.parking = Parking(folder / "scratch", folder / "notes", self.cache.stop, lambda: 1 << 40)
        self.told: asyncio.Queue[CopyEvent] = asyncio.Queue()
        self.copies = Copies(self.cache, self.parking)
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.copies.begin(self.told.put_nowait, self.asked.put_nowait)
        self.model = folder / "m"
        self.model.mkdir()
        (self.model / "config.json").write_bytes(b"{}")
        (self.model / "model.safetensors").write_bytes(b"w" * 1000)

    def context(self, model: Path | None = None) -> Context:
        return Context(runtime="echo", name="m", identity="m", model_path=str(model or self.model))

    async def next(self) -> CopyEvent:
        return await asyncio.wait_for(self.told.get(), WITHIN_S)

    async def make(self, level: Level) -> ev.CopyMade:
        self.copies.make("v", level, self.context())
        made = await self.next()
        assert isinstance(made, ev.CopyMade)
        assert made.level is level
        return made


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


def test_a_parked_copy_stays_until_it_is_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        await bench.make(Level.PARKED)
        path = await bench.copies.borrow("w.1", "v", "parked")
        assert path is not None
        bench.copies.unpark("v")
        bench.copies.make("v", Level.STAGED, bench.context())
        assert isinstance(await bench.next(), ev.CopyMade), "what was asked for later came first"
        assert (path / "model.safetensors").read_bytes() == b"w" * 1000
        bench.copies.loaded("w.1")
        assert await bench.next() == ev.CopyGone("v", Level.PARKED)
        assert not path.exists()
        await bench.copies.close()

    play(scenario)


def test_a_staged_copy_is_lent_until_its_replica_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        await bench.make(Level.STAGED)
        path = await bench.copies.borrow("w.1", "v", "staged")
        assert path is not None
        bench.copies.loaded("w.1")
        assert not bench.cache.drop("v")
        await bench.copies._unstaged("v")
        assert bench.cache.has("v")
        bench.copies.ended("w.1")
        assert await bench.next() == ev.CopyGone("v", Level.STAGED)
        assert await bench.copies.borrow("w.2", "v", "staged") is None
        assert await bench.next() == ev.CopyGone("v", Level.STAGED)
        assert await bench.copies.borrow("w.3", "v", "cold") is None
        await bench.copies.close()

    play(scenario)


def test_what_other_workers_evicted_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        await bench.make(Level.STAGED)
        bench.copies.look(["v"])
        bench.copies.look(["v"])
        await bench.copies.borrow("w.1", "v", "staged")
        assert bench.told.empty()
        bench.copies.ended("w.1")
        assert bench.cache.drop("v")
        while bench.told.empty():
            bench.copies.look(["v"])
            await asyncio.sleep(0.01)
        assert await bench.next() == ev.CopyGone("v", Level.STAGED)
        await bench.copies.close()

    play(scenario)


def test_a_failure_has_a_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.copies.make("v", Level.PARKED, bench.context(tmp_path / "nowhere"))
        failed = await bench.next()
        assert isinstance(failed, ev.CopyFailed)
        assert "nowhere can't be read: No such file or directory" in failed.reason
        await bench.copies.close()

    play(scenario)


def test_a_model_that_is_not_on_this_machine_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.copies.make("v", Level.STAGED, bench.context(tmp_path / "nowhere"))
        assert await asyncio.wait_for(bench.asked.get(), WITHIN_S) == "v"
        bench.copies.named(SourceNamed(epoch=1, variant="v", refusal="the manager does not serve files"))
        assert await bench.next() == ev.CopyFailed("v", Level.STAGED, "the manager does not serve files", remote=True)
        await bench.copies.close()

    play(scenario)


def test_another_model_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        known = identity.content_digest(bench.model)
        wanted = msgspec.structs.replace(bench.context(), identity=known)
        (bench.model / "config.json").write_bytes(b"[]")
        bench.copies.make("v", Level.STAGED, wanted)
        assert await asyncio.wait_for(bench.asked.get(), WITHIN_S) == "v"
        (bench.model / "config.json").write_bytes(b"{}")
        bench.copies.make("w", Level.STAGED, wanted)
        made = await bench.next()
        assert isinstance(made, ev.CopyMade)
        assert made.variant_id == "w"
        await bench.copies.close()

    play(scenario)


def test_a_peer_of_which_nothing_is_known_is_no_source(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.copies.make("v", Level.STAGED, bench.context(), "w-far")
        assert bench.told.empty(), "it is told as everything else is: later"
        failed = await bench.next()
        assert isinstance(failed, ev.CopyFailed)
        assert failed.reason == "w-far was named, but not where it serves files"
        assert not bench.cache.has("v")
        await bench.copies.close()

    play(scenario)


def test_what_a_peer_offers_is_fetched_and_served_again(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"from afar" * 1000}

    async def scenario() -> None:
        bench, far = Bench(tmp_path), Machine(tmp_path / "far")
        far.cache.make("v", model(tmp_path / "n", files)).close()
        async with serving(far):
            facts = {name: FileFact(digest(content), len(content)) for name, content in files.items()}
            tokens = {fact.digest: far.token(fact.digest) for fact in facts.values()}
            offer = Offer(listing=Listing(files=facts), tokens=tokens, url=far.url)
            bench.copies.named(SourceNamed(epoch=1, variant="v", source="w-far", offer=offer))
            bench.copies.make("v", Level.STAGED, bench.context(), "w-far")
            made = await bench.next()
        assert isinstance(made, ev.CopyMade)
        assert made.bytes == 9002
        path = await bench.copies.borrow("w.1", "v", "staged")
        assert path is not None
        assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
        assert bench.copies.listing("v") is None, "it serves nothing"
        await bench.copies.close()

    play(scenario)


def test_it_is_told_how_far_a_copy_is(tmp_path: Path) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def read(fd: int) -> Iterator[memoryview]:
        for piece in filecopy.read(fd):
            half = len(piece) // 2
            yield piece[:half]
            if half > 100:  # of the weights
                begun.set()
                assert goes_on.wait(WITHIN_S)
            yield piece[half:]

    async def scenario() -> None:
        bench = Bench(tmp_path, read)
        assert bench.copies.arriving() == []
        bench.copies.make("v", Level.STAGED, bench.context())
        assert await asyncio.to_thread(begun.wait, WITHIN_S)
        assert bench.copies.arriving() == [Arrival(variant="v", done_bytes=502, total_bytes=1002)]
        goes_on.set()
        assert isinstance(await bench.next(), ev.CopyMade)
        assert bench.copies.arriving() == []
        await bench.copies.close()

    play(scenario)


def test_a_disk_that_hangs_keeps_no_worker_from_ending(tmp_path: Path) -> None:
    hangs, answers = threading.Event(), threading.Event()

    def read(fd: int) -> Iterator[memoryview]:
        hangs.set()
        assert answers.wait(WITHIN_S)
        yield from filecopy.read(fd)

    async def scenario() -> None:
        bench = Bench(tmp_path, read)
        bench.copies.make("v", Level.STAGED, bench.context())
        assert await asyncio.to_thread(hangs.wait, WITHIN_S)
        await bench.copies.close()
        assert bench.told.empty()

    play(scenario)
    assert not answers.is_set()
    answers.set()


def test_a_loan_to_a_replica_that_ended_meanwhile_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        await bench.make(Level.STAGED)
        looks, answers = threading.Event(), threading.Event()
        find = bench.cache.find

        def slowly(variant_id: str) -> Staged | None:
            looks.set()
            assert answers.wait(WITHIN_S)
            return find(variant_id)

        monkeypatch.setattr(bench.cache, "find", slowly)
        borrowing = asyncio.create_task(bench.copies.borrow("w.1", "v", "staged"))
        assert await asyncio.to_thread(looks.wait, WITHIN_S)
        bench.copies.ended("w.1")
        answers.set()
        assert await borrowing is None
        assert bench.cache.drop("v"), "it is lent for ever"
        await bench.copies.close()

    play(scenario)
