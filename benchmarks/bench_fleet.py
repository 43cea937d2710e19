"""The manager alone against many simulated workers, each with one replica that reports one row at a time.

A real manager process serves its real Unix socket; another process speaks for all the workers, in the messages that
agents send, at a fixed rate per replica. No row is computed, so what is left is the manager: its share of a core, the
rows that it takes, how soon it writes and acknowledges them, and how often a replica had nothing to do.

    python benchmarks/bench_fleet.py [--replicas 200] [--rows-per-s 50] [--seconds 15] [--wanted 16]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

import psutil  # noqa: E402

from benchmarks.measure import environment, save, show, write_rows  # noqa: E402
from pilotlight.client import launch  # noqa: E402
from pilotlight.connection import dial  # noqa: E402
from pilotlight.engines.direct import DirectWorkerLink  # noqa: E402
from pilotlight.messages import (  # noqa: E402
    Accepted,
    Ack,
    Beat,
    ClientReply,
    Grant,
    Hello,
    Join,
    ManagerMessage,
    Reported,
    Resident,
    Returned,
    Revoke,
    Rows,
    Submit,
    Wants,
)
from pilotlight.wire import (  # noqa: E402
    Context,
    DeviceSpec,
    JobRequest,
    Operation,
    PathInput,
    PathOutput,
    ResultChunk,
)

SETTLE_S = 3.0
"""Not measured: joining, first leases."""
STEP_S = 0.002


class Peer:
    """A worker that has one replica and makes up its results."""

    def __init__(self, name: str, wanted: int) -> None:
        self.name = name
        self.rows: deque[tuple[str, str, int]] = deque()
        self.latencies_s: list[float] = []
        self.dry = 0
        self.fed = asyncio.Event()
        self._wanted = wanted
        self._link: DirectWorkerLink | None = None
        self._seq = 0
        self._sent_s: deque[tuple[int, float]] = deque()

    async def join(self, path: str) -> None:
        self._link = DirectWorkerLink(path)
        await self._link.connect(self._said, lambda _: None)
        device = DeviceSpec(id="cpu", kind="simulated", type="cpu", memory_bytes=1 << 30)
        self._link.send(Join(worker=self.name, pid=0, host="here", devices=[device]))

    def report(self, blob: bytes) -> None:
        """One row is done, if there is one."""
        assert self._link is not None
        if not self.rows:
            self.dry += 1
            return
        lease, job, index = self.rows.popleft()
        self._seq += 1
        self._sent_s.append((self._seq, time.perf_counter()))
        chunk = ResultChunk([(index, index + 1)], blob, counters={"busy_s": 0.02})
        self._link.send(Rows(seq=self._seq, lease=lease, job=job, device="cpu", chunk=chunk, started=len(self.rows)))

    def beat(self) -> None:
        assert self._link is not None
        self._link.send(Beat(started=len(self.rows)))

    def _said(self, message: ManagerMessage) -> None:
        assert self._link is not None
        match message:
            case Grant():
                rows = [index for chunk in message.chunks for index in range(chunk.start, chunk.stop)]
                self.rows.extend((message.lease, message.job, index) for index in rows)
                self.fed.set()
            case Ack():
                now = time.perf_counter()
                while self._sent_s and self._sent_s[0][0] <= message.upto:
                    self.latencies_s.append(now - self._sent_s.popleft()[1])
            case Wants(wants=[want, *_]):
                resident = Resident(
                    device="cpu", variant=want.variant, replica=self.name, state="live", wanted=self._wanted, load_s=0.1
                )
                self._link.send(Reported(resident=resident))
            case Revoke():
                self._link.send(Returned(lease=message.lease, spans=[]))
            case _:
                pass


async def speak(path: str, replicas: int, rows_per_s: float, seconds: float, wanted: int) -> None:
    """The peers' process: prints `ready`, then what it saw as JSON."""
    peers = [Peer(f"worker-{number}", wanted) for number in range(1, replicas + 1)]
    for peer in peers:
        await peer.join(path)
    await asyncio.gather(*(peer.fed.wait() for peer in peers))
    print("ready", flush=True)
    blob = b'{"index":0,"result":"' + b"x" * 176 + b'"}'
    began_s = beaten_s = time.perf_counter()
    due = 0
    settled = False
    while (now := time.perf_counter()) < began_s + SETTLE_S + seconds:
        if not settled and now >= began_s + SETTLE_S:
            settled = True
            settled_due = due
            for peer in peers:
                peer.latencies_s.clear()
                peer.dry = 0
        if now - beaten_s > 0.5:
            beaten_s = now
            for peer in peers:
                peer.beat()
        until = int((now - began_s) * rows_per_s * replicas)
        for number in range(due, until):
            peers[number % replicas].report(blob)
        due = until
        await asyncio.sleep(STEP_S)
    latencies = sorted(latency for peer in peers for latency in peer.latencies_s)
    dry = sum(peer.dry for peer in peers)
    seen = {
        "rows_per_s": (due - settled_due - dry) / seconds,
        "dry": dry / (due - settled_due),
        "ack_ms_median": 1e3 * statistics.median(latencies),
        "ack_ms_p99": 1e3 * latencies[len(latencies) * 99 // 100],
    }
    print(json.dumps(seen), flush=True)


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = int(arguments.replicas * (arguments.rows_per_s * (arguments.seconds + SETTLE_S + 2) + 4 * arguments.wanted))
    source = write_rows(folder / "in.jsonl", rows)
    os.environ.update(environment())
    manager = launch.launch(workers=0)
    accepted = asyncio.Event()
    try:

        def said(message: ClientReply) -> None:
            if isinstance(message, Accepted):
                accepted.set()

        def prepare(connection: Any) -> None:
            connection.on_message, connection.on_closed = said, lambda _: None

        client = await dial(manager.socket, ClientReply, prepare)
        client.send(Hello(owner=True))
        request = JobRequest(
            context=Context(runtime="echo", name="echo", identity="bench"),
            operation=Operation(kind="echo"),
            input=PathInput(paths=[str(source)]),
            output=PathOutput(path=str(folder / "out.jsonl")),
        )
        client.send(Submit(ticket=1, request=request))
        await accepted.wait()
        shape = [arguments.replicas, arguments.rows_per_s, arguments.seconds, arguments.wanted]
        speaker = subprocess.Popen(  # noqa: ASYNC220 - starting it is not measured
            [sys.executable, __file__, "--speak", str(manager.folder / "worker.sock"), *map(str, shape)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert speaker.stdout is not None
        assert await asyncio.to_thread(speaker.stdout.readline) == "ready\n", "the simulated workers did not get rows"
        await asyncio.sleep(SETTLE_S)
        process = psutil.Process(manager.process.pid)
        before, began_s = process.cpu_times(), time.perf_counter()
        await asyncio.sleep(arguments.seconds - 0.5)
        after, wall_s = process.cpu_times(), time.perf_counter() - began_s
        cpu_s = after.user + after.system - before.user - before.system
        seen = json.loads(await asyncio.to_thread(speaker.stdout.readline))
        memory = process.memory_info().rss
        speaker.wait()
        client.close()
        await client.gone.wait()
    finally:
        manager.end()
    core = cpu_s / wall_s
    return {**seen, "core": core, "cpu_us_per_row": 1e6 * core / seen["rows_per_s"], "rss_mib": memory / 2**20}


def main() -> None:
    if sys.argv[1:2] == ["--speak"]:
        path, replicas, rows_per_s, seconds, wanted = sys.argv[2:]
        asyncio.run(speak(path, int(replicas), float(rows_per_s), float(seconds), int(wanted)))
        return
    parser = argparse.ArgumentParser(description="The manager against simulated replicas that report single rows.")
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--rows-per-s", type=float, default=50.0, help="of each replica")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--wanted", type=int, default=16, help="rows that a replica wants in flight")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = asyncio.run(measure(arguments, Path(scratch)))
    header = ["", "rows/s", "of a core", "CPU us/row", "ack ms, median", "p99", "replica idle", "MiB"]
    row = [
        f"{arguments.replicas} replicas x {arguments.rows_per_s:.0f} rows/s",
        f"{figures['rows_per_s']:,.0f}",
        f"{figures['core']:.2f}",
        f"{figures['cpu_us_per_row']:.0f}",
        f"{figures['ack_ms_median']:.0f}",
        f"{figures['ack_ms_p99']:.0f}",
        f"{100 * figures['dry']:.1f} %",
        f"{figures['rss_mib']:.0f}",
    ]
    show("The manager alone, single rows", header, [row])
    save("fleet", {**vars(arguments), **figures})


if __name__ == "__main__":
    main()
