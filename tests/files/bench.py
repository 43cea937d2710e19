"""Machines of a test: caches of their own, each with a file service as a process on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from pilotlight.files import tokens
from pilotlight.files.beside import FileService
from pilotlight.files.cache import Cache
from pilotlight.files.fetching import Peer
from pilotlight.files.manifest import Entry, Manifest

WITHIN_S = 60.0


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listing(variant: str, files: dict[str, bytes]) -> Manifest:
    return Manifest(variant, {name: Entry(digest(content), len(content)) for name, content in files.items()})


def model(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    return folder


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            if await asyncio.to_thread(happened):
                return
            await asyncio.sleep(0.01)


class Machine:
    """A cache, and its service while `serving`."""

    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder)
        self.host = "127.0.0.1"
        self.service = FileService(folder)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    def token(self, content: str, life_s: float = 60.0) -> str:
        return tokens.mint(self.service.key, content, time.monotonic() + life_s)

    def peer(self, listed: Manifest, of: Cache) -> Peer:
        """This machine as a source for another's cache."""
        given = {entry.digest: self.token(entry.digest) for entry in listed.files.values()}
        return Peer(self.url, given, "w-near", of.stop)

    async def fetch(self, listed: Manifest, source: Machine) -> Path:
        """Stage from another machine."""

        def work() -> Path:
            with source.peer(listed, self.cache) as peer:
                staged = self.cache.fetch(listed, peer.pieces)
            staged.close()
            return staged.path

        return await asyncio.wait_for(asyncio.to_thread(work), WITHIN_S)


@contextlib.asynccontextmanager
async def serving(*machines: Machine) -> AsyncGenerator[None]:
    for machine in machines:
        if machine.host:
            machine.service.listen(machine.host)
        machine.service.start()
    await asyncio.gather(*(machine.service.ready() for machine in machines))
    try:
        yield
    finally:
        await asyncio.gather(*(machine.service.close() for machine in machines))
