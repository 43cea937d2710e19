"""The file service as a process: only what a token opens, in ranges, while it comes, and never from anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
import pytest

from pilotlight.core.errors import ConfigError
from pilotlight.files import incoming, service, tokens
from pilotlight.files.beside import FileService
from pilotlight.files.control import Configure
from pilotlight.files.locks import CopyError, take
from tests.files.bench import WITHIN_S, Machine, digest, model, serving, until

MB = 1 << 20
DATA = random.Random(1).randbytes(3 * MB)
NAME = digest(DATA)


def machine(folder: Path, files: dict[str, bytes] | None = None) -> Machine:
    """A machine that has staged a model."""
    made = Machine(folder / "cache")
    made.cache.make("v", model(folder / "m", files or {"model.safetensors": DATA})).close()
    return made


async def ask(made: Machine, path: str, token: str = "", method: str = "GET", **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False, timeout=WITHIN_S) as client:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return await client.request(method, made.url + path, headers=headers)


def test_content_is_sent_whole_and_in_ranges(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = machine(tmp_path)
        async with serving(made):
            token, path = made.token(NAME), f"/files/{NAME}"
            whole = await ask(made, path, token)
            assert (whole.status_code, whole.content) == (200, DATA)
            head = await ask(made, path, token, "HEAD")
            assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
            rest = await ask(made, path, token, Range=f"bytes={MB}-")
            assert (rest.status_code, rest.content) == (206, DATA[MB:])
            assert rest.headers["Content-Range"] == f"bytes {MB}-{len(DATA) - 1}/{len(DATA)}"
            part = await ask(made, path, token, Range="bytes=5-9")
            assert (part.status_code, part.content) == (206, DATA[5:10])
            beyond = await ask(made, path, token, Range=f"bytes={len(DATA)}-")
            assert beyond.status_code == 416

    asyncio.run(scenario())


def test_each_digest_needs_its_own_token(tmp_path: Path) -> None:
    other = b"other"

    async def scenario() -> None:
        made = machine(tmp_path, {"model.safetensors": DATA, "config.json": other})
        async with serving(made):
            path = f"/files/{NAME}"
            foreign = tokens.mint(tokens.fresh_key(), NAME, time.monotonic() + 60)
            good = made.token(NAME)
            later = f"{int(good.split('.')[0]) + 9999}.{good.split('.')[1]}"
            wrong = ["", "x", foreign, made.token(digest(other)), made.token(NAME, -5.0), later, ".", "1" * 70]
            for token in wrong:
                assert (await ask(made, path, token)).status_code == 403
            assert (await ask(made, path)).status_code == 403
            unknown = digest(b"nobody has it")
            assert (await ask(made, f"/files/{unknown}", "x")).status_code == 403, "who may not ask learns nothing"
            assert (await ask(made, path, good)).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "path",
    [
        "/files/../variants/v/manifest.json",
        "/files/..%2f..%2fetc%2fpasswd",
        "/files/%2e%2e/%2e%2e/etc/passwd",
        "/files//etc/passwd",
        "/files/" + NAME + "/../../../etc/passwd",
        "/files/" + NAME[:-1] + "%00",
        "/files/" + NAME.upper(),
        "/files/",
        "/",
        "//etc/passwd",
    ],
)
def test_no_path_can_be_named(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        made = machine(tmp_path)
        async with serving(made):
            answer = await raw(
                made, f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.token(NAME)}\r\n\r\n"
            )
            assert answer.split(b" ")[1] in {b"400", b"403", b"404"}, answer
            assert b"root:" not in answer

    asyncio.run(scenario())


async def raw(made: Machine, text: str | bytes) -> bytes:
    """What the service answers before it closes, or falls silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", made.service.port)
    writer.write(text.encode() if isinstance(text, str) else text)
    answer = b""
    try:
        while piece := await asyncio.wait_for(reader.read(1 << 16), 0.3):
            answer += piece
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return answer


def test_garbage_does_no_more_than_close_its_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = machine(tmp_path)
        async with serving(made):
            token = made.token(NAME)
            good = f"GET /files/{NAME} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nRange: bytes=0-9\r\n\r\n"
            chance = random.Random(7)
            texts: list[bytes] = [
                b"\0" * 5000,
                b"GET " + b"a" * 100_000,
                b"POST /files/x HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
                good.replace("bytes=0-9", "bytes=9-0").encode(),
                good.replace("bytes=0-9", "bytes=-,-").encode(),
                good.replace("bytes=0-9", "bytes=99999999999999999999-").encode(),
                good.encode() * 50,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ]
            for _ in range(60):
                text = bytearray(good.encode())
                for _ in range(chance.randint(1, 8)):
                    text[chance.randrange(len(text))] = chance.randrange(256)
                texts.append(bytes(text))
            texts += [chance.randbytes(chance.randint(1, 4000)) for _ in range(20)]
            await asyncio.gather(*(raw(made, text) for text in texts))
            answer = await ask(made, f"/files/{NAME}", token)
            assert (answer.status_code, answer.content) == (200, DATA)
            process = made.service._process
            assert process is not None
            assert process.poll() is None

    asyncio.run(scenario())


