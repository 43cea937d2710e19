"""What comes from other machines: only what is missing, checked, gone on with where it was cut, and never believed."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotlight.files import fetching, incoming
from pilotlight.files.cache import Cache
from pilotlight.files.fetching import Peer
from pilotlight.files.locks import CopyError, Leaving
from pilotlight.files.manifest import Entry, Manifest
from tests.files.bench import WITHIN_S, Machine, digest, listing, model, serving, until

MB = 1 << 20
FILES = {
    "config.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "same.json": b"{}",
    "empty.txt": b"",
    "model-1.safetensors": random.Random(1).randbytes(2 * MB),
    "model-2.safetensors": random.Random(2).randbytes(MB),
}
LISTED = listing("v", FILES)
BY_DIGEST = {digest(content): content for content in FILES.values()}


class Source:
    """A source within the process. cut: by digest, where its next transfers break off; lies: what it sends instead."""

    def __init__(self, cut: dict[str, list[int]] | None = None, lies: dict[str, bytes] | None = None) -> None:
        self.cut = cut or {}
        self.lies = lies or {}
        self.sent: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    def pieces(self, name: str, size: int, have: int) -> Iterator[bytes]:
        assert 0 <= have < size
        content = self.lies.get(name, BY_DIGEST[name])
        with self._lock:
            cuts = self.cut.get(name, [])
            stop = cuts.pop(0) if cuts else len(content)
        at = have
        while at < stop:
            piece = content[at : min(at + 100_000, stop)]
            yield piece
            at += len(piece)
        with self._lock:
            self.sent.append((name, have, at))
        if stop < len(content):
            raise CopyError("w-near can't be read: it was cut")


def content_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_variant_comes_whole_and_each_content_once(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path), Source()
    staged = cache.fetch(LISTED, source.pieces)
    assert content_of(staged.path) == FILES
    assert all(path.resolve().stat().st_mode & 0o777 == 0o444 for path in staged.path.rglob("*") if path.is_file())
    assert sorted(name for name, _, _ in source.sent) == sorted(BY_DIGEST.keys() - {digest(b"")})
    assert incoming.partials(tmp_path) == []
    staged.close()
    assert cache.has("v")
    assert cache.drop("v")
    assert not list(cache.files())


def test_only_what_is_missing_is_fetched(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path / "cache"), Source()
    cache.make("other", model(tmp_path / "m", {"model-1.safetensors": FILES["model-1.safetensors"]})).close()
    cache.fetch(LISTED, source.pieces).close()
    assert digest(FILES["model-1.safetensors"]) not in {name for name, _, _ in source.sent}
    cache.fetch(LISTED, Source().pieces).close()
    assert len(source.sent) == 3


def test_a_cut_transfer_goes_on_from_the_next_source_at_the_byte_where_it_was_cut(tmp_path: Path) -> None:
    cache, name = Cache(tmp_path), digest(FILES["model-1.safetensors"])
    with pytest.raises(CopyError, match="w-near can't be read: it was cut"):
        cache.fetch(LISTED, Source(cut={name: [1_234_567]}).pieces)
    assert incoming.there(incoming.partial(tmp_path, name, 2 * MB)) == 1_234_567
    second = Source()
    staged = Cache(tmp_path).fetch(LISTED, second.pieces)
    assert (name, 1_234_567, 2 * MB) in second.sent
    assert content_of(staged.path) == FILES
    staged.close()


@pytest.mark.parametrize("lie", ["flipped", "longer", "shorter"])
def test_what_is_not_what_it_should_be_is_refused_and_not_gone_on_with(tmp_path: Path, lie: str) -> None:
    cache, name = Cache(tmp_path), digest(FILES["model-2.safetensors"])
    true = FILES["model-2.safetensors"]
    lies = {"flipped": true[:-1] + bytes([true[-1] ^ 1]), "longer": true + b"x", "shorter": true[:-1]}
    with pytest.raises(CopyError, match=f"what came as {name[:12]} has another content"):
        cache.fetch(LISTED, Source(lies={name: lies[lie]}).pieces)
    assert not incoming.partial(tmp_path, name, MB).exists()
    assert not cache.file(name).exists()
    assert not cache.has("v")
    cache.fetch(LISTED, Source().pieces).close()


def test_a_partial_file_that_was_spoilt_is_found_out(tmp_path: Path) -> None:
    cache, name = Cache(tmp_path), digest(FILES["model-2.safetensors"])
    cache._prepare()
    incoming.partial(tmp_path, name, MB).write_bytes(b"x" * 1000)
    with pytest.raises(CopyError, match="another content"):
        cache.fetch(LISTED, Source().pieces)
    cache.fetch(LISTED, Source().pieces).close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(BY_DIGEST)), st.integers(0, 2 * MB)), max_size=8))
def test_however_often_it_is_cut_it_is_right_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("cache")
    source = Source()
    for name, at in cuts:
        source.cut.setdefault(name, []).append(min(at, len(BY_DIGEST[name])))
    for _ in range(len(cuts) + 1):
        try:
            staged = Cache(root).fetch(LISTED, source.pieces)
        except CopyError:
            continue
        assert content_of(staged.path) == FILES
        staged.close()
        return
    raise AssertionError("it did not come, though each try was cut once at most")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../x": Entry("a" * 64, 1)}, "a file '../x', which can't be"),
        ({"/etc/passwd": Entry("a" * 64, 1)}, "which can't be"),
        ({"a/../../x": Entry("a" * 64, 1)}, "which can't be"),
        ({"": Entry("a" * 64, 1)}, "which can't be"),
        ({"x\0": Entry("a" * 64, 1)}, "which can't be"),
        ({"x": Entry("../../" + "a" * 58, 1)}, "which can't be"),
        ({"x": Entry("a" * 64, -1)}, "which can't be"),
        ({}, "no files"),
        ({"a": Entry("a" * 64, 1), "a/b": Entry("b" * 64, 1)}, "a folder too"),
        ({"a": Entry("a" * 64, 1), "b": Entry("a" * 64, 2)}, "two sizes"),
        ({f"{n}": Entry("a" * 64, 1) for n in range(501)}, "more than 500 files"),
    ],
)
def test_a_manifest_can_name_nothing_outside(tmp_path: Path, files: dict[str, Entry], why: str) -> None:
    source = Source()
    with pytest.raises(CopyError, match=why):
        Cache(tmp_path / "cache").fetch(Manifest("v", files), source.pieces)
    with pytest.raises(CopyError, match="can't name a folder"):
        Cache(tmp_path / "cache").fetch(Manifest("../v", dict(LISTED.files)), source.pieces)
    assert source.sent == []


def test_a_full_disk_is_said_and_what_came_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = 0, os.write

    def full(fd: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > MB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    cache = Cache(tmp_path)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CopyError, match="is full"):
        cache.fetch(LISTED, Source().pieces)
    monkeypatch.undo()
    assert sum(path.stat().st_size for path in (*incoming.partials(tmp_path), *cache.files())) > MB // 2
    cache.fetch(LISTED, Source().pieces).close()


def test_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    source = Source()
    with pytest.raises(CopyError, match=r"it needs 3 MB and the cache"):
        Cache(tmp_path, MB).fetch(LISTED, source.pieces)
    assert source.sent == []


def test_what_came_counts_and_gives_way(tmp_path: Path) -> None:
    name = digest(FILES["model-1.safetensors"])
    cache = Cache(tmp_path / "cache", 4 * MB)
    with pytest.raises(CopyError):
        cache.fetch(LISTED, Source(cut={name: [MB]}).pieces)
    kept = sum(path.stat().st_size for path in incoming.partials(cache.root))
    assert kept >= MB
    assert 4 * MB - cache.room()[0] >= kept
    cache.make("big", model(tmp_path / "m", {"model.safetensors": b"x" * (3 * MB + MB // 2)})).close()
    assert incoming.partials(cache.root) == []


def test_two_that_want_the_same_bring_it_once(tmp_path: Path) -> None:
    source = Source()
    done: list[Path] = []

    def work() -> None:
        with_own = Cache(tmp_path)
        staged = with_own.fetch(LISTED, source.pieces)
        done.append(staged.path)
        staged.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert len(done) == 4
    assert len(source.sent) == 4


def test_a_worker_that_ends_gives_up(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def pieces(name: str, size: int, have: int) -> Iterator[bytes]:
        yield BY_DIGEST[name][have : have + 1]
        cache.stop.set()
        yield b"x"

    with pytest.raises(Leaving):
        cache.fetch(LISTED, pieces)


# --- over HTTP


def test_a_model_goes_from_machine_to_machine(tmp_path: Path) -> None:
    async def scenario() -> None:
        a, b, c = (Machine(tmp_path / name) for name in "abc")
        a.cache.make("v", model(tmp_path / "m", FILES)).close()
        async with serving(a, b):
            assert content_of(await b.fetch(LISTED, a)) == FILES
            assert content_of(await c.fetch(LISTED, b)) == FILES

    asyncio.run(scenario())


def test_who_still_fetches_passes_on_what_it_has(tmp_path: Path) -> None:
    big = {"model.safetensors": random.Random(3).randbytes(8 * MB), "config.json": b"{}"}
    listed = listing("v", big)
    half, go_on = threading.Event(), threading.Event()

    def pieces(name: str, size: int, have: int) -> Iterator[bytes]:
        content = next(content for content in big.values() if digest(content) == name)
        yield content[: size // 2]
        if size > 100:
            half.set()
            assert go_on.wait(WITHIN_S)
        yield content[size // 2 :]

    async def scenario() -> None:
        a, b = Machine(tmp_path / "a"), Machine(tmp_path / "b")
        async with serving(a):
            first = asyncio.create_task(asyncio.to_thread(a.cache.fetch, listed, pieces))
            assert await asyncio.to_thread(half.wait, WITHIN_S)
            second = asyncio.create_task(b.fetch(listed, a))
            name = digest(big["model.safetensors"])
            await until(lambda: incoming.there(incoming.partial(b.cache.root, name, 8 * MB)) >= 4 * MB)
            assert not second.done()
            go_on.set()
            assert content_of(await second) == big
            (await first).close()

    asyncio.run(scenario())


def test_sources_that_have_nothing_refuse_or_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        a, b = Machine(tmp_path / "a"), Machine(tmp_path / "b")
        a.cache.make("v", model(tmp_path / "m", {"config.json": b"{}"})).close()
        async with serving(a):
            with pytest.raises(CopyError, match="w-near has not got"):
                await b.fetch(listing("w", {"other": b"other"}), a)
            wrong_size = Manifest("w", {"config.json": Entry(digest(b"{}"), 9)})
            with pytest.raises(CopyError, match=r"w-near sends bytes 0-1/2 of .*, which has 9 bytes"):
                await b.fetch(wrong_size, a)
            a.service.key = b"another"
            with pytest.raises(CopyError, match="w-near refuses"):
                await b.fetch(listing("w", {"config.json": b"{}"}), a)
        with pytest.raises(CopyError, match=r"w-near can't be read at http://127.0.0.1"):
            await b.fetch(listing("w", {"config.json": b"{}"}), a)

    asyncio.run(scenario())


def test_a_silent_source_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SILENCE_S", 0.2)

    async def scenario() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        cache = Cache(tmp_path)

        def work() -> None:
            with Peer(f"http://127.0.0.1:{port}", dict.fromkeys(BY_DIGEST, "t"), "w-near", cache.stop) as peer:
                cache.fetch(LISTED, peer.pieces)

        with pytest.raises(CopyError, match=r"w-near can't be read at .*timed out"):
            await asyncio.wait_for(asyncio.to_thread(work), WITHIN_S)
        server.close()

    asyncio.run(scenario())


def test_a_connection_that_is_cut_is_made_again(tmp_path: Path) -> None:
    """A relay that breaks each connection after so many bytes."""
    big = {"model.safetensors": random.Random(4).randbytes(5 * MB)}
    breaks = 0

    async def scenario() -> None:
        a, b = Machine(tmp_path / "a"), Machine(tmp_path / "b")
        a.cache.make("v", model(tmp_path / "m", big)).close()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal breaks
            there, onward = await asyncio.open_connection("127.0.0.1", a.service.port)
            onward.write(await reader.readuntil(b"\r\n\r\n"))
            left = MB + 321
            while left > 0 and (piece := await there.read(min(left, 1 << 16))):
                writer.write(piece)
                left -= len(piece)
            breaks += 1
            onward.close()
            writer.close()

        async with serving(a):
            server = await asyncio.start_server(relay, "127.0.0.1", 0)
            listed = listing("v", big)
            given = {name: a.token(name) for name in [digest(big["model.safetensors"])]}
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

            def work() -> dict[str, bytes]:
                with Peer(url, given, "w-near", b.cache.stop) as peer:
                    staged = b.cache.fetch(listed, peer.pieces)
                staged.close()
                return content_of(staged.path)

            assert await asyncio.wait_for(asyncio.to_thread(work), WITHIN_S) == big
            assert breaks == 4, "the fifth part is the last"
            server.close()

    asyncio.run(scenario())


def test_proxies_of_the_environment_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    test_a_model_goes_from_machine_to_machine(tmp_path)
