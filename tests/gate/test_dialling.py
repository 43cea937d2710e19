"""Who can't come in hears why, in one sentence, and whether trying again may help."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotlight.core.errors import ConfigError, JoinRefused, LinkClosed
from pilotlight.gate import dialling, tokens
from pilotlight.gate.invitation import path_of, read_invitation, write_invitation
from pilotlight.gate.keys import load_keys
from pilotlight.wire import VERSION
from tests.gate.opened import opened


def refusal(pool: Path, **changes: Any) -> Exception:
    """What a worker hears with such a pool file."""

    async def dial() -> Exception:
        async with opened(pool) as there:
            try:
                await there.dial(**changes)
            except (LinkClosed, ConfigError) as error:
                assert there.inside == {}
                return error
        raise AssertionError("it was let in")

    return asyncio.run(dial())


def test_nobody_listens(pool: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        error = refusal(pool, addresses=[address])
    assert isinstance(error, LinkClosed)
    assert f"nobody listens at {address}" in str(error)


def test_a_port_that_swallows_everything(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "CONNECT_S_MAX", 0.3)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        others = [socket.socket() for _ in range(3)]
        for other in others:  # the queue is full: what comes next gets no answer, as behind a firewall
            other.setblocking(False)
            other.connect_ex(deaf.getsockname())
        error = refusal(pool, addresses=[f"127.0.0.1:{deaf.getsockname()[1]}"])
        for other in others:
            other.close()
    assert isinstance(error, LinkClosed)
    assert "a firewall drops what goes to that port" in str(error)


def test_an_unknown_host(pool: Path) -> None:
    error = refusal(pool, addresses=["no-such-host.invalid:1"])
    assert isinstance(error, LinkClosed)
    assert "no-such-host.invalid is not known here" in str(error)


def test_somebody_else_listens(pool: Path) -> None:
    async def dial() -> None:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with opened(pool) as there:
            with pytest.raises(JoinRefused, match=f"what listens at {address} is no Pilotlight manager"):
                await there.dial(addresses=[address])
        server.close()

    asyncio.run(dial())


def test_another_pools_manager_is_told_nothing(pool: Path) -> None:
    error = refusal(pool, fingerprint="0" * 64)
    assert isinstance(error, JoinRefused)
    assert "shows another certificate" in str(error)


def test_an_expired_token(pool: Path) -> None:
    keys = load_keys(pool)
    error = refusal(pool, token=tokens.token(keys.key, "worker", time.time() - 1))
    assert isinstance(error, dialling.TurnedAway)
    assert "has expired" in str(error)


def test_an_unknown_token(pool: Path) -> None:
    error = refusal(pool, token=tokens.token(bytes(32), "worker", time.time() + 9))
    assert isinstance(error, dialling.TurnedAway)
    assert "none of this pool's" in str(error)


def test_another_wire_version(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "Knock", lambda **more: msgspec.convert({**more, "version": VERSION + 1}, Knock))
    from pilotlight.gate.handshake import Knock

    error = refusal(pool)
    assert isinstance(error, dialling.TurnedAway)
    assert f"wire version {VERSION + 1}" in str(error)
    assert f"wire version {VERSION})" in str(error)


def test_a_name_that_is_taken_may_be_free_soon(pool: Path) -> None:
    async def dial() -> None:
        async with opened(pool) as there:
            first, ticket = await there.dial("w")
            with pytest.raises(LinkClosed, match="a worker called w is connected already"):
                await there.dial("w")
            second, _ = await there.dial("w", ticket)
            for connection in (first, second):
                connection.close()
                await connection.gone.wait()

    asyncio.run(dial())


def test_addresses_are_tried_in_turn(pool: Path) -> None:
    async def dial() -> None:
        async with opened(pool) as there:
            right = there.invitation().addresses
            connection, ticket = await there.dial(addresses=["127.0.0.1:1", "no-such-host.invalid:1", *right])
            assert ticket == tokens.ticket(there.keys.key, "w")
            connection.close()
            await connection.gone.wait()

    asyncio.run(dial())


def test_a_port_is_kept_from_one_manager_to_the_next(pool: Path) -> None:
    async def open_twice() -> list[int]:
        ports: list[int] = []
        for _ in range(2):
            async with opened(pool) as there:
                ports.append(there.gate.port)
        return ports

    first, second = asyncio.run(open_twice())
    assert first == second


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_pool_file_that_others_may_read_is_refused(pool: Path, mode: int) -> None:
    async def invite() -> Path:
        async with opened(pool):
            return path_of(pool, "worker")

    path = asyncio.run(invite())
    for name in ("worker.json", "client.json", "gate.key", "gate.pem"):
        assert (pool / name).stat().st_mode & 0o777 == 0o600
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_invitation(path, "worker")


def test_pool_files_that_say_something_else(pool: Path) -> None:
    async def invite() -> None:
        async with opened(pool):
            pass

    asyncio.run(invite())
    worker, client = path_of(pool, "worker"), path_of(pool, "client")
    with pytest.raises(ConfigError, match=r"client.json is the pool file of a client: a worker needs .* worker.json"):
        read_invitation(client, "worker")
    later = {**msgspec.json.decode(worker.read_bytes()), "a field of a later release": 1}
    worker.write_bytes(msgspec.json.encode(later))
    assert read_invitation(worker, "worker").pool == "test"
    worker.write_bytes(b"{")
    with pytest.raises(ConfigError, match="is no pool file"):
        read_invitation(worker, "worker")
    with pytest.raises(ConfigError, match="No such file"):
        read_invitation(pool / "none.json", "worker")
    write_invitation(worker, read_invitation(client, "client"))
    assert worker.stat().st_mode & 0o777 == 0o600
