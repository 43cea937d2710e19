"""How soon a model is live, by where its files are: a worker with a manager that this script plays.

    python benchmarks/bench_residence.py [--rounds 3] [--models bundled 135M]

cold: a new worker with an empty cache. warm disk: a new worker that finds the files staged. crashed: the replica is
killed. unparked: the files are in the worker's memory, no replica is there. staged: the same from its disk's cache.
second: another variant of the same model beside the live one. Live means that a replica has answered a request of its
own. Beside each stands what moving the bytes alone costs: at the speed of this machine's memory, or, where files are
read from the disk, of reading that file from the disk; both are measured in the same run. All of it stays on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from benchmarks import random_llama  # noqa: E402
from benchmarks.measure import environment, save, show  # noqa: E402
from pilotlight.engines.direct import DirectManagerLink  # noqa: E402
from pilotlight.factcheck import bundled  # noqa: E402
from pilotlight.messages import (  # noqa: E402
    Died,
    Drain,
    Join,
    Kept,
    Level,
    LoadFailed,
    Reported,
    Resident,
    Stopped,
    Want,
    Wants,
    Welcome,
    WorkerMessage,
)
from pilotlight.poolfile import socket_path, write_spec  # noqa: E402
from pilotlight.wire import Context, PoolSpec  # noqa: E402

WITHIN_S = 180.0
CASES = {
    "cold": "cold start",
    "warm disk": "new worker, files staged",
    "crashed": "crashed replica",
    "unparked": "replica from parked files",
    "staged": "replica from staged files",
    "second": "second variant beside it",
}


def context(model: Path, number: int = 0) -> Context:
    """Variants of one model that differ in how long a prompt may be; they share their files."""
    options = {"max_model_len": 256 - number}
    return Context(runtime="transformers", name=model.name, identity=model.name, model_path=str(model), options=options)


class Manager:
    """The manager's end: says what is wanted, hears what came of it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.spec = PoolSpec(workers=1, log_dir=str(folder), cache_dir=str(cache), python=sys.executable)
        write_spec(folder, self.spec)
        self._link = DirectManagerLink(socket_path(folder, self.spec, "worker.sock"))
        self._heard: asyncio.Queue[WorkerMessage] = asyncio.Queue()
        self._version = 0
        self.device = ""
        self._worker: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the worker and wait until it has joined."""
        await self._link.start(lambda _, message: self._heard.put_nowait(message), lambda _worker, _reason: None)
        command = [sys.executable, "-P", "-m", "pilotlight.worker", "--pool", str(self.folder), "--name", "w"]
        with (self.folder / "worker.log").open("ab") as log:
            self._worker = await asyncio.create_subprocess_exec(
                *command, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        joined = await self.hear(Join, lambda _: True)
        self.device = joined.devices[0].id
        self._link.send("w", Welcome(epoch=1))

    def want(self, *wishes: tuple[Context, Level]) -> None:
        self._version += 1
        wants = [
            Want(device=self.device if level == "live" else "", variant=wish.id, context=wish, level=level)
            for wish, level in wishes
        ]
        self._link.send("w", Wants(epoch=1, version=self._version, wants=wants))

    async def hear(self, kind: Any, accept: Callable[[Any], bool]) -> Any:
        """The next such message; others are passed over. Fails at once where a load failed."""
        while True:
            message = await asyncio.wait_for(self._heard.get(), WITHIN_S)
            if isinstance(message, LoadFailed):
                raise SystemExit(f"the model could not be loaded: {message.reason}")
            if isinstance(message, kind) and accept(message):
                return message

    async def live(self, wish: Context) -> Resident:
        """Wait until it is."""
        heard = await self.hear(Reported, lambda m: m.resident.variant == wish.id and m.resident.state == "live")
        resident: Resident = heard.resident
        return resident

    async def gone(self, wish: Context) -> None:
        """Wait until no replica of it is there; one that fell asleep instead is killed."""
        heard = await self.hear(WorkerMessage, lambda m: _leaves(m, wish))
        if isinstance(heard, Reported):
            os.kill(heard.resident.pid, signal.SIGKILL)
            await self.hear(WorkerMessage, lambda m: isinstance(m, Stopped | Died) and m.variant == wish.id)

    async def end(self) -> None:
        assert self._worker is not None
        self._link.send("w", Drain(grace_s=0.0))
        try:
            await asyncio.wait_for(self._worker.wait(), 10.0)
        except TimeoutError:
            os.killpg(self._worker.pid, signal.SIGKILL)
            await self._worker.wait()
        await self._link.stop()


def _leaves(message: WorkerMessage, wish: Context) -> bool:
    if isinstance(message, Reported):
        return message.resident.variant == wish.id and message.resident.state == "asleep"
    return isinstance(message, Stopped | Died) and message.variant == wish.id


class Measured:
    """Seconds by case, and how the last of each was spent."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.stages: dict[str, dict[str, float]] = {}
        self.origins: dict[str, str] = {}

    def add(self, case: str, began_s: float, resident: Resident) -> None:
        self.seconds.setdefault(case, []).append(time.perf_counter() - began_s)
        self.stages[case], self.origins[case] = resident.stages, resident.origin


