"""Workers that dial in, for tests: real ones, through a wire that can be cut."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pilotlight.gate.invitation import path_of, read_invitation, write_invitation
from tests.faults.harness import Playground
from tests.faults.lasting import WAIT_S, LastingPool, lasting_pool


class Wire:
    """Carries TCP connections to an address, until it is cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._over = False
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.carried = 0
        """How many connections it has carried."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Break all connections, each with a reset in both directions; returns how many. New ones are carried."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            for pair in pairs:
                for sock in pair:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def close(self) -> None:
        """End it."""
        self._over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._over:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
                self.carried += 1
            threading.Thread(target=_carry, args=(near, far), daemon=True).start()


def _carry(near: socket.socket, far: socket.socket) -> None:
    with near, far, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)


@dataclass
class Dialled:
    """A pool with an open gate, and workers that came through it."""

    pool: LastingPool
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def ground(self) -> Playground:
        """Where it plays."""
        return self.pool.ground

    @property
    def file(self) -> Path:
        """The pool file for workers."""
        return path_of(self.pool.folder, "worker")

    def copy(self, name: str, **changes: Any) -> Path:
        """A pool file with changes, elsewhere."""
        path = self.ground.folder / name
        write_invitation(path, msgspec.structs.replace(read_invitation(self.file, "worker"), **changes))
        return path

    def port(self) -> int:
        """The pool's TCP port."""
        return int((self.pool.folder / "port").read_text())

    def worker(
        self, name: str, file: Path | None = None, *options: str, through: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start one more worker. through: a command that runs its command."""
        process = self.ground.start("worker", "--pool", file or self.file, "--name", name, *options, through=through)
        self.workers.append(process)
        return process


@contextlib.contextmanager
def dialled_pool(ground: Playground, *, through: Sequence[str] = (), **more: Any) -> Iterator[Dialled]:
    """A pool that listens, without workers of its own unless told; down afterwards, with its workers. through: a
    command that runs the manager's command."""
    more = {"workers": 0, **more}
    spec = {"listen": "127.0.0.1:0", "silence_s": 3.0, **more.pop("spec", {})}
    dialled = Dialled(LastingPool(ground, spec=spec, **more))
    dialled.pool.up(through)
    try:
        yield dialled
    finally:
        dialled.pool.down()
        for worker in dialled.workers:
            worker.terminate()
            worker.communicate(timeout=WAIT_S)


ENGINES = ["local", "dialled"]
"""Where a pool's workers are: beside the manager on its Unix socket, or dialled in over TCP and TLS."""


@contextlib.contextmanager
def pool_over(engine: str, ground: Playground, *, workers: int = 2, **spec: Any) -> Iterator[LastingPool]:
    """A pool with so many workers, which are there whatever the engine; down afterwards."""
    if engine == "local":
        with lasting_pool(ground, workers=workers, spec=spec) as pool:
            yield pool
        return
    with dialled_pool(ground, spec=spec) as there:
        for number in range(workers):
            there.worker(f"dialled-{number}")
        yield there.pool
