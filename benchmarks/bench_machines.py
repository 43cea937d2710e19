"""A pool over several machines: what TCP and TLS cost, how soon a worker is of use, what deaths cost, how files spread.

Machines are namespaces of this one, joined by links of 1 Gbit/s (needs root, iproute2 and iptables). They share its
cores, so what computes on several of them at once takes longer here.

    python benchmarks/bench_machines.py [--parts wire arrival deaths files] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import ROOT, command, environment, save, show, write_rows
from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.ranges import IndexSet
from pilotlight.core.story.records import Began, Step
from pilotlight.core.transitions import ReplicaState
from pilotlight.files.identity import content_digest
from pilotlight.io import eventfile
from pilotlight.wire import Context
from tests.faults.harness import playground
from tests.faults.lasting import Client, request
from tests.net import claims
from tests.net.lan import missing
from tests.net.machines import Machines, machines

Steps = list[tuple[float, object, tuple[object, ...]]]
"""What the manager did: Unix time, event, decisions."""

LINK = "1gbit"
LINK_BYTES_PER_S = 1e9 / 8
WAIT_S = 90.0


def main() -> None:
    parser = argparse.ArgumentParser(description="A pool over several machines.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows and bytes")
    arguments = parser.parse_args()
    if why := missing():
        print(f"skipped: {why}")
        return
    figures = {part: PARTS[part](arguments.rounds, 10 if arguments.quick else 1) for part in arguments.parts}
    save("machines", figures)


# --- messages


def wire(rounds: int, divisor: int) -> dict[str, object]:
    """No-op requests through workers on a Unix socket, and through workers that dialled in over TCP and TLS."""
    rows = 1_000_000 // divisor
    took: dict[str, list[float]] = {"unix": [], "tcp": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_rows(folder / "rows.jsonl", rows)
        with _pool(folder / "unix", 2), _pool(folder / "tcp", 0):
            for _ in range(rounds):
                for name, seconds in took.items():
                    began = time.monotonic()
                    job = ("run", source, "-o", folder / "out.jsonl", "--runtime", "echo", "--overwrite", "--quiet")
                    _run(*job, "--pool", folder / name)
                    seconds.append(time.monotonic() - began)
                    assert (folder / "out.jsonl").read_bytes().count(b"\n") == rows, "a row is missing"
    ratio = statistics.median(tcp / unix for unix, tcp in zip(took["unix"], took["tcp"], strict=True))
    table = [[name, f"{rows / statistics.median(seconds):,.0f}"] for name, seconds in took.items()]
    table[1].append(f"{ratio:.2f}")
    table[0].append("1")
    show(f"{rows:,} no-op requests, two workers, live context", ["", "requests/s", "time / Unix socket"], table)
    return {"seconds": took, "tcp_over_unix": ratio}


@contextlib.contextmanager
def _pool(folder: Path, workers: int) -> Generator[None]:
    """A lasting pool of two workers that are warm: its own, or ones that dialled in."""
    listen = () if workers else ("--listen", "127.0.0.1:0")
    _run("up", "--pool", folder, "--workers", workers, *listen)
    dialled = [_start("worker", "--pool", folder / "worker.json") for _ in range(2 - workers)]
    try:
        rows = write_rows(folder.parent / "few.jsonl", 1000)
        _run("run", rows, "-o", folder.parent / "few.out", "--runtime", "echo", "--overwrite", "--pool", folder)
        yield
    finally:
        _run("down", "--pool", folder)
        for worker in dialled:
            worker.wait(30)


def _run(*arguments: object) -> None:
    done = subprocess.run(command(*arguments), env=environment(), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


# --- a worker's way to its first result


def arrival(rounds: int, _divisor: int) -> dict[str, object]:
    """From starting `pilotlight worker` to its first result in the manager's hands, on an otherwise idle machine."""
    stages = ("joined", "told to load", "live", "first result")
    found: dict[str, list[list[float]]] = {"echo": [], "bundled model": []}
    for _ in range(rounds):
        for what, times in found.items():
            with _quiet_machines(2) as world:
                job = _endless_job(world, model=what != "echo")
                began = time.time()
                world.worker(world.net.hosts[1], "new")
                seen = _awaited(world, ("new",), lambda steps: any(isinstance(s[1], ev.RowsWritten) for s in steps))
                times.append([at_s - began for at_s in _stages(seen)])
                job.kill()
    table: list[list[object]] = []
    for what, times in found.items():
        middle = [statistics.median(column) for column in zip(*times, strict=True)]
        table.append([what, *(f"{at_s:.2f}" for at_s in middle)])
    show("Seconds from a worker's start", ["", *stages], table)
    return {what: {"stages": stages, "seconds": times} for what, times in found.items()}


