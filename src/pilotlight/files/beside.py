"""The file service's process as the one beside it holds it: an agent, or a manager that listens.

It is started again when it dies, with the same key and port, so that what was told of it stays true.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

from pilotlight.core.errors import ConfigError
from pilotlight.files import tokens
from pilotlight.files.control import Answer, Configure, Control, Describe, Described, Listen, Ready, Reply, Take
from pilotlight.files.locks import CopyError

START_S_MAX = 60.0
AGAIN_S = 1.0
BACKLOG = 128
END_S_MAX = 2.0


class FileService:
    """A file service over a cache. `start` once, `close` at the end; all methods run in one event loop.

    It serves connections that are handed over, and after `listen` those that come to a port of its own. The socket of
    that port is this process's too, so that who dials while a service is started again has to wait, no more.
    """

    def __init__(self, cache: Path, *, port: int = 0) -> None:
        """port: for `listen`; 0: any."""
        self.key = tokens.fresh_key()
        self.port = port
        self._cache = cache
        self._listener: socket.socket | None = None
        self._models: dict[str, str] = {}
        """What was described, with its identity: a new process has to look once more."""
        self._control: Control | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._staying: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Described]] = {}

    def start(self) -> None:
        """Have it from now on, as soon as its process is there."""
        self._staying = asyncio.get_running_loop().create_task(self._stay())

    async def ready(self) -> None:
        """Wait for its process. Raises `CopyError` where that takes too long."""
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._ready.wait()
        except TimeoutError:
            raise CopyError("the file service does not start") from None

    def listen(self, host: str) -> None:
        """Have a port at one address of this machine. Raises `ConfigError` where it can't be had."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, self.port), family=family, backlog=BACKLOG)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            where = f"files can't be served at port {self.port} of {host}"
            raise ConfigError(f"{where}: {reason}; choose another --serve-port, or --no-serve") from error
        self.port = int(self._listener.getsockname()[1])
        if self._control is not None:
            self._control.hand_over(Listen(), self._listener)

    def hand_over(self, connection: socket.socket) -> None:
        """Let it serve an accepted connection, from which nothing was read. Closes it where that is not possible."""
        with connection:
            if self._control is not None:
                self._control.hand_over(Take(), connection)

    async def describe(self, model: str, identity: str = "") -> Described:
        """A model's files by digest, which are served from now on. May take as long as reading them all. Raises
        `CopyError`."""
        await self.ready()
        if self._control is None:
            raise CopyError("the file service ended")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await self._control.send(Describe(number=number, model=model, identity=identity))
            described = await answer
            self._models[model] = identity
            return described
        finally:
            self._asked.pop(number, None)

    async def close(self) -> None:
        """End it."""
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.gather(self._staying, return_exceptions=True)
        self._gone()
        if self._listener is not None:
            self._listener.close()
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)

    async def _stay(self) -> None:
        while True:
            try:
                control = await self._spawn()
            except OSError:  # no room for a process
                await asyncio.sleep(AGAIN_S)
                continue
            while (reply := await control.receive()) is not None:
                self._heard(reply)
            self._gone()
            control.close()
            await asyncio.sleep(AGAIN_S)
            if self._process is not None:
                await asyncio.to_thread(_end, self._process)

    async def _spawn(self) -> Control:
        ours, theirs = socket.socketpair()
        control = Control(ours, Reply)
        with theirs:
            try:
                self._process = _begin(theirs)
            except BaseException:
                control.close()
                raise
        await control.send(Configure(cache=str(self._cache), key=self.key))
        if self._listener is not None:
            control.hand_over(Listen(), self._listener)
        for model, identity in self._models.items():
            await control.send(Describe(number=0, model=model, identity=identity))
        self._control = control
        return control

    def _heard(self, reply: Reply) -> None:
        match reply:
            case Ready():
                self._ready.set()
            case Answer():
                self._answered(reply)

    def _answered(self, reply: Answer) -> None:
        answer = self._asked.get(reply.number)
        if answer is None or answer.done():
            return
        if reply.described is not None:
            answer.set_result(reply.described)
        else:
            answer.set_exception(CopyError(reply.error))

    def _gone(self) -> None:
        self._ready.clear()
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
