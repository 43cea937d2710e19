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
import shutil
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
from pilotlight.files.place import Place
from pilotlight.messages import (
    CopyFailed,
    DefineJob,
    Died,
    Drain,
    ForgetJob,
    Grant,
    Join,
    Kept,
    Level,
    ManagerMessage,
    Reported,
    Resident,
    Rows,
    SourceAsked,
    SourceNamed,
    Stopped,
    Unstage,
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
        self.sources: list[str] = []
        """What to answer who asks for a source; then the origin."""

    async def connect(self, on_message: Callable[[ManagerMessage], None], on_lost: Callable[[str], None]) -> None:
        if self._on_message is not None:
            raise LinkClosed("one is enough")
        self._on_message, self._on_lost = on_message, on_lost

    def send(self, message: WorkerMessage) -> None:
        self._heard.put_nowait(message)
        if isinstance(message, SourceAsked) and not message.remote:
            source = self.sources.pop(0) if self.sources else ""
            named = SourceNamed(epoch=1, variant=message.variant, source=source)
            asyncio.get_running_loop().call_soon(self._answer, named)

    def _answer(self, message: ManagerMessage) -> None:
        if self._on_message is not None:
            self._on_message(message)

    @property
    def ends(self) -> None:
        return None

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
        self.wish(*(("cpu", Context(runtime="python", name=name, identity=name), "live") for name in names))

    def wish(self, *wishes: tuple[str, Context, Level]) -> None:
        self._versions += 1
        wants = [Want(device=d, variant=context.name, context=context, level=level) for d, context, level in wishes]
        self.say(Wants(epoch=1, version=self._versions, wants=wants))

    async def hear_resident(self, state: str) -> Resident:
        while (resident := (await self.hear(Reported)).resident).state != state:
            pass
        return resident

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


async def a_job_that_comes_back_brings_another_operation(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.want("v")
    for answer in ("first", "second"):
        manager.say(DefineJob(job="job-1", variant="v", operation=operation(lambda _, answer=answer: answer)))
        manager.grant("job-1", 0)
        assert await manager.results(1) == [answer]
        manager.say(ForgetJob(job="job-1"))
        assert [process.operations for process in agent._servers.processes.values()] == [set()]


async def the_next_manager_s_job_of_the_same_name_is_another(manager: Manager, agent: AgentLoop, folder: Path) -> None:
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


async def a_first_load_waits_for_its_runtime(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.want("v")
    live = await manager.hear_resident("live")
    assert live.origin == "cold"
    assert live.stages.keys() >= {"import", "start"}
    assert live.stages.keys() & {"stage", "park"} == set()
    assert sum(live.stages.values()) <= live.load_s


async def contexts_that_nothing_needs_are_dropped(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.want("v", "w")
    while (await manager.hear(Reported)).resident.state != "live":
        pass
    manager.want("w")
    assert set(agent._contexts) == {"v", "w"}, "a replica still holds it"
    await manager.hear(Stopped)
    assert set(agent._contexts) == {"w"}


async def what_a_function_leaves_behind_is_reaped(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    def leave_one(_: int) -> int:
        said = subprocess.run(["sh", "-c", "sleep 0.3 >&- 2>&- & echo $!"], stdout=subprocess.PIPE, check=True)
        return int(said.stdout)

    manager.want("v")
    manager.say(DefineJob(job="job-1", variant="v", operation=operation(leave_one)))
    manager.grant("job-1", 0, 1)
    for pid in await manager.results(2):
        await until(lambda pid=pid: not psutil.pid_exists(pid), "a zombie to be reaped")


async def the_end_of_an_orphaned_replica_is_known(manager: Manager, agent: AgentLoop, folder: Path) -> None:
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


async def a_replica_without_its_socket_is_ended_for_that(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    def lose_everything(_: int) -> None:
        import time

        os.closerange(3, 256)
        time.sleep(60)

    manager.want("v")
    manager.say(DefineJob(job="job-1", variant="v", operation=operation(lose_everything)))
    manager.grant("job-1", 0)
    assert (await manager.hear(Died)).reason.startswith("it closed its connection and did not exit")


def context(log_dir: Path, **options: Any) -> Context:
    """A context with files; the runtime that holds it looks at none of them."""
    folder = log_dir / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    return Context(runtime="echo", name="v", identity="v", model_path=str(folder), options=options, memory_bytes=1000)


def loaded_from(agent: AgentLoop) -> Path:
    (process,) = agent._servers.processes.values()
    assert process.context.model_path is not None
    return Path(process.context.model_path)


async def files_are_staged_and_parked_before_a_load(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    wanted = context(folder)
    manager.wish(("cpu", wanted, "live"))
    staged, parked = (await manager.hear(Kept)).copy, (await manager.hear(Kept)).copy
    assert (staged.level, staged.bytes) == ("staged", 1002)
    assert (parked.level, parked.bytes) == ("parked", 1000)
    live = await manager.hear_resident("live")
    assert live.origin == "parked"
    assert live.stages.keys() >= {"stage", "park", "start", "read"}
    assert sum(live.stages.values()) <= live.load_s
    assert loaded_from(agent).joinpath("model.safetensors").read_bytes() == b"w" * 1000
    assert os.readlink(loaded_from(agent) / "model.safetensors").startswith(f"/proc/{os.getpid()}/fd/")
    manager.leave()
    joined = await manager.hear(Join)
    manager.say(Welcome(epoch=1))
    assert joined.memory_bytes == CPU.memory_bytes
    assert [(copy.level, copy.bytes, copy.context) for copy in joined.copies] == [
        ("staged", 1002, wanted),
        ("parked", 1000, wanted),
    ]
    assert [resident.context for resident in joined.residents] == [wanted]


async def a_peer_that_can_not_be_reached_leaves_the_origin(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.sources = ["w-far"]
    manager.wish(("cpu", context(folder), "live"))
    failed = await manager.hear(CopyFailed)
    assert (failed.variant, failed.source) == ("v", "w-far")
    assert "w-far was named, but not where it serves files" in failed.reason
    await manager.hear(SourceAsked)
    assert (await manager.hear(Kept)).copy.level == "staged"
    assert (await manager.hear_resident("live")).origin == "parked"


async def a_replica_that_died_comes_back_without_a_wait(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.wish(("cpu", context(folder), "live"))
    manager.say(DefineJob(job="job-1", variant="v", operation=Operation(kind="echo")))
    await manager.hear_resident("live")
    manager.say(Grant(epoch=1, lease="l", job="job-1", chunks=[Chunk(0, 1, 1, "", b'{"die": true}')]))
    assert "SIGKILL; the machine may have run out of memory" in (await manager.hear(Died)).reason
    again = await manager.hear_resident("live")
    assert again.origin == "parked"
    assert again.stages.keys() & {"stage", "park", "import"} == set()
    assert (folder / "w.1.log").exists(), "it died"


async def parked_memory_is_let_go_and_files_unstaged(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.wish(("cpu", context(folder), "live"))
    await manager.hear_resident("live")
    manager.say(Unstage(variant="v"))
    gone = (await manager.hear(Kept)).copy
    assert (gone.level, gone.bytes) == ("staged", 0), "it was parked, so nobody used what was staged"
    manager.wish()
    gone = (await manager.hear(Kept)).copy
    assert (gone.level, gone.bytes) == ("parked", 0)
    await until(lambda: not agent._servers.processes, "the replica's end")
    assert agent._contexts == {}
    assert not (folder / "w.1.log").exists(), "it ended as wished"
    assert list((folder / "cache" / "files").glob("*/*")) == []


async def files_in_use_are_unstaged_later(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    wanted = context(folder)
    wanted = msgspec.structs.replace(wanted, memory_bytes=2 * CPU.memory_bytes // 3)
    agent._agent.residences._memory_bytes = 0  # so that nothing is parked
    manager.wish(("", wanted, "parked"))
    assert (await manager.hear(Kept)).copy.level == "staged"
    manager.wish(("cpu", wanted, "live"))
    assert (await manager.hear_resident("live")).origin == "staged"
    assert loaded_from(agent).is_relative_to(folder / "cache")
    manager.say(Unstage(variant="v"))
    await until(lambda: agent._copies._unwanted == {"v"}, "the cache to be asked")
    assert (folder / "cache" / "variants" / "v").exists()
    manager.wish()
    await manager.hear(Stopped)
    assert (await manager.hear(Kept)).copy.bytes == 0
    assert not (folder / "cache" / "variants" / "v").exists()


async def a_staged_copy_that_went_is_noticed(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    wanted = context(folder)
    agent._agent.residences._memory_bytes = 0  # so that nothing is parked
    manager.wish(("", wanted, "parked"))
    assert (await manager.hear(Kept)).copy.level == "staged"
    shutil.rmtree(folder / "cache")
    manager.wish(("cpu", wanted, "live"))
    assert (await manager.hear(Kept)).copy.bytes == 0
    live = await manager.hear_resident("live")
    assert live.origin == "cold"
    assert str(loaded_from(agent)) == wanted.model_path


async def files_that_can_t_be_copied_are_loaded_from_where_they_are(
    manager: Manager, agent: AgentLoop, folder: Path
) -> None:
    wanted = context(folder)
    shutil.rmtree(folder / "cache")
    (folder / "cache").write_text("in the way")
    (folder / "parked").write_text("in the way")
    manager.wish(("cpu", wanted, "live"))
    live = await manager.hear_resident("live")
    assert live.origin == "cold"
    assert str(loaded_from(agent)) == wanted.model_path


async def a_replica_sleeps_and_wakes(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    wanted = context(folder, can_sleep=True, memory_bytes=1 << 20)
    manager.wish(("cpu", wanted, "live"))
    live = await manager.hear_resident("live")
    manager.wish(("", wanted, "parked"))
    asleep = await manager.hear_resident("asleep")
    assert (asleep.pid, asleep.memory_bytes) == (live.pid, 0)
    manager.wish(("cpu", wanted, "live"))
    awake = await manager.hear_resident("live")
    assert (awake.pid, awake.origin, awake.memory_bytes) == (live.pid, "asleep", 1 << 20)
    assert awake.stages.keys() == {"wake"}
    assert awake.load_s < live.load_s


async def a_replica_that_hangs_is_ended_and_says_so(manager: Manager, agent: AgentLoop, folder: Path) -> None:
    manager.want("v")
    forever = operation(lambda _: __import__("time").sleep(1000))
    manager.say(DefineJob(job="job-1", variant="v", operation=forever, request_timeout_s=0.5))
    manager.grant("job-1", 0)
    died = await manager.hear(Died)
    assert "request_timeout_s" in died.reason
    assert "memory" not in died.reason


SCENARIOS: dict[str, Callable[[Manager, AgentLoop, Path], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        a_job_that_comes_back_brings_another_operation,
        the_next_manager_s_job_of_the_same_name_is_another,
        a_first_load_waits_for_its_runtime,
        contexts_that_nothing_needs_are_dropped,
        what_a_function_leaves_behind_is_reaped,
        the_end_of_an_orphaned_replica_is_known,
        a_replica_without_its_socket_is_ended_for_that,
        files_are_staged_and_parked_before_a_load,
        a_peer_that_can_not_be_reached_leaves_the_origin,
        a_replica_that_died_comes_back_without_a_wait,
        parked_memory_is_let_go_and_files_unstaged,
        files_in_use_are_unstaged_later,
        a_staged_copy_that_went_is_noticed,
        files_that_can_t_be_copied_are_loaded_from_where_they_are,
        a_replica_sleeps_and_wakes,
        a_replica_that_hangs_is_ended_and_says_so,
    )
}


async def play(name: str, log_dir: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    manager = Manager()
    folder = Path(log_dir)
    spec, cache = PoolSpec(workers=1, log_dir=log_dir), Place(folder / "cache", "the test")
    copies, surroundings = build.copies(cache.path, 0, folder, None), build.surroundings(cache, folder, [CPU])
    agent = AgentLoop("w", spec, [CPU], manager, CPU.memory_bytes, copies, surroundings)
    running = asyncio.create_task(agent.run())
    try:
        await manager.greet()
        await SCENARIOS[name](manager, agent, folder)
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
