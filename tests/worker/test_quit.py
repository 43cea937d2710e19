"""A replica that is no longer wanted before it has begun must end by itself, and not wait to be killed."""

import asyncio
import os
import socket
import struct
from pathlib import Path

import msgspec

from pilotlight.replica_messages import Load, Quit
from pilotlight.runtimes.echo import EchoRuntime
from pilotlight.wire import Context, DeviceSpec
from pilotlight.worker import replica
from pilotlight.worker.processes import Servers

CONTEXT = Context(runtime="echo", name="echo", identity="test")
CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30)


def test_quit_that_arrives_together_with_load() -> None:
    ours, theirs = socket.socketpair()
    bodies = map(msgspec.msgpack.encode, [Load(context=CONTEXT, device=CPU), Quit()])
    ours.sendall(b"".join(struct.pack(">I", len(body)) + body for body in bodies))
    with ours, theirs:
        replica.serve(theirs, EchoRuntime())
        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b"", "it went live"


async def _where_it_is() -> Path | None:
    return None


async def _stopped_at_once(log_dir: Path) -> None:
    ended = asyncio.Event()
    servers = Servers(log_dir, "test", lambda *_: None, lambda *_: ended.set(), lambda _: os.environ)
    try:
        servers.start("test.1", CONTEXT, CPU, _where_it_is)
        servers.stop("test.1", kill=False)
        await asyncio.wait_for(ended.wait(), 60)
    finally:
        servers.close()


def test_stop_before_the_replica_is_connected(tmp_path: Path) -> None:
    asyncio.run(_stopped_at_once(tmp_path))
