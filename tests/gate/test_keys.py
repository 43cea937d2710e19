"""What a listening pool keeps, and renews."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import socket
import time
from pathlib import Path

import pytest

from pilotlight.core.errors import ConfigError
from pilotlight.gate import keys as keys_module
from pilotlight.gate import sockets, tokens
from pilotlight.gate.invitation import path_of, read_invitation
from pilotlight.gate.keys import Invitations, bind_port, load_keys
from pilotlight.wire import PoolSpec


def invitations(pool: Path, listen: str = "127.0.0.1:7", *advertise: str) -> Invitations:
    spec = PoolSpec(workers=0, log_dir="", name="p", listen=listen, advertise=list(advertise))
    return Invitations(pool, spec, load_keys(pool), 7, 3, lambda _level, _text, _worker: None)


def test_keys_are_made_once(pool: Path) -> None:
    first, second = load_keys(pool), load_keys(pool)
    assert (first.key, first.fingerprint) == (second.key, second.fingerprint)
    (pool / "gate.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="is damaged"):
        load_keys(pool)
    (pool / "gate.key").unlink()
    (pool / "gate.pem").write_bytes(b"no certificate")
    with pytest.raises(ConfigError, match="certificate can't be read"):
        load_keys(pool)


def test_tokens_are_renewed_at_half_their_life(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKEN_S", 4.0)
    monkeypatch.setattr(keys_module, "LOOK_S", 0.05)
    made = invitations(pool)
    made.write()
    before = read_invitation(path_of(pool, "worker"), "worker")

    async def keep() -> None:
        task = asyncio.create_task(made.keep_fresh())
        async with asyncio.timeout(20):
            while read_invitation(path_of(pool, "worker"), "worker").token == before.token:
                await asyncio.wait({task}, timeout=0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(keep())
    after = read_invitation(path_of(pool, "worker"), "worker")
    assert after.expires_s - before.expires_s >= 1.5
    assert tokens.judge_token(load_keys(pool).key, "worker", before.token, time.time()) == "good"


def test_a_port_that_somebody_else_has_now_is_given_up_unless_it_was_asked_for(pool: Path) -> None:
    with bind_port(pool, "127.0.0.1:0") as first:
        first.listen()
        taken = first.getsockname()[1]
        with bind_port(pool, "127.0.0.1:0") as second:
            assert second.getsockname()[1] != taken
        with pytest.raises(ConfigError, match="can't listen on"):
            bind_port(pool, f"127.0.0.1:{taken}")


def test_what_is_advertised(pool: Path) -> None:
    assert invitations(pool, "127.0.0.1:0").addresses == ["127.0.0.1:7"]
    assert invitations(pool, "[::1]:0").addresses == ["[::1]:7"]
    assert invitations(pool, ":0", "login1", "10.0.0.1:99").addresses == ["login1:7", "10.0.0.1:99"]
    everywhere = invitations(pool, ":0").addresses
    assert everywhere[0] == f"{platform.node()}:7"
    assert not [each for each in everywhere if each.startswith(("127.", "[::1]", "[fe80"))]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("a:1", "a", 1),
        ("a", "a", 5),
        (":0", "", 0),
        ("[::1]:7", "::1", 7),
        ("[::]", "::", 5),
        ("10.0.0.1", "10.0.0.1", 5),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert sockets.split_address(text, 5) == (host, port)


@pytest.mark.parametrize("text", ["a:b", "a:65536", "::1", "a:1:2", "[a", "a:-1"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address: write HOST:PORT"):
        sockets.split_address(text, 5)


def test_every_address_is_listened_on_where_none_is_named() -> None:
    with sockets.bind("", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            assert sock.getpeername()[1] == port
