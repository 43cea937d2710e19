"""Bytes of any kind at a file service, by its own port and by a pool's: each harms its own connection only."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from tests.files.bench import WITHIN_S, Machine, digest, model, serving, until
from tests.gate.opened import opened

MB = 1 << 20
DATA = random.Random(3).randbytes(2 * MB)
NAME = digest(DATA)
ROUNDS, TOGETHER = 12, 20
GROWTH_BYTES_MAX = 8 * MB
"""Of the service's memory in the second half of the rounds; a leak of what was sent would be 50 MB."""
SILENCE_S = 0.3
"""When to leave an answer that is not coming to its end."""

Pieces = Callable[[random.Random, str], list[bytes]]


def request(token: str, method: str = "GET", path: str = f"/files/{NAME}", **headers: str) -> bytes:
    lines = {"Host": "x", "Authorization": f"Bearer {token}", **headers}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""]).encode()


def cut_short(draw: random.Random, token: str) -> list[bytes]:
    whole = request(token)
    return [whole[: draw.randrange(1, len(whole))]]


def huge_headers(draw: random.Random, token: str) -> list[bytes]:
    head = request(token)[:-2]
    return [
        draw.choice(
            [
                head + b"A: " + b"a" * draw.randrange(10_000, 3 * MB),
                head + b"A: b\r\n" * draw.randrange(2_000, 300_000),
                b"GET /files/" + b"0" * draw.randrange(10_000, 3 * MB),
                b"G" * draw.randrange(10_000, 3 * MB),
            ]
        )
    ]


def odd_ranges(draw: random.Random, token: str) -> list[bytes]:
    asked = ["9-0", "-", "-0", "--1", "0-0,2-3", f"{10**30}-", f"0-{10**30}", "a-b", "0x1-", "-5", " 1 - 2 ", "\u0663-"]
    units = ["bytes=", "bytes", "items=", "bytes=bytes=", ""]
    text = draw.choice(units) + draw.choice(asked)
    ranged = draw.choice([{"Range": text}, {"Range": text, "If-Range": draw.choice(["x", '"', "Mon"])}])
    return [request(token, draw.choice(["GET", "HEAD"]), **ranged)]


def pipelined(draw: random.Random, token: str) -> list[bytes]:
    each = [request(token, Range="bytes=0-99"), request("x"), request(token, "HEAD"), b"garbage\r\n\r\n"]
    return [b"".join(draw.choice(each) for _ in range(draw.randrange(2, 200)))]


def with_a_body(draw: random.Random, token: str) -> list[bytes]:
    said = [{"Content-Length": "99999999999"}, {"Content-Length": "-1"}, {"Transfer-Encoding": "chunked"}]
    body = draw.choice([b"zz\r\n", b"ffffffffffffffff\r\n", b"5\r\nhello\r\n", draw.randbytes(2 * MB), b""])
    return [request(token, draw.choice(["GET", "POST", "PUT", "OPTIONS"]), **draw.choice(said)) + body]


def byte_by_byte(draw: random.Random, token: str) -> list[bytes]:
    return [bytes([byte]) for byte in request(token)[: draw.randrange(20, 60)]]


def changed(draw: random.Random, token: str) -> list[bytes]:
    text = bytearray(request(token, Range="bytes=0-9"))
    for _ in range(draw.randint(1, 8)):
        text[draw.randrange(len(text))] = draw.randrange(256)
    return [bytes(text)]


def noise(draw: random.Random, _: str) -> list[bytes]:
    return [draw.choice([b"G", b"H", b"GET ", b""]) + draw.randbytes(draw.randrange(1, 5000))]


def upgrades(draw: random.Random, token: str) -> list[bytes]:
    wish = {"Connection": "Upgrade", "Upgrade": draw.choice(["websocket", "h2c"]), "Expect": "100-continue"}
    return [draw.choice([request(token, **wish), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])]


TEXTS: list[Pieces] = [
    cut_short,
    huge_headers,
    odd_ranges,
    pipelined,
    with_a_body,
    byte_by_byte,
    changed,
    noise,
    upgrades,
]


@contextlib.asynccontextmanager
async def behind(door: str, made: Machine, pool: Path) -> AsyncIterator[int]:
    """The port through which the service is reached."""
    if door == "own":
        async with serving(made):
            yield made.service.port
        return
    made.host = ""
    async with serving(made), opened(pool) as there:
        there.gate.on_http = made.service.hand_over
        yield there.gate.port


async def say(port: int, pieces: list[bytes], *, reads: bool) -> None:
    """Say it all, and read the answer for a while, or leave without."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(5.0):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    if len(pieces) > 1:
                        await asyncio.sleep(0.005)
            while reads and await asyncio.wait_for(reader.read(1 << 16), SILENCE_S):
                pass
        finally:
            writer.transport.abort()


async def content(port: int, token: str) -> bytes:
    """What an honest request gets, without its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(token, Connection="close"))
    answer = await asyncio.wait_for(reader.read(), WITHIN_S)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body


@pytest.mark.parametrize("door", ["own", "pool"])
def test_no_request_harms_the_next(tmp_path: Path, door: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        made = Machine(tmp_path / "cache")
        made.cache.make("v", model(tmp_path / "m", {"model.safetensors": DATA})).close()
        (tmp_path / "pool").mkdir()
        draw = random.Random(f"{door}-1")
        async with behind(door, made, tmp_path / "pool") as port:
            process = made.service._process
            assert process is not None
            token, sizes, at_first = made.token(NAME), list[int](), psutil.Process(process.pid).num_fds()
            for _ in range(ROUNDS):
                texts = [draw.choice(TEXTS)(draw, token) for _ in range(TOGETHER)]
                await asyncio.gather(*(say(port, text, reads=draw.random() < 0.7) for text in texts))
                assert await content(port, token) == DATA
                sizes.append(psutil.Process(process.pid).memory_info().rss)
            assert made.service._process is process, "the service died, and was started again"
            assert process.poll() is None
            assert max(sizes[ROUNDS // 2 :]) - max(sizes[: ROUNDS // 2]) < GROWTH_BYTES_MAX, sizes
            await until(lambda: psutil.Process(process.pid).num_fds() <= at_first)

    asyncio.run(scenario())
    assert capfd.readouterr().err == "", "what strangers send is in no log"
