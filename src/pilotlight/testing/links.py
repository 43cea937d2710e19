"""The kit for `ports.ManagerLink` and `ports.WorkerLink`: what any engine's two ends must do together.

An engine's author writes `pair()`, which gives a manager's link and a maker of worker's links that reach it, and calls
`check_links(pair)`. Every check runs in an event loop of its own, against real connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from pilotlight.core.errors import LinkClosed
from pilotlight.messages import Ack, Beat, Join, ManagerMessage, Rows, Welcome, WorkerMessage
from pilotlight.ports import ManagerLink, WorkerLink
from pilotlight.wire import ResultChunk

WAIT_S_MAX = 10.0
Pair = Callable[[], tuple[ManagerLink, Callable[[], WorkerLink]]]


@dataclass
class ManagerEnd:
    """Everything that a manager's link said, in order, and a way to wait for more."""

    link: ManagerLink
    heard: list[tuple[str, WorkerMessage]] = field(default_factory=list[tuple[str, WorkerMessage]])
    lost: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Let workers in."""
        await self.link.start(self._message, self._gone)

    def _message(self, worker: str, message: WorkerMessage) -> None:
        self.heard.append((worker, message))
        self.changed.set()

    def _gone(self, worker: str, reason: str) -> None:
        assert reason, "a loss needs a reason"
        self.lost.append((worker, reason))
        self.changed.set()


@dataclass
class WorkerEnd:
    """Everything that a worker's link said."""

    link: WorkerLink
    heard: list[ManagerMessage] = field(default_factory=list[ManagerMessage])
    lost: list[str] = field(default_factory=list[str])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def dial(self) -> None:
        """Connect, and say nothing."""
        await self.link.connect(self._message, self._gone)

    async def join(self, name: str) -> None:
        """Connect and say who it is."""
        await self.dial()
        self.link.send(Join(worker=name, pid=1, host="here", devices=[]))

    def _message(self, message: ManagerMessage) -> None:
        self.heard.append(message)
        self.changed.set()

    def _gone(self, reason: str) -> None:
        self.lost.append(reason)
        self.changed.set()


async def until(end: ManagerEnd | WorkerEnd, condition: Callable[[], bool]) -> None:
    """Wait until what an end has heard satisfies `condition`."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():
            end.changed.clear()
            await end.changed.wait()


async def _joined(pair: Pair, *names: str) -> tuple[ManagerEnd, list[WorkerEnd]]:
    manager_link, worker_link = pair()
    manager = ManagerEnd(manager_link)
    await manager.start()
    workers = [WorkerEnd(worker_link()) for _ in names]
    for name, worker in zip(names, workers, strict=True):
        await worker.join(name)
    await until(manager, lambda: len(manager.heard) >= len(names))
    return manager, workers


async def check_order_and_size(pair: Pair) -> None:
    """Messages arrive whole and in the order sent, small and large, both ways, from several workers."""
    manager, workers = await _joined(pair, "a", "b")
    blob = bytes(range(256)) * 8192
    for seq in range(200):
        for worker in workers:
            body = blob if seq % 50 == 0 else b"x"
            chunk = ResultChunk([(seq, seq + 1)], body)
            worker.link.send(Rows(seq=seq, lease="l", job="j", device="d", chunk=chunk))
        manager.link.send("a", Ack(upto=seq))
    await until(manager, lambda: len(manager.heard) == 402)
    await until(workers[0], lambda: len(workers[0].heard) == 200)
    for name in ("a", "b"):
        rows = [m for who, m in manager.heard if who == name and isinstance(m, Rows)]
        assert [m.seq for m in rows] == list(range(200)), f"messages of {name} came out of order"
        assert all(m.chunk.blob == (blob if m.seq % 50 == 0 else b"x") for m in rows), "a message was damaged"
    assert [m.upto for m in workers[0].heard if isinstance(m, Ack)] == list(range(200))
    assert workers[1].heard == [], "a worker heard what was meant for another"
    await manager.link.stop()


async def check_worker_gone(pair: Pair) -> None:
    """A worker that closes is lost once; what it sent before arrives first; sending to it is harmless."""
    manager, (worker,) = await _joined(pair, "a")
    for _ in range(100):
        worker.link.send(Beat(started=1))
    worker.link.close()
    await until(manager, lambda: bool(manager.lost))
    assert len(manager.heard) == 101, "what was sent before the close did not arrive"
    assert [name for name, _ in manager.lost] == ["a"]
    manager.link.send("a", Welcome(epoch=1))
    await manager.link.stop()
    assert len(manager.lost) == 1


async def check_manager_gone(pair: Pair) -> None:
    """A manager that stops delivers what it sent, then its workers hear of the loss once; nobody answers any more."""
    manager, (worker,) = await _joined(pair, "a")
    manager.link.send("a", Welcome(epoch=7))
    await manager.link.stop()
    await until(worker, lambda: bool(worker.lost))
    assert worker.heard == [Welcome(epoch=7)]
    assert len(worker.lost) == 1
    assert manager.lost == [], "a manager that stops on purpose loses nobody"
    try:
        await worker.join("a")
    except LinkClosed:
        return
    await until(worker, lambda: len(worker.lost) > 1)


async def check_rejoin(pair: Pair) -> None:
    """A worker may dial again after a loss; the second connection of a name replaces the first without a loss."""
    manager_link, worker_link = pair()
    manager = ManagerEnd(manager_link)
    await manager.start()
    first, second = WorkerEnd(worker_link()), WorkerEnd(worker_link())
    await first.join("a")
    await until(manager, lambda: len(manager.heard) == 1)
    await second.join("a")
    await until(manager, lambda: len(manager.heard) == 2)
    await until(first, lambda: bool(first.lost))
    assert manager.lost == []
    manager.link.send("a", Welcome(epoch=2))
    await until(second, lambda: bool(second.heard))
    manager.link.drop("a", "tested")
    await until(second, lambda: bool(second.lost))
    assert manager.lost == [], "a drop is no loss: who drops knows"
    await second.join("a")
    await until(manager, lambda: len(manager.heard) == 3)
    await manager.link.stop()


async def check_strangers(pair: Pair) -> None:
    """Whoever does not join first is turned away, and no message of his gets through."""
    manager_link, worker_link = pair()
    manager = ManagerEnd(manager_link)
    await manager.start()
    stranger = WorkerEnd(worker_link())
    await stranger.dial()
    stranger.link.send(Beat(started=1))
    stranger.link.send(Join(worker="a", pid=1, host="here", devices=[]))
    await until(stranger, lambda: bool(stranger.lost))
    assert manager.heard == []
    assert manager.lost == []
    await manager.link.stop()


async def check_nobody_there(pair: Pair) -> None:
    """Dialling where no manager is raises `LinkClosed` with a sentence."""
    _, worker_link = pair()
    try:
        await WorkerEnd(worker_link()).join("a")
    except LinkClosed as error:
        said = str(error)
    else:
        raise AssertionError("a link was made to nobody")
    assert said, "a refusal needs a sentence"


CHECKS: list[Callable[[Pair], Coroutine[Any, Any, None]]] = [
    check_order_and_size,
    check_worker_gone,
    check_manager_gone,
    check_rejoin,
    check_strangers,
    check_nobody_there,
]


def check_links(pair: Pair) -> None:
    """Run every check. `pair` is called once per check."""
    for check in CHECKS:
        asyncio.run(check(pair))
