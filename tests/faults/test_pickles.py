"""Pickles are code: who has not said who he is gets none of it run, and of those who have, only replicas run any.

The poison leaves a file that says in which process it came to life.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest

from pilotlight.connection import frame
from pilotlight.messages import Hello, InputEnd, Join, Pin, Resident, RowsIn, Submit
from pilotlight.wire import VERSION, Chunk, Context, DeviceSpec, JobRequest, Operation, StreamInput, StreamOutput
from tests.faults.harness import Playground
from tests.faults.lasting import ECHO, lasting_pool, request

CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1 << 30)


class Poison:
    """Leaves a file wherever it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (_strike, (str(self.mark),))


def _strike(mark: str) -> None:
    line = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode()
    Path(mark).write_text(f"{os.getpid()} {line}")


cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_strike"]))


def poisoned(mark: Path) -> JobRequest:
    """A job whose context, function and rows are poison."""
    poison = cloudpickle.dumps(Poison(mark))
    return JobRequest(
        context=Context(runtime="python", name="poison", identity="poison", load=poison),
        operation=Operation(kind="map", function=poison, function_name="poison", row_format="pickle"),
        input=StreamInput(),
        output=StreamOutput(),
    )


def test_the_poison_works(tmp_path: Path) -> None:
    cloudpickle.loads(cloudpickle.dumps(Poison(tmp_path / "mark")))
    assert (tmp_path / "mark").read_text().startswith(f"{os.getpid()} ")


@pytest.mark.parametrize("door", ["client.sock", "worker.sock"])
def test_who_has_not_said_who_he_is_has_nothing_opened(ground: Playground, door: str) -> None:
    mark = ground.folder / "mark"
    poison, job = cloudpickle.dumps(Poison(mark)), poisoned(mark)
    resident = Resident(device="cpu", variant="v", replica="r", state="live", context=job.context)
    foreign = Join(version=VERSION + 1, worker="w", pid=1, host="h", devices=[CPU], residents=[resident])
    chunk = Chunk(0, 1, 1, "poison", poison)
    said: list[bytes] = [
        poison,
        frame(poison),
        frame(msgspec.msgpack.encode(Submit(ticket=1, request=job))),
        frame(msgspec.msgpack.encode(RowsIn(job="job-1", chunk=chunk))),
        frame(msgspec.msgpack.encode(Pin(ticket=1, context=job.context))),
        frame(msgspec.msgpack.encode(Hello(version=VERSION + 1)))
        + frame(msgspec.msgpack.encode(Submit(ticket=1, request=job))),
        frame(msgspec.msgpack.encode(foreign)),
    ]
    with lasting_pool(ground, workers=1) as pool:
        for text in said:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
                stranger.settimeout(60.0)
                stranger.connect(str(pool.folder / door))
                stranger.sendall(text)
                stranger.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while stranger.recv(1 << 16):
                        pass
        source, out = ground.rows(10), ground.folder / "out.jsonl"
        with pool.client() as client:  # the pool is none the worse for it
            assert client.end_of(client.submit(request(source, out)).job).outcome == "completed"
        assert not mark.exists()
    assert not mark.exists()


def test_of_a_job_that_was_let_in_only_a_replica_opens_pickles(ground: Playground) -> None:
    mark = ground.folder / "mark"
    with lasting_pool(ground, workers=1) as pool, pool.client() as client:
        source = ground.rows(10)
        assert client.end_of(client.submit(request(source, ground.folder / "out.jsonl", context=ECHO)).job)
        job = client.submit(poisoned(mark)).job
        client.send(RowsIn(job=job, chunk=Chunk(0, 1, 1, "poison", cloudpickle.dumps(Poison(mark)))))
        client.send(InputEnd(job=job))
        client.end_of(job)
        pid, line = mark.read_text().split(" ", 1)
        assert "pilotlight.worker.server" in line  # which forks replicas
        assert int(pid) not in ground.by_role()["server"]