def test_what_is_sent_is_not_evicted(tmp_path: Path) -> None:
    big = random.Random(2).randbytes(32 * MB)

    async def scenario() -> None:
        made = machine(tmp_path, {"model.safetensors": big})
        name = digest(big)
        async with serving(made):
            async with httpx2.AsyncClient(trust_env=False, timeout=WITHIN_S) as client:
                headers = {"Authorization": f"Bearer {made.token(name)}"}
                async with client.stream("GET", f"{made.url}/files/{name}", headers=headers) as response:
                    pieces = response.aiter_raw()
                    got = await anext(pieces)
                    assert await asyncio.to_thread(made.cache.drop, "v")
                    assert made.cache.file(name).exists(), "the upload holds it"
                    async for piece in pieces:
                        got += piece
            assert got == big
            await until(lambda: made.cache.drop("v") and not made.cache.file(name).exists())

    asyncio.run(scenario())


def test_what_is_coming_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = Machine(tmp_path / "cache")
        made.cache._prepare()
        async with serving(made):
            answer = asyncio.create_task(ask(made, f"/files/{NAME}", made.token(NAME), Range=f"bytes={MB // 2}-"))
            await asyncio.sleep(0.1)
            path = incoming.partial(made.cache.root, NAME, len(DATA))
            with path.open("wb") as file:
                for start in range(0, len(DATA), MB):
                    file.write(DATA[start : start + MB])
                    file.flush()
                    await asyncio.sleep(0.05)
            got = await answer
            assert (got.status_code, got.content) == (206, DATA[MB // 2 :])

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def in_this_process(cache: Path) -> AsyncGenerator[int]:
    """A service whose key is `k`, for the time of a block. Its port."""
    made = service.Service(Configure(cache=str(cache), key=b"k"))
    await made.start()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    made.listen(listener)
    yield port
    await made.stop()


def test_a_connection_that_asks_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "IDLE_S", 0.2)

    async def scenario() -> None:
        async with in_this_process(tmp_path) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /files/")
            assert await asyncio.wait_for(reader.read(), WITHIN_S) == b""
            writer.close()

    asyncio.run(scenario())


def test_too_many_at_once_are_told_to_ask_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UPLOADS_MAX", 0)

    async def scenario() -> None:
        async with in_this_process(tmp_path) as port, httpx2.AsyncClient(trust_env=False) as client:
            token = tokens.mint(b"k", NAME, time.monotonic() + 60)
            answer = await client.get(
                f"http://127.0.0.1:{port}/files/{NAME}", headers={"Authorization": f"Bearer {token}"}
            )
        assert answer.status_code == 503

    asyncio.run(scenario())


def test_a_model_is_described_and_served_from_where_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = model(tmp_path / "m", {"config.json": b"{}", "model.safetensors": DATA})
        made = Machine(tmp_path / "cache")
        async with serving(made):
            described = await made.service.describe(str(folder))
            assert described.files["model.safetensors"] == (NAME, len(DATA))
            answer = await ask(made, f"/files/{NAME}", made.token(NAME))
            assert answer.content == DATA
            assert not list(made.cache.files()), "nothing is copied"
            (folder / "model.safetensors").write_bytes(b"changed")
            assert (await ask(made, f"/files/{NAME}", made.token(NAME))).status_code == 404
            with pytest.raises(CopyError, match="can't be read"):
                await made.service.describe(str(tmp_path / "nowhere"))

    asyncio.run(scenario())


def test_a_service_that_died_comes_back_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = machine(tmp_path)
        async with serving(made):
            token, port = made.token(NAME), made.service.port
            process = made.service._process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            while True:
                try:
                    assert (await ask(made, f"/files/{NAME}", token)).content == DATA
                    break
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)
            assert made.service.port == port

    asyncio.run(scenario())


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = FileService(tmp_path)
        service.start()
        await service.ready()
        assert service._process is not None
        assert service._control is not None
        assert service._staying is not None
        service._staying.cancel()
        service._control._sock.close()  # as the system does when the parent dies
        assert await asyncio.to_thread(service._process.wait, WITHIN_S) == 0

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"served at port {port} of 127.0.0.1: Address already in use"):
                FileService(tmp_path, port=port).listen("127.0.0.1")

    asyncio.run(scenario())


def test_a_service_without_a_port_takes_connections_that_others_accepted(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = machine(tmp_path)
        made.host = ""
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            async with serving(made):
                assert made.service.port == 0
                made.service.port = listener.getsockname()[1]
                answer = asyncio.create_task(ask(made, f"/files/{NAME}", made.token(NAME)))
                sock, _ = await loop.sock_accept(listener)
                made.service.hand_over(sock)
                assert (await answer).content == DATA

    asyncio.run(scenario())


def test_what_an_eviction_holds_is_not_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = machine(tmp_path)
        async with serving(made):
            lock = take(made.cache.file(NAME), made.cache.stop)
            answer = asyncio.create_task(ask(made, f"/files/{NAME}", made.token(NAME)))
            await asyncio.sleep(0.3)
            assert not answer.done()
            os.close(lock)
            assert (await answer).content == DATA

    asyncio.run(scenario())