async def measure(model: Path, folder: Path, measured: Measured) -> None:
    """One round: two workers after each other, with one cache."""
    cache = folder / "cache"
    wish, other = context(model), context(model, 1)
    for case in ("cold", "warm disk"):
        pool = folder / case.replace(" ", "-")
        pool.mkdir()
        began_s = time.perf_counter()
        manager = Manager(pool, cache)
        try:
            await manager.start()
            manager.want((wish, "live"))
            resident = await manager.live(wish)
            measured.add(case, began_s, resident)
            if case == "cold":
                await lives(manager, wish, other, resident.pid, measured)
        finally:
            await manager.end()


async def lives(manager: Manager, wish: Context, other: Context, pid: int, measured: Measured) -> None:
    """What happens on a worker that goes on."""
    manager.want((wish, "live"), (wish, "parked"), (wish, "staged"))
    began_s = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    measured.add("crashed", began_s, await manager.live(wish))
    manager.want((wish, "parked"), (wish, "staged"))
    await manager.gone(wish)
    began_s = time.perf_counter()
    manager.want((wish, "live"), (wish, "parked"), (wish, "staged"))
    measured.add("unparked", began_s, await manager.live(wish))
    manager.want((wish, "staged"))
    await manager.hear(Kept, lambda m: m.copy.level == "parked" and m.copy.bytes == 0)
    began_s = time.perf_counter()
    manager.want((wish, "live"), (wish, "staged"))
    measured.add("staged", began_s, await manager.live(wish))
    began_s = time.perf_counter()
    manager.want((wish, "live"), (other, "live"))
    measured.add("second", began_s, await manager.live(other))


# --- what moving the bytes alone costs


def memory_bytes_per_s() -> float:
    """Copying 256 MB of memory by one thread, the best of five: bytes that arrive per second."""
    source = bytearray(os.urandom(1 << 20) * 256)
    target = bytearray(len(source))
    best_s = min(_timed(lambda: target.__setitem__(slice(None), source)) for _ in range(5))
    return len(source) / best_s


def disk_bytes_per_s(path: Path) -> float:
    """Reading a file that the kernel was told to forget, and hashing nothing."""

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.readinto(buffer):
                pass

    buffer = bytearray(1 << 24)
    os.sync()
    return path.stat().st_size / min(_timed(read) for _ in range(3))


def _timed(action: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def report(name: str, model: Path, measured: Measured, memory: float) -> dict[str, Any]:
    """A table, and figures for the file."""
    weights = model / "model.safetensors"
    size, disk = weights.stat().st_size, disk_bytes_per_s(weights)
    cold_s = statistics.median(measured.seconds["cold"])
    table: list[list[object]] = []
    figures: dict[str, Any] = {"bytes": size, "memory_bytes_per_s": memory, "disk_bytes_per_s": disk, "cases": {}}
    for case, title in CASES.items():
        seconds = measured.seconds[case]
        middle_s = statistics.median(seconds)
        raw_s = size / (disk if case in {"cold", "warm disk"} else memory)
        stages = ", ".join(f"{stage} {1e3 * took_s:,.0f}" for stage, took_s in measured.stages[case].items())
        figures["cases"][case] = {
            "s_median": middle_s,
            "s_best": min(seconds),
            "s_worst": max(seconds),
            "part_of_cold": middle_s / cold_s,
            "times_raw": middle_s / raw_s,
            "origin": measured.origins[case],
            "stages_s": measured.stages[case],
        }
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        cells = [f"{middle_s:.3f}", spread, f"{middle_s / cold_s:.3f}", f"{middle_s / raw_s:,.1f}"]
        table.append([title, measured.origins[case], *cells, stages])
    title = f"{name}: {size / 1e6:,.1f} MB; memory {memory / 1e9:.1f} GB/s, disk {disk / 1e9:.1f} GB/s"
    show(
        title, ["", "from", "s, median", "best to worst", "of cold", "times raw cost", "stages of the last, ms"], table
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="How soon a model is live, by where its files are.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=["bundled", "135M"], default=["bundled", "135M"])
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures: dict[str, Any] = {}
    memory = memory_bytes_per_s()
    with tempfile.TemporaryDirectory(prefix="residence-") as scratch:
        for name in arguments.models:
            folder = Path(scratch) / name
            model = bundled.model_folder() if name == "bundled" else random_llama.write(folder / "model")
            measured = Measured()
            for number in range(arguments.rounds):
                room = folder / str(number)
                room.mkdir(parents=True)
                asyncio.run(measure(model, room, measured))
                shutil.rmtree(room, ignore_errors=True)  # a worker that outlived its manager takes its folder along
            figures[name] = report(name, model, measured, memory)
    save("residence", figures)


if __name__ == "__main__":
    main()
