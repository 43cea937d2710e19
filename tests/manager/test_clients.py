"""What the manager's process does for clients and for its own log, however slow those are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from pilotlight import logfiles
from pilotlight.connection import frame
from pilotlight.core.allocation import Options
from pilotlight.manager import __main__ as process
from pilotlight.manager.clients import Clients
from pilotlight.manager.journal import PoolJournal
from pilotlight.manager.keeper import Keeper
from pilotlight.manager.loop import Manager
from pilotlight.messages import Hello, Notice, Shutdown
from pilotlight.wire import PoolSpec
from tests.manager.test_loop import Link, NoPilots, quiet

WITHIN_S = 30.0


def clients_in(folder: Path, *, lasting: bool = True) -> Clients:
    spec = PoolSpec(workers=0, log_dir=str(folder), lasting=lasting)
    manager = Manager(1, Link(), Keeper(NoPilots(), 0, quiet), Options())
    return Clients(str(folder), spec, manager, PoolJournal(folder, quiet, keeps=lasting))


def test_notices_dont_pile_up_for_a_watcher_that_stands_still(tmp_path: Path) -> None:
    async def scenario() -> None:
        clients = clients_in(tmp_path)
        await clients.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "client.sock"), limit=1)
        writer.write(frame(msgspec.msgpack.encode(Hello(watch_s=3600.0))))
        await reader.readexactly(1)  # and no more: the stream's limit stops it from reading on
        (client,) = clients._clients
        transport = client.connection._transport
        assert transport is not None
        notice = Notice(level="info", text="x" * 10_000)
        for _ in range(2000):  # 20 MB
            clients.notice(notice)
            await asyncio.sleep(0)
        assert client.connection.full
        assert transport.get_write_buffer_size() < 2 << 20
        client.connection.abort("the test is over")
        writer.close()
        await clients.stop()

    asyncio.run(asyncio.wait_for(scenario(), WITHIN_S))


def test_a_signal_pauses_a_pool_that_stays_and_a_shutdown_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        for lasting in (True, False):
            clients = clients_in(tmp_path, lasting=lasting)
            clients.signalled()
            assert (clients.over.is_set(), clients.paused) == (True, lasting)
        clients = clients_in(tmp_path)
        clients.signalled()
        await clients.start()
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "client.sock"))
        for message in (Hello(), Shutdown()):
            writer.write(frame(msgspec.msgpack.encode(message)))
        clients.over.clear()
        await clients.over.wait()
        assert not clients.paused
        writer.close()
        await clients.stop()

    asyncio.run(asyncio.wait_for(scenario(), WITHIN_S))


def test_the_managers_log_is_cut_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "manager.log"
    log.write_bytes(b"x" * (logfiles.LOG_BYTES_MAX + 1) + b"\nthe last line\n")

    async def scenario() -> None:
        loop, cut = asyncio.get_running_loop(), asyncio.Event()

        def shorten(paths: Iterable[Path]) -> None:
            logfiles.shorten(paths)
            loop.call_soon_threadsafe(cut.set)

        monkeypatch.setattr(process, "shorten", shorten)
        keeping = loop.create_task(process._keep_short(log))
        await cut.wait()
        keeping.cancel()

    asyncio.run(asyncio.wait_for(scenario(), WITHIN_S))
    assert log.stat().st_size < 2 * logfiles.KEPT_BYTES
    assert log.read_bytes().endswith(b"x\nthe last line\n")
