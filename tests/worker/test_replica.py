"""A replica in this process, talked to over its socket."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from pilotlight.connection import Frames, frame
from pilotlight.core.errors import LinkClosed
from pilotlight.ports import Outcome, Row
from pilotlight.replica_messages import (
    Asleep,
    Feed,
    Finished,
    Forget,
    Live,
    Load,
    Quit,
    ReplicaMessage,
    ReplicaReply,
    Sleep,
    Wake,
    Working,
)
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


# --- sleep


def test_a_replica_sleeps_wakes_and_works_on(ends: Ends) -> None:
    thread = threading.Thread(target=replica.serve, args=(ends.theirs, EchoRuntime()))
    thread.start()
    options = {"can_sleep": True, "memory_bytes": 5}
    ends.say(msgspec.structs.replace(LOAD, context=msgspec.structs.replace(LOAD.context, options=options)))
    live = ends.hear()
    assert isinstance(live, Live)
    assert (live.can_sleep, live.memory_bytes) == (True, 5)
    ends.say(Sleep())
    assert ends.hear() == Asleep(memory_bytes=0)
    ends.say(Wake(), feed("a", 0, ECHO))
    awake = ends.hear()
    assert isinstance(awake, Live)
    assert (awake.wanted, awake.memory_bytes, awake.stages.keys()) == (live.wanted, 5, {"wake"})
    finished = ends.hear()
    assert isinstance(finished, Finished)
    assert finished.memory_bytes == 5
    ends.say(Quit())
    thread.join(30)
    assert not thread.is_alive()


# --- time, which a test may turn


class Clock:
    """Seconds that pass only when someone says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Agent(Pipe):
    """An agent that says what it was told to say, one list each time that the replica looks, and then `Quit`."""

    def __init__(self, clock: Clock, *says: list[ReplicaMessage]) -> None:
        self.clock = clock
        self.says = list(says)
        self.heard: list[tuple[float, ReplicaReply]] = []
        self.paused_s = 0.0

    def send(self, message: ReplicaReply) -> None:
        self.heard.append((self.clock.now, message))

    def receive(self, *, wait: bool) -> list[ReplicaMessage]:
        return self.says.pop(0) if self.says else [Quit()]

    def pause(self, seconds: float, clock: object) -> None:
        self.clock.now += seconds
        self.paused_s += seconds


class Steps(SlowModel):
    """Each step takes the next of these times; a row is done when its step says so."""

    def __init__(self, clock: Clock, *steps: tuple[float, bool]) -> None:
        super().__init__()
        self.clock = clock
        self.steps = list(steps)

    def step(self) -> list[Outcome]:
        took_s, done = self.steps.pop(0)
        self.clock.now += took_s
        return [Outcome((row := self.rows.pop(0)).ticket, row.payload)] if done else []


@pytest.mark.parametrize(("speed", "factor"), [(1.0, 1.0), (0.5, 2.0), (0.25, 4.0)])
def test_a_slow_device_takes_longer_for_each_step(speed: float, factor: float) -> None:
    clock = Clock()
    agent = Agent(clock, [feed("a", 0, ECHO), feed("a", 1)], [])
    Replica(agent, Steps(clock, (0.3, True), (0.5, True)), speed, clock).run()
    assert [at_s for at_s, _ in agent.heard] == [pytest.approx(0.3 * factor), pytest.approx(0.8 * factor)]
    busy = [reply.chunk.counters["busy_s"] for _, reply in agent.heard if isinstance(reply, Finished)]
    assert busy == [pytest.approx(0.3 * factor), pytest.approx(0.5 * factor)]
    assert agent.paused_s == pytest.approx(0.8 * (factor - 1))


def test_steps_without_a_row_are_told_of_once_a_second() -> None:
    clock = Clock()
    agent = Agent(clock, [feed("a", 0, ECHO)], *([[]] * 6))
    steps = [(0.4, False), (0.4, False), (0.4, False), (0.4, False), (0.4, False), (0.4, False), (0.1, True)]
    Replica(agent, Steps(clock, *steps), 1.0, clock).run()
    told = [(round(at_s, 1), type(reply)) for at_s, reply in agent.heard]
    assert told == [(1.2, Working), (2.4, Working), (2.5, Finished)]


def test_what_was_kept_for_an_operation_goes_with_its_last_job() -> None:
    clock = Clock()
    model = Steps(clock, *([(0.1, True)] * 3))
    forgotten: list[list[Operation]] = []

    class Watched(Agent):
        def receive(self, *, wait: bool) -> list[ReplicaMessage]:
            forgotten.append(list(model.forgotten))
            return super().receive(wait=wait)

    rows: list[ReplicaMessage] = [feed("a", 0, ECHO), feed("b", 0, ECHO), feed("c", 0, OPENAI)]
    ends: list[ReplicaMessage] = [Forget(job="a"), Forget(job="c")]
    agent = Watched(clock, rows, ends, [], [], [Forget(job="nobody")], [Forget(job="b")])
    Replica(agent, model, 1.0, clock).run()
    assert forgotten == [[], [], [], [OPENAI], [OPENAI], [OPENAI], [OPENAI, ECHO]]


def test_a_replica_that_waits_hears_its_end(ends: Ends) -> None:
    pipe = Pipe(ends.theirs)
    ends.say(Forget(job="a"), Quit(), Forget(job="b"))
    pipe.pause(1e6, time.perf_counter)
    assert pipe.receive(wait=True) == [Forget(job="a"), Quit(), Forget(job="b")]
    ends.ours.close()
    with pytest.raises(EOFError):
        pipe.pause(1e6, time.perf_counter)


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
