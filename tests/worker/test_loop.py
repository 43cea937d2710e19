"""The agent's loop with real servers and replicas, and a manager that this test plays.

Each scenario runs as a program of its own (this file, started with its name), because an agent owns its process: it is
a subreaper, takes signals, and has no children but its own.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import msgspec
import psutil
import pytest

from pilotlight.core.errors import LinkClosed
from pilotlight.messages import (
    DefineJob,
    Died,
    Drain,
    ForgetJob,
    Grant,
    Join,
    ManagerMessage,
    Reported,
    Rows,
    Stopped,
    Want,
    Wants,
    Welcome,
    WorkerMessage,
)
from pilotlight.wire import Chunk, Context, DeviceSpec, Operation, PoolSpec
from pilotlight.worker import build
from pilotlight.worker.__main__ import PR_SET_CHILD_SUBREAPER
from pilotlight.worker.loop import AgentLoop

CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30)
WITHIN_S = 30.0
M = TypeVar("M", bound=WorkerMessage)


def operation(function: Callable[[Any], Any]) -> Operation:
    return Operation(kind="map", function=cloudpickle.dumps(function), row_format="pickle")


class Manager:
    """A link whose other end is the test."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[WorkerMessage] = asyncio.Queue()
        self._on_message: Callable[[ManagerMessage], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._leases = self._versions = 0

    async def connect(self, on_message: Callable[[ManagerMessage], None], on_lost: Callable[[str], None]) -> None:
        if self._on_message is not None:
            raise LinkClosed("one is enough")
        self._on_message, self._on_lost = on_message, on_lost

    def send(self, message: WorkerMessage) -> None:
        self._heard.put_nowait(message)

    def close(self) -> None:
        pass

    def say(self, *messages: ManagerMessage) -> None:
        assert self._on_message is not None
        for message in messages:
            self._on_message(message)

    async def hear(self, kind: type[M]) -> M:
        """The next message of that kind; others are passed over."""
        while True:
            message = await asyncio.wait_for(self._heard.get(), WITHIN_S)
            if isinstance(message, kind):
                return message

    def leave(self) -> None:
        """The connection breaks; the next one is made at once."""
        assert self._on_lost is not None
        on_lost, self._on_message = self._on_lost, None
        on_lost("test")

    async def greet(self, epoch: int = 1) -> None:
        await self.hear(Join)
        self.say(Welcome(epoch=epoch))

    def want(self, *names: str) -> None:
        self._versions += 1
        wants = [
            Want(device="cpu", variant=name, context=Context(runtime="python", name=name, identity=name))
            for name in names
        ]
        self.say(Wants(epoch=1, version=self._versions, wants=wants))

    def grant(self, job: str, *payloads: Any) -> None:
        self._leases += 1
        blob = b"\n".join(base64.b64encode(pickle.dumps(payload)) for payload in payloads)
        chunk = Chunk(0, len(payloads), 1, "", blob)
        self.say(Grant(epoch=1, lease=f"lease-{self._leases}", job=job, chunks=[chunk]))

    async def results(self, rows: int) -> list[Any]:
        got: list[Any] = []
        while len(got) < rows:
            lines = (await self.hear(Rows)).chunk.blob.split(b"\n")
            got += [pickle.loads(base64.b64decode(msgspec.json.decode(line)["pickle"])) for line in lines]
        return got


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(int(WITHIN_S / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited {WITHIN_S} s for {what}")


# --- scenarios -----------------------------------------------------------------------------------------------


async def a_job_that_comes_back_brings_another_operation(manager: Manager, agent: AgentLoop) -> None:
    manager.want("v")
    for answer in ("first", "second"):
        manager.say(DefineJob(job="job-1", variant="v", operation=operation(lambda _, answer=answer: answer)))
        manager.grant("job-1", 0)
        assert await manager.results(1) == [answer]
        manager.say(ForgetJob(job="job-1"))
        assert [process.operations for process in agent._servers.processes.values()] == [set()]


async def the_next_manager_s_job_of_the_same_name_is_another(manager: Manager, agent: AgentLoop) -> None:
    manager.want("v")
    manager.say(DefineJob(job="job-1", variant="v", operation=operation(lambda _: "first")))
    manager.grant("job-1", 0)
    assert await manager.results(1) == ["first"]
    manager.leave()
    await manager.greet()
    manager.say(DefineJob(job="job-1", variant="v", operation=operation(lambda _: "second")))
    manager.grant("job-1", 0)
    while (results := await manager.results(1)) == ["first"]:
        pass  # never acknowledged, so sent again
    assert results == ["second"]


async def contexts_that_nothing_needs_are_dropped(manager: Manager, agent: AgentLoop) -> None:
    manager.want("v", "w")
    while (await manager.hear(Reported)).resident.state != "live":
        pass
    manager.want("w")
    assert set(agent._contexts) == {"v", "w"}, "a replica still holds it"
    await manager.hear(Stopped)
    assert set(agent._contexts) == {"w"}


async def what_a_function_leaves_behind_is_reaped(manager: Manager, agent: AgentLoop) -> None:
    def leave_one(_: int) -> int:
        said = subprocess.run(["sh", "-c", "sleep 0.3 >&- 2>&- & echo $!"], stdout=subprocess.PIPE, check=True)
        return int(said.stdout)

    manager.want("v")
    manager.say(DefineJob(job="job-1", variant="v", operation=operation(leave_one)))
    manager.grant("job-1", 0, 1)
    for pid in await manager.results(2):
        await until(lambda pid=pid: not psutil.pid_exists(pid), "a zombie to be reaped")


async def the_end_of_an_orphaned_replica_is_known(manager: Manager, agent: AgentLoop) -> None:
    manager.want("v")
    manager.say(
        DefineJob(job="job-1", variant="v", operation=operation(lambda seconds: __import__("time").sleep(seconds)))
    )
    manager.grant("job-1", 0)
    await manager.results(1)
    (replica,) = agent._servers.processes.values()
    assert replica.server is not None
    os.kill(replica.server.process.pid, signal.SIGKILL)
    await until(lambda: psutil.Process(replica.pid).ppid() == os.getpid(), "the replica to be adopted")
    manager.grant("job-1", 60)
    await asyncio.sleep(0.2)
    os.kill(replica.pid, signal.SIGUSR1)  # a replica ignores SIGTERM
    assert (await manager.hear(Died)).reason.startswith("killed by SIGUSR1")
    assert replica.server.process.returncode == -signal.SIGKILL, "the server's own status was stolen"


async def a_replica_without_its_socket_is_ended_for_that(manager: Manager, agent: AgentLoop) -> None:
    def lose_everything(_: int) -> None:
        import time

        os.closerange(3, 256)
        time.sleep(60)

    manager.want("v")
    manager.say(DefineJob(job="job-1", variant="v", operation=operation(lose_everything)))
    manager.grant("job-1", 0)
    assert (await manager.hear(Died)).reason.startswith("it closed its connection and did not exit")


SCENARIOS: dict[str, Callable[[Manager, AgentLoop], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        a_job_that_comes_back_brings_another_operation,
        the_next_manager_s_job_of_the_same_name_is_another,
        contexts_that_nothing_needs_are_dropped,
        what_a_function_leaves_behind_is_reaped,
        the_end_of_an_orphaned_replica_is_known,
        a_replica_without_its_socket_is_ended_for_that,
    )
}


async def play(name: str, log_dir: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    manager = Manager()
    folder = Path(log_dir)
    spec = PoolSpec(workers=1, log_dir=log_dir, cache_dir=str(folder / "cache"))
    agent = AgentLoop("w", spec, [CPU], manager, CPU.memory_bytes, lambda tell: build.copies(spec, folder, tell))
    running = asyncio.create_task(agent.run())
    try:
        await manager.greet()
        await SCENARIOS[name](manager, agent)
    finally:
        manager.say(Drain(grace_s=0.0))
        await asyncio.wait_for(running, WITHIN_S)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, name, str(tmp_path)], stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"


if __name__ == "__main__":
    asyncio.run(play(sys.argv[1], sys.argv[2]))
