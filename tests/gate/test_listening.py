"""Whoever comes to the gate: bytes of any kind do no more than close their own connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import socket
import struct
from pathlib import Path

import msgspec
import pytest

from pilotlight.connection import frame
from pilotlight.gate import listening, tokens
from pilotlight.gate.handshake import KNOCK_BYTES_MAX, Denied, Knock, read_answer
from pilotlight.messages import Beat, Join, Rows
from pilotlight.wire import ResultChunk
from tests.gate.opened import Opened, opened, words

JOIN = msgspec.msgpack.encode(Join(worker="w", pid=1, host="here", devices=[]))
ROWS = msgspec.msgpack.encode(
    Rows(seq=1, lease="l", job="j", device="d", chunk=ResultChunk([(0, 2)], b"a\nb", {"bad_row": [1]}))
)


async def come_in(there: Opened, name: str) -> None:
    """An honest worker is let in, says something, and leaves."""
    connection, _ = await there.dial(name)
    connection.send(Beat(started=7))
    await there.hears(name, Beat(started=7))
    connection.close()
    await connection.gone.wait()


def noises() -> list[bytes]:
    draw = random.Random(7)
    return [
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        frame(JOIN),
        *(draw.randbytes(draw.randrange(1, 5000)) for _ in range(40)),
        *(b"\x16\x03\x01" + draw.randbytes(draw.randrange(0, 600)) for _ in range(40)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505),
    ]


def test_noise_in_place_of_tls_is_closed_without_a_word(pool: Path) -> None:
    async def speak() -> None:
        async with opened(pool) as there:
            for noise in noises():
                # A TLS greeting that is cut short may wait for its rest until the peer hangs up.
                answer = await there.speak(noise, tls=False, half_close=noise[:1] == b"\x16")
                assert answer == b"" or answer[:1] == b"\x15", "only TLS's own alert may come back"
            await come_in(there, "honest")
            assert {name for name, _ in there.heard} == {"honest"}

    asyncio.run(speak())


def tls_noises() -> list[bytes]:
    draw = random.Random(8)
    knock = words(Knock(role="worker", name="w", token="x"))
    return [
        frame(JOIN),
        frame(b""),
        frame(b"[" * KNOCK_BYTES_MAX),
        frame(b"null"),
        frame(b'{"role":"manager"}'),
        frame(b'{"role":"worker","version":"two"}'),
        frame(b'{"role":"worker","name":"\xff"}'),
        frame(pickle.dumps(os.getcwd)),
        struct.pack(">I", KNOCK_BYTES_MAX + 1),
        struct.pack(">I", 0xFFFFFFFF),
        knock + b"more",
        knock + frame(JOIN),
        *(frame(draw.randbytes(draw.randrange(0, 4000))) for _ in range(40)),
        *(draw.randbytes(6000) for _ in range(10)),
    ]


def test_noise_in_place_of_a_knock_is_closed_without_a_word(pool: Path) -> None:
    async def speak() -> None:
        async with opened(pool) as there:
            for noise in tls_noises():
                assert await there.speak(noise, tls=True) == b"", noise[:40]
            await come_in(there, "honest")
            assert {name for name, _ in there.heard} == {"honest"}

    asyncio.run(speak())


def test_a_wrong_token_hears_why(pool: Path) -> None:
    async def speak() -> None:
        async with opened(pool) as there:
            for token in ("", "x", tokens.token(bytes(32), "worker", 9e9)):
                answer = await there.speak(words(Knock(role="worker", name="w", token=token)), tls=True)
                denied = read_answer(answer[4:])
                assert isinstance(denied, Denied)
                assert denied.kind == "unknown"
            assert there.heard == []
            assert there.inside == {}

    asyncio.run(speak())


def mutated(body: bytes, draw: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)[: draw.randrange(1, len(changed) + 1)]


def test_noise_after_admission_closes_that_connection_alone(pool: Path) -> None:
    draw = random.Random(9)
    nested = b"\x81" * 5000
    noise = [mutated(body, draw) for body in (JOIN, ROWS) for _ in range(60)] + [nested, b"", draw.randbytes(5000)]

    async def speak() -> None:
        async with opened(pool) as there:
            other, _ = await there.dial("other")
            for number, body in enumerate(noise):
                connection, _ = await there.dial(f"w{number}")
                assert connection._transport is not None
                connection._transport.write(frame(body) + struct.pack(">I", 0xFFFFFFFF))
                await asyncio.wait_for(connection.gone.wait(), 10)
            other.send(Beat(started=5))
            await there.hears("other", Beat(started=5))
            assert "other" not in there.left

    asyncio.run(speak())


def test_a_silent_stranger_is_closed(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "STRANGER_S_MAX", 0.2)

    async def speak() -> None:
        async with opened(pool) as there:
            assert await there.speak(tls=False) == b""
            assert await there.speak(tls=True) == b""
            assert await there.speak(b"\x00", tls=True) == b""
            await come_in(there, "honest")

    asyncio.run(speak())


def test_a_crowd_of_strangers_keeps_nobody_out(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "STRANGERS_MAX", 8)

    async def speak() -> None:
        async with opened(pool) as there:
            with contextlib.ExitStack() as crowd:
                for _ in range(40):
                    crowd.enter_context(socket.create_connection(("127.0.0.1", there.gate.port)))
                await come_in(there, "honest")
                assert len(there.gate._strangers) <= 8

    asyncio.run(speak())


def test_http_is_handed_on_unread(pool: Path) -> None:
    async def speak() -> None:
        async with opened(pool) as there:
            taken: list[bytes] = []

            def on_http(sock: socket.socket) -> None:
                taken.append(sock.recv(100))
                sock.send(b"HTTP/1.1 204 No Content\r\n\r\n")
                sock.close()

            there.gate.on_http = on_http
            for request in (b"GET /a HTTP/1.1\r\n\r\n", b"HEAD /b HTTP/1.1\r\n\r\n"):
                assert await there.speak(request, tls=False) == b"HTTP/1.1 204 No Content\r\n\r\n"
                assert taken.pop() == request

    asyncio.run(speak())


def test_a_closed_door_is_for_the_other_role_only(pool: Path) -> None:
    async def speak() -> None:
        async with opened(pool) as there:
            there.gate.close_door("client")
            knock = Knock(role="client", token=there.invitation("client").token)
            assert await there.speak(words(knock), tls=True) == b""
            await come_in(there, "honest")

    asyncio.run(speak())