def _stages(seen: Steps) -> list[float]:
    joined = next(at for at, event, _ in seen if isinstance(event, ev.WorkerJoined))
    told = next(
        at
        for at, _, decided in seen
        for d in decided
        if isinstance(d, do.SendWants) and d.worker_id == "new" and d.wants
    )
    live = next(
        at for at, event, _ in seen if isinstance(event, ev.ReplicaReported) and event.fact.state is ReplicaState.LIVE
    )
    result = next(at for at, event, _ in seen if isinstance(event, ev.RowsWritten) and event.worker_id == "new")
    return [joined, told, live, result]


# --- deaths


def deaths(rounds: int, _divisor: int) -> dict[str, object]:
    """From a death to the moment when its rows are another's: a worker killed, a machine that vanishes, a replica."""
    found: dict[str, list[float]] = {"a worker is killed": [], "a machine vanishes": [], "a replica is killed": []}
    for _ in range(rounds):
        for what, times in found.items():
            times.append(_death(what))
    table = [[what, f"{statistics.median(times):.2f}", f"{max(times):.2f}"] for what, times in found.items()]
    show("Seconds until its rows are given out again", ["", "median", "most"], table)
    return dict(found)


def _death(what: str) -> float:
    with _quiet_machines(3) as world:
        hosts = world.net.hosts[1:]
        for number, host in enumerate(hosts):
            world.worker(host, f"w{number}")
        job = _endless_job(world)
        world.until(lambda: len(world.processes("replica")) == 2, "two replicas load", WAIT_S)
        time.sleep(3.0)
        pids = world.processes("worker" if "worker" in what else "replica", [hosts[0]])
        began = time.time()
        if "vanishes" in what:
            hosts[0].vanish()
        else:
            for pid in pids:
                os.kill(pid, 9)

        def again(steps: Steps) -> bool:
            return _given_again(steps, began) is not None

        seen = _awaited(world, ("w0", "w1"), again)
        job.kill()
        at_s = _given_again(seen, began)
        assert at_s is not None
        return at_s - began


def _given_again(steps: list[tuple[float, object, tuple[object, ...]]], began: float) -> float | None:
    """When the first row was granted that w0 held at the time."""
    held: IndexSet = IndexSet()
    for at_s, event, decided in steps:
        if isinstance(event, ev.RowsWritten):
            held.discard(event.spans)
        if isinstance(event, ev.RowsReturned):
            held.discard(event.spans)
        for decision in decided:
            if not isinstance(decision, do.GrantRows):
                continue
            if at_s > began and any(held.within(start, stop) for start, stop in decision.spans):
                return at_s
            if decision.worker_id == "w0":
                held.update(decision.spans)
    return None


# --- files


