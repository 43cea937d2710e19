"""A lasting pool of real processes for tests, and a plain client that speaks with it over its socket.

The client blocks, in the test's own thread, so a test reads like the conversation that it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pilotlight.connection import Frames, frame
from pilotlight.messages import (
    Accepted,
    ClientMessage,
    ClientReply,
    Greeting,
    Hello,
    JobEnded,
    Refused,
    Snapshot,
    Submit,
)
from pilotlight.poolfile import is_up, write_spec
from pilotlight.wire import Context, JobRequest, Operation, PathInput, PathOutput, PoolSpec
from tests.faults.harness import Playground

WAIT_S = 60.0
M = TypeVar("M")

ECHO = Context(runtime="echo", name="echo", identity="echo")


def request(source: Path, out: Path, *, context: Context = ECHO, overwrite: bool = False, **more: Any) -> JobRequest:
    """A job for the echo runtime."""
    return JobRequest(
        context=context,
        operation=Operation(kind="echo"),
        input=PathInput(paths=[str(source)]),
        output=PathOutput(path=str(out), overwrite=overwrite),
        **more,
    )


class Client:
    """One connection. `take` waits for a message of a kind and passes over all others."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(str(path))
        self._frames = Frames()
        self._bodies: list[bytes] = []
        self.send(Hello(watch_s=0.05))
        self.greeting = self.take(Greeting)

    def send(self, message: ClientMessage) -> None:
        """Say something."""
        self._socket.sendall(frame(msgspec.msgpack.encode(message)))

    def take(self, kind: type[M], when: Callable[[M], bool] = lambda _: True) -> M:
        """The next message of that kind for which `when` holds."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            while not self._bodies:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError(f"the manager hung up before a {kind} came")
                self._bodies = self._frames.push(data)
            message = msgspec.msgpack.decode(self._bodies.pop(0), type=ClientReply)
            if isinstance(message, kind) and when(message):
                return message
        raise AssertionError(f"no {kind} came in {WAIT_S} s")

    def answer(self) -> Accepted | Refused:
        """The answer to a `Submit` or an `Attach`."""
        return self.take((Accepted, Refused))  # type: ignore[arg-type]

    def submit(self, job: JobRequest, *, detached: bool = False) -> Accepted:
        """Hand in a job that must be accepted."""
        self.send(Submit(ticket=1, request=job, detached=detached))
        return self.take(Accepted)

    def end_of(self, job: str) -> JobEnded:
        """Wait for a job's end."""
        return self.take(JobEnded, lambda ended: ended.job == job)

    def seen(self, when: Callable[[Snapshot], bool]) -> Snapshot:
        """The next picture for which `when` holds."""
        return self.take(Snapshot, when)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class LastingPool:
    """A pool's folder, and one manager after another on it."""

    ground: Playground
    workers: int = 2
    spec: dict[str, Any] = field(default_factory=dict[str, Any])
    manager: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder = self.ground.folder / "pool"
        self.folder.mkdir(mode=0o700)
        self.logs = self.ground.folder / "home" / "logs"
        self.logs.mkdir(parents=True)
        values = {
            "workers": self.workers,
            "log_dir": str(self.logs),
            "name": "test",
            "lasting": True,
            "orphan_timeout_s": 60.0,
            "python": sys.executable,
            **self.spec,
        }
        write_spec(self.folder, PoolSpec(**values))

    def up(self, through: Sequence[str] = ()) -> int:
        """Start a manager and wait until it is ready. Returns its pid. through: a command that runs its command."""
        ready, child = os.pipe()
        with (self.logs / "manager.log").open("ab") as log:
            self.manager = subprocess.Popen(
                [
                    *through,
                    sys.executable,
                    "-P",
                    "-m",
                    "pilotlight.manager",
                    str(self.folder),
                    "--ready-fd",
                    str(child),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.ground.environment,
                pass_fds=[child],
                start_new_session=True,
            )
        os.close(child)
        with open(ready, "rb") as said:
            line = said.readline()
        assert line == b"ready\n", f"{line!r}\n{self.ground.logs()}"
        return self.manager.pid

    def kill(self) -> None:
        """Kill the manager, as a crash would."""
        assert self.manager is not None
        self.manager.kill()
        self.manager.wait(WAIT_S)
        assert not is_up(self.folder)

    def send(self, number: signal.Signals) -> None:
        """Signal the manager."""
        assert self.manager is not None
        self.manager.send_signal(number)

    def down(self) -> int:
        """End the manager in order; its jobs pause. Returns its exit status."""
        assert self.manager is not None
        if self.manager.poll() is None:
            self.manager.send_signal(signal.SIGTERM)
        return self.manager.wait(WAIT_S)

    def client(self) -> Client:
        """A new connection."""
        return Client(self.folder / "client.sock")


@contextlib.contextmanager
def lasting_pool(ground: Playground, **more: Any) -> Iterator[LastingPool]:
    """A pool that is up, and down afterwards."""
    pool = LastingPool(ground, **more)
    pool.up()
    try:
        yield pool
    finally:
        pool.down()
