"""`python -m pilotlight.files.service FD`: serves content by its digest over HTTP, for the process that started it.

    GET or HEAD /files/DIGEST     Authorization: Bearer TOKEN     Range: bytes=FROM-

Only content is named on the wire, never a path, and each digest needs a token of its own. What is still coming here is
passed on as it comes. FD is a socket to the parent (see `beside`), which says how to serve, hands over accepted
connections, and asks what a model's folder consists of. When it closes, this process ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from pilotlight.core.errors import PilotlightError
from pilotlight.descriptors import Shortage, raise_limit
from pilotlight.files import identity, locks, manifest, modelfiles, tokens
from pilotlight.files.cache import Cache
from pilotlight.files.control import Answer, Configure, Control, Describe, Described, Listen, Ready, Request, Take
from pilotlight.files.modelfiles import Source

UPLOADS_MAX = 64
"""Files that are sent at once; who asks for one more is told to ask again."""
CONNECTIONS_MAX = 256
IDLE_S = 15.0
"""A connection without a whole request is closed after so long, whether it is new or was of use before."""
COMING_S = 8.0
"""How long to wait for content that is not here yet, or for more of what is coming: less than those who ask are patient
with a silent source (`fetching.SILENCE_S`)."""
LOOK_S = 0.02
SLOWEST_BYTES_PER_S = 16 << 10
"""Who reads more slowly holds a place for nothing."""
PIECE_BYTES = 1 << 20
CONTENT_TYPE = "application/octet-stream"


class Service:
    """The requests of one process. Its parent alone configures it."""

    def __init__(self, configure: Configure) -> None:
        self._key = configure.key
        self._cache = Cache(Path(configure.cache))
        self._sources: dict[str, Source] = {}
        self._uploads = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._idle_since: dict[asyncio.BaseTransport, float] = {}
        self._shortage = Shortage("the file service", _note)
        app = web.Application()
        app.router.add_get("/files/{digest}", self._get)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE_S, handle_signals=False)

    async def start(self) -> None:
        """Be ready for connections."""
        await self._runner.setup()
        self._tasks.append(asyncio.get_running_loop().create_task(self._close_idle()))

    async def stop(self) -> None:
        """End all connections, and listen no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()

    # --- connections

    async def adopt(self, sock: socket.socket | None) -> None:
        """Serve an accepted connection, from which nothing was read. None: there was no descriptor left for it."""
        if sock is None:
            self._shortage.tell()
            return
        server = self._runner.server
        assert server is not None
        if len(self._idle_since) >= CONNECTIONS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, sock)
            self._idle_since[transport] = time.monotonic()

    async def _close_idle(self) -> None:
        """Close what asks for nothing; never ends by itself."""
        while True:
            await asyncio.sleep(1.0)
            for transport, since in list(self._idle_since.items()):
                if transport.is_closing():
                    del self._idle_since[transport]
                elif time.monotonic() - since > IDLE_S:
                    transport.close()

    def listen(self, listener: socket.socket) -> None:
        """Accept connections there until `stop`."""
        listener.setblocking(False)
        self._tasks.append(asyncio.get_running_loop().create_task(self._accept(listener)))

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError as error:  # or the peer went before it came
                    self._shortage.is_why(error)
                    await asyncio.sleep(LOOK_S)
                    continue
                await self.adopt(sock)

    # --- requests

    async def _get(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not manifest.is_digest(digest) or not tokens.opens(self._key, digest, token, time.monotonic()):
            raise web.HTTPForbidden
        if self._uploads >= UPLOADS_MAX:
            raise web.HTTPServiceUnavailable
        upload = _Upload(self._began(request.transport))
        try:
            return await self._send(request, digest, upload)
        except BaseException:
            upload.end()
            raise

    def _began(self, transport: asyncio.BaseTransport | None) -> Callable[[], None]:
        """Count an upload; returns what ends it."""
        self._uploads += 1
        if transport is not None:
            self._idle_since[transport] = math.inf

        def ended() -> None:
            self._uploads -= 1
            if transport is not None:
                self._idle_since[transport] = time.monotonic()

        return ended

    async def _send(self, request: web.Request, digest: str, upload: _Upload) -> web.StreamResponse:
        until = time.monotonic() + COMING_S
        while True:
            found = await asyncio.to_thread(self._find, digest, upload)
            if found is not None:
                return _File(found, upload)
            coming = await asyncio.to_thread(_coming, self._cache.root, digest)
            if coming is not None:
                upload.fds.append(coming[0])
                return await self._pass_on(request, *coming, upload)
            if time.monotonic() > until:
                raise web.HTTPNotFound
            await asyncio.sleep(LOOK_S)

    def _find(self, digest: str, upload: _Upload) -> Path | None:
        """Where content is. The cache's own stays there for the time of the upload."""
        path = self._cache.file(digest)
        with contextlib.suppress(FileNotFoundError):
            lock = locks.try_take(path, shared=True)
            if lock is not None:
                upload.fds.append(lock)
                return path
        return self._source(digest)

    def _source(self, digest: str) -> Path | None:
        """A file that the parent described, if it is what it was."""
        source = self._sources.get(digest)
        try:
            return source.path if source is not None and source.same(source.path.stat()) else None
        except OSError:
            return None

    async def _pass_on(self, request: web.Request, file: int, size: int, upload: _Upload) -> web.StreamResponse:
        """Send what has come of a file and what is still coming."""
        try:
            asked = request.http_range
        except ValueError as error:
            raise web.HTTPRequestRangeNotSatisfiable from error
        at, stop = asked.start or 0, asked.stop if asked.stop is not None else size
        if not 0 <= at < stop <= size:
            raise web.HTTPRequestRangeNotSatisfiable
        response = web.StreamResponse(status=206, headers={"Content-Range": f"bytes {at}-{stop - 1}/{size}"})
        response.content_length = stop - at
        response.content_type = CONTENT_TYPE
        await response.prepare(request)
        until = time.monotonic() + COMING_S
        while at < stop and request.method == "GET":
            piece = await asyncio.to_thread(os.pread, file, min(PIECE_BYTES, stop - at), at)
            if piece:
                async with _patience(len(piece)):
                    await response.write(piece)
                at += len(piece)
                until = time.monotonic() + COMING_S
            elif time.monotonic() > until:
                raise ConnectionResetError("what was coming does not come any more")
            else:
                await asyncio.sleep(LOOK_S)
        upload.end()
        return response

    # --- what a model consists of

    def describe(self, model: str, known_as: str) -> Described:
        """A model's files by digest, each read at most once on this machine; they are served from then on. Raises
        `CopyError`, also where another model is there than the one of that identity."""
        path = Path(model)
        if path.exists() and not identity.is_at(path, known_as):
            raise locks.CopyError(f"{model} changed since the model was first asked for")
        files: dict[str, tuple[str, int]] = {}
        for source in modelfiles.of(path):
            digest = self._cache.digest(source)
            self._sources[digest] = source
            files[source.relative] = digest, source.size
        if not files:
            raise locks.CopyError(f"{model} holds no file that could be served")
        return Described(files=files, single=not path.is_dir())


class _Upload:
    """What is held while something is sent: locks and files by their descriptors, and a place. Ends once."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self.fds: list[int] = []
        self._ended: Callable[[], None] | None = ended

    def end(self) -> None:
        """Let go."""
        ended, self._ended = self._ended, None
        if ended is not None:
            for fd in self.fds:
                os.close(fd)
            ended()


class _File(web.FileResponse):
    """aiohttp's way to send a file (sendfile, ranges), which happens while it is prepared: the upload ends after it."""

    def __init__(self, path: Path, upload: _Upload) -> None:
        super().__init__(path, headers={"Content-Type": CONTENT_TYPE})
        self._upload = upload
        self._bytes = path.stat().st_size

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Send it."""
        try:
            async with _patience(self._bytes):
                return await super().prepare(request)
        finally:
            self._upload.end()


@contextlib.asynccontextmanager
async def _patience(size: int) -> AsyncGenerator[None]:
    """Send so much in this block, in a time that is long enough for any reader of good will."""
    try:
        async with asyncio.timeout(IDLE_S + size / SLOWEST_BYTES_PER_S):
            yield
    except TimeoutError as error:
        raise ConnectionResetError("it is read too slowly") from error


def _coming(root: Path, digest: str) -> tuple[int, int] | None:
    """An open descriptor of what has come of a file so far, and the file's size."""
    for path in (root / "partial").glob(f"{digest}.*"):
        with contextlib.suppress(OSError, ValueError):
            size = int(path.suffix[1:])
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), size
    return None


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether what aiohttp has to tell is a mistake of ours, not bytes of a stranger, of which nothing is kept."""
    error = record.exc_info[1] if record.exc_info else None
    return error is not None and not isinstance(error, (HttpProcessingError, OSError))


def _note(level: str, text: str, _subject: str) -> None:
    with contextlib.suppress(OSError):  # a full disk under the log
        sys.stderr.write(f"{level}: {text}\n")
        sys.stderr.flush()


async def _serve(control: Control) -> None:
    configure = await control.receive()
    assert isinstance(configure, Configure)
    service = Service(configure)
    await service.start()
    await control.send(Ready())
    works: set[asyncio.Task[None]] = set()
    while (request := await control.receive()) is not None:
        if isinstance(request, Take):
            await service.adopt(control.taken())
        elif isinstance(request, Listen):
            listener = control.taken()
            assert listener is not None, "a service has room for its own port"
            service.listen(listener)
        elif isinstance(request, Describe):
            work = asyncio.get_running_loop().create_task(_describe(service, control, request))
            works.add(work)
            work.add_done_callback(works.discard)


async def _describe(service: Service, control: Control, request: Describe) -> None:
    answer: Answer
    try:
        described = await asyncio.to_thread(service.describe, request.model, request.identity)
        answer = Answer(number=request.number, described=described)
    except PilotlightError as error:
        answer = Answer(number=request.number, error=str(error))
    except Exception as error:  # whoever asked waits for an answer
        answer = Answer(number=request.number, error=f"{type(error).__name__}: {error}")
    await control.send(answer)


def main(argv: list[str] | None = None) -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser(prog="pilotlight files", description=main.__doc__)
    parser.add_argument("fd", type=int)
    options = parser.parse_args(argv)
    raise_limit()
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Control(socket.socket(fileno=options.fd), Request)))
    os._exit(0)  # a thread may still read a disk that hangs


if __name__ == "__main__":
    main()