def files(rounds: int, divisor: int) -> dict[str, object]:
    """One model of 1 GB from the manager's machine to 1, 2, 4 and 8 others at once."""
    size = (1 << 30) // divisor
    once_s = size / LINK_BYTES_PER_S
    table: list[list[object]] = []
    figures: dict[str, object] = {}
    for count in (1, 2, 4, 8):
        took: list[float] = []
        sent: list[float] = []
        for _ in range(max(1, rounds // 2)):
            with _quiet_machines(count + 1) as world:
                seconds, origin = _spread(world, size)
                took.append(seconds)
                sent.append(origin / size)
        middle = statistics.median(took)
        table.append([count, f"{middle:.1f}", f"{middle / once_s:.2f}", f"{statistics.median(sent):.2f}"])
        figures[f"{count} machines"] = {"seconds": took, "copies_sent_by_origin": sent}
    header = ["machines", "seconds", "times a raw copy", "copies sent by the origin"]
    show(f"{size / 1e9:.2f} GB to so many machines; one link carries it in {once_s:.1f} s", header, table)
    return figures


def _spread(world: Machines, size: int) -> tuple[float, int]:
    model = world.net.hosts[0].disk / "model"
    model.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        for _ in range(max(1, size >> 24)):
            file.write(os.urandom(min(size, 1 << 24)))
    (model / "config.json").write_text("{}")
    for host in world.net.hosts[1:]:  # it is on one machine only
        host.start(["mount", "-t", "tmpfs", "none", str(model)], os.environ).wait()
    for number, host in enumerate(world.net.hosts[1:]):
        world.worker(host, f"w{number}")
    world.until(lambda: len(world.processes("worker", world.net.hosts[1:])) >= len(world.net.hosts) - 1, "they start")
    time.sleep(3.0)
    before, began = world.net.hosts[0].sent_bytes(), time.monotonic()
    with Client(world.pool / "client.sock") as client:
        context = Context(runtime="echo", name="echo", identity=content_digest(model), model_path=str(model))
        source = claims.write(world.ground.folder / "claims.jsonl", 20_000, sleep_s=0.05)
        job = client.submit(request(source, world.ground.folder / "out.jsonl", context=context)).job
        client.seen(
            lambda snapshot: (
                sum(replica.state == "live" for worker in snapshot.workers for replica in worker.replicas)
                >= len(world.net.hosts) - 1
            )
        )
        took = time.monotonic() - began
        assert job
    return took, world.net.hosts[0].sent_bytes() - before


# --- what they share


@contextlib.contextmanager
def _quiet_machines(hosts: int) -> Generator[Machines]:
    with playground() as ground, machines(ground, hosts, LINK) as world:
        yield world


def _endless_job(world: Machines, *, model: bool = False) -> subprocess.Popen[str]:
    """More work than the benchmark waits for."""
    out = world.ground.folder / "out.jsonl"
    if model:
        many = world.ground.folder / "many.jsonl"
        job = ("factcheck", "verify", many, "-o", out, "--bundled-model", "--pool", world.pool)
        _bundled(many, 20)
    else:
        source = claims.write(world.ground.folder / "claims.jsonl", 20_000, sleep_s=0.01)
        job = ("run", source, "-o", out, "--runtime", "echo", "--pool", world.pool)
    return world.start(world.net.hosts[0], *job, quiet=True)


def _bundled(path: Path, times: int) -> None:
    path.write_text((ROOT / "src/pilotlight/factcheck/assets/claims.jsonl").read_text() * times)


def _awaited(world: Machines, names: tuple[str, ...], enough: Callable[[Steps], bool]) -> Steps:
    """The manager's steps so far (Unix time, event, decisions) that concern these workers, once there are enough."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        steps = [step for step in _steps(world) if any(name in repr(step[1:]) for name in names)]
        if enough(steps):
            return steps
        time.sleep(0.3)
    raise AssertionError(f"nothing comes of it\n{world.logs()}")


def _steps(world: Machines) -> Iterator[tuple[float, object, tuple[object, ...]]]:
    began = 0.0
    for log in {path.parent for path in world.pool.glob("logs/*/events.jsonl")}:  # one manager, so one at most
        for record in eventfile.read(log):
            if isinstance(record, Began):
                began = record.wall_s
            elif isinstance(record, Step):
                yield began + record.since_s, record.event, record.decisions


PARTS: dict[str, Callable[[int, int], dict[str, object]]] = {
    "wire": wire,
    "arrival": arrival,
    "deaths": deaths,
    "files": files,
}

if __name__ == "__main__":
    main()
