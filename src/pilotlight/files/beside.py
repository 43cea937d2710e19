"""The file service's process as the one beside it holds it: an agent, or a manager that listens.

It is started again when it dies, with the same key and on the same port, so that what was told of it stays true.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
from pathlib import Path

from pilotlight.core.errors import ConfigError
from pilotlight.files import tokens
from pilotlight.files.control import Answer, Configure, Control, Describe, Described, Ready, Reply
from pilotlight.files.locks import CopyError

START_S_MAX = 60.0
AGAIN_S = 1.0
END_S_MAX = 2.0


class FileService:
    """A file service over a cache. host: where it listens (empty: nowhere); port: 0: any.

    `start` once, `close` at the end; all methods run in one event loop.
    """

    def __init__(self, cache: Path, *, host: str = "", port: int = 0) -> None:
        self.key = tokens.fresh_key()
        self.port = port
        self._cache = cache
        self._host = host
        self._control: Control | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._staying: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Described]] = {}

    async def start(self) -> None:
        """Have it ready. Raises `ConfigError` where its port can't be had."""
        control = await self._spawn()
        self._staying = asyncio.get_running_loop().create_task(self._stay(control))

    def hand_over(self, connection: socket.socket) -> None:
        """Let it serve an accepted connection, from which nothing was read. Closes it where that is not possible."""
        if self._control is None:
            connection.close()
        else:
            self._control.hand_over(connection)

    async def describe(self, model: str) -> Described:
        """A model's files by digest, which are served from now on. May take as long as reading them all. Raises
        `CopyError`."""
        if self._control is None:
            raise CopyError("the file service is not there")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await self._control.send(Describe(number=number, model=model))
            return await answer
        finally:
            self._asked.pop(number, None)

    async def close(self) -> None:
        """End it."""
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.gather(self._staying, return_exceptions=True)
        self._gone()
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)

    async def _spawn(self) -> Control:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _begin(theirs)
        control = Control(ours, Reply)
        await control.send(Configure(cache=str(self._cache), key=self.key, host=self._host, port=self.port))
        ready: Ready | None = None
        with contextlib.suppress(TimeoutError):
            ready = await asyncio.wait_for(control.receive(), START_S_MAX)
        if ready is None or ready.error:
            control.close()
            await asyncio.to_thread(_end, self._process)
            raise ConfigError(f"the file service can't start: {ready.error if ready else 'it ended, or hangs'}")
        self.port = ready.port
        self._control = control
        return control

    async def _stay(self, control: Control) -> None:
        while True:
            while (reply := await control.receive()) is not None:
                self._answered(reply)
            self._gone()
            while True:
                await asyncio.sleep(AGAIN_S)
                if self._process is not None:
                    await asyncio.to_thread(_end, self._process)
                with contextlib.suppress(ConfigError, OSError):  # no room for a process, or its port is not free yet
                    control = await self._spawn()
                    break

    def _answered(self, reply: Reply) -> None:
        answer = self._asked.get(reply.number) if isinstance(reply, Answer) else None
        if answer is None or answer.done():
            return
        assert isinstance(reply, Answer)
        if reply.described is not None:
            answer.set_result(reply.described)
        else:
            answer.set_exception(CopyError(reply.error))

    def _gone(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(CopyError("the file service ended"))


def _begin(control: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pilotlight.files.service", str(control.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[control.fileno()],
        cwd="/",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends as its socket closes; but what a broken disk holds has to be made to."""
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
