"""The direct engine passes the kit, keeps its socket private, and turns away foreign bytes."""

from __future__ import annotations

import asyncio
import itertools
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pilotlight.connection import FRAME_BYTES_MAX, frame
from pilotlight.engines.direct import DirectManagerLink, DirectWorkerLink
from pilotlight.messages import Grant, Join
from pilotlight.testing import links
from pilotlight.wire import Chunk


@pytest.mark.parametrize("check", links.CHECKS, ids=lambda check: check.__name__)
def test_kit(sockets: Path, check: Callable[..., object]) -> None:
    numbers = itertools.count()

    def pair() -> tuple[DirectManagerLink, Callable[[], DirectWorkerLink]]:
        path = str(sockets / f"{next(numbers)}.sock")
        return DirectManagerLink(path), lambda: DirectWorkerLink(path)

    asyncio.run(check(pair))  # type: ignore[arg-type]


def test_the_socket_is_the_users_own(sockets: Path) -> None:
    async def look() -> int:
        end = links.ManagerEnd(DirectManagerLink(str(sockets / "s")))
        await end.start()
        mode = (sockets / "s").stat().st_mode
        await end.link.stop()
        return mode

    assert stat.S_IMODE(asyncio.run(look())) == 0o600


def test_a_worker_that_does_not_read_holds_nobody_up(sockets: Path) -> None:
    async def stop() -> None:
        end = links.ManagerEnd(DirectManagerLink(str(sockets / "s")))
        await end.start()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, str(sockets / "s"))
            join = msgspec.msgpack.encode(Join(worker="deaf", pid=1, host="here", devices=[]))
            await loop.sock_sendall(deaf, frame(join))
            await links.until(end, lambda: bool(end.heard))
            chunk = Chunk(0, 1, 1, "f", bytes(4 << 20))
            end.link.send("deaf", Grant(epoch=1, lease="l", job="j", chunks=[chunk]))
            await asyncio.wait_for(end.link.stop(), 20)

    asyncio.run(stop())


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", FRAME_BYTES_MAX + 1), struct.pack(">I", 3) + b"abc"]
)
def test_foreign_bytes_close_the_connection(sockets: Path, noise: bytes) -> None:
    async def speak() -> bytes:
        end = links.ManagerEnd(DirectManagerLink(str(sockets / "s")))
        await end.start()
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stranger, str(sockets / "s"))
            await loop.sock_sendall(stranger, noise)
            answer = await asyncio.wait_for(loop.sock_recv(stranger, 10), 10)
        assert end.heard == []
        await end.link.stop()
        return answer

    assert asyncio.run(speak()) == b""
