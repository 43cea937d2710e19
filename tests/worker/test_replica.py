"""A replica in this process, talked to over its socket."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from pilotlight.connection import Frames, frame
from pilotlight.core.errors import LinkClosed
from pilotlight.ports import Outcome, Row
from pilotlight.replica_messages import Feed, Finished, Forget, Live, Load, Quit, ReplicaMessage, ReplicaReply
from pilotlight.runtimes.echo import EchoRuntime
from pilotlight.wire import Chunk, Context, DeviceSpec, Operation
from pilotlight.worker import replica
from pilotlight.worker.replica import Pipe, Replica

LOAD = Load(
    context=Context(runtime="echo", name="echo", identity="test"),
    device=DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30),
)
ECHO, OPENAI = Operation(kind="echo"), Operation(kind="echo", result_format="openai")


class Ends:
    """The agent's end of a replica's socket, and the replica's."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(30)
        self._frames = Frames()
        self._replies: list[ReplicaReply] = []

    def say(self, *messages: ReplicaMessage) -> None:
        self.ours.sendall(b"".join(frame(msgspec.msgpack.encode(message)) for message in messages))

    def hear(self) -> ReplicaReply:
        while not self._replies:
            data = self.ours.recv(1 << 16)
            assert data, "the replica is gone"
            self._replies += [msgspec.msgpack.decode(body, type=ReplicaReply) for body in self._frames.push(data)]
        return self._replies.pop(0)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    with made.ours, made.theirs:
        yield made


def feed(job: str, index: int, operation: Operation | None = None) -> Feed:
    return Feed(lease="l", job=job, chunks=[Chunk(index, 1, 1, "f", b'{"n":1}')], operation=operation)


class SlowModel:
    """Answers one row at each `step`, when the test lets it."""

    wanted, memory_bytes, attachment_bytes, started, can_sleep = 8, 0, 0, 1, False

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.rows: list[Row] = []
        self.forgotten: list[Operation] = []
        self.turn = threading.Semaphore(0)

    @property
    def pending(self) -> int:
        return len(self.rows)

    def add(self, operation: Operation, rows: Sequence[Row]) -> None:
        self.rows.extend(rows)

    def step(self) -> list[Outcome]:
        assert self.turn.acquire(timeout=30)
        row = self.rows.pop(0)
        return [Outcome(row.ticket, row.payload)]

    def sleep(self) -> None:
        raise AssertionError

    def wake(self) -> None:
        raise AssertionError

    def forget(self, operation: Operation) -> None:
        self.forgotten.append(operation)

    def close(self) -> None:
        pass


def test_a_forgotten_job_is_dropped_after_its_last_row(ends: Ends) -> None:
    model = SlowModel()
    running = Replica(Pipe(ends.theirs), model)
    thread = threading.Thread(target=running.run)
    thread.start()
    ends.say(feed("a", 0, ECHO), feed("a", 1), feed("b", 0, ECHO), Forget(job="a"))
    held: list[set[str]] = []
    for _ in range(3):
        model.turn.release()
        assert isinstance(ends.hear(), Finished)
    ends.say(Forget(job="never heard of"), feed("b", 1))
    model.turn.release()
    assert isinstance(ends.hear(), Finished)
    ends.say(Quit())
    thread.join(30)
    assert not thread.is_alive()
    held += [set(running._operations), set(running._coders), running._forgotten]
    assert held == [{"b"}, {"b"}, set()]


def test_a_job_that_comes_back_brings_another_operation(ends: Ends) -> None:
    thread = threading.Thread(target=replica.serve, args=(ends.theirs, EchoRuntime()))
    thread.start()
    ends.say(LOAD)
    assert isinstance(ends.hear(), Live)
    ends.say(feed("a", 0, ECHO), Forget(job="a"), feed("a", 1, OPENAI), feed("a", 2))
    lines: list[bytes] = []
    while len(lines) < 3:
        reply = ends.hear()
        assert isinstance(reply, Finished)
        lines += reply.chunk.blob.split(b"\n")
    assert b'"response"' in lines[2]
    ends.say(Quit())
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(b"\xc1"), "can't be read"),
        (frame(msgspec.msgpack.encode({"type": "Launch"})), "can't be read.*Launch"),
        (struct.pack(">I", 1 << 31), "is not ours"),
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_what_no_agent_sends_ends_the_replica(ends: Ends, data: bytes, reason: str, *, loaded: bool) -> None:
    if loaded:
        ends.say(LOAD)
    ends.ours.sendall(data)
    with pytest.raises(LinkClosed, match=reason):
        replica.serve(ends.theirs, EchoRuntime())
