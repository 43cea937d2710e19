"""Pickles are code: who has not said who he is gets none of it run, and of those who have, only replicas run any.

The poison leaves a file that says in which process it came to life.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest

from pilotlight.connection import frame
from pilotlight.gate import certificate
from pilotlight.gate.handshake import Knock
from pilotlight.gate.invitation import path_of, read_invitation
from pilotlight.gate.tokens import Role
from pilotlight.messages import Hello, InputEnd, Join, Pin, Resident, Rows, RowsIn, Submit
from pilotlight.wire import (
    VERSION,
    Chunk,
    Context,
    DeviceSpec,
    JobRequest,
    Operation,
    ResultChunk,
    StreamInput,
    StreamOutput,
)
from tests.faults.dialled import ENGINES, dialled_pool, pool_over
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


def stranger_words(mark: Path) -> list[bytes]:
    """What somebody may say first, all of it with poison."""
    poison, job = cloudpickle.dumps(Poison(mark)), poisoned(mark)
    resident = Resident(device="cpu", variant="v", replica="r", state="live", context=job.context)
    foreign = Join(version=VERSION + 1, worker="w", pid=1, host="h", devices=[CPU], residents=[resident])
    chunk = Chunk(0, 1, 1, "poison", poison)
    return [
        poison,
        frame(poison),
        frame(msgspec.msgpack.encode(Submit(ticket=1, request=job))),
        frame(msgspec.msgpack.encode(RowsIn(job="job-1", chunk=chunk))),
        frame(msgspec.msgpack.encode(Pin(ticket=1, context=job.context))),
        frame(msgspec.msgpack.encode(Hello(version=VERSION + 1)))
        + frame(msgspec.msgpack.encode(Submit(ticket=1, request=job))),
        frame(msgspec.msgpack.encode(foreign)),
    ]


@pytest.mark.parametrize("door", ["client.sock", "worker.sock"])
def test_who_has_not_said_who_he_is_has_nothing_opened(ground: Playground, door: str) -> None:
    mark = ground.folder / "mark"
    with lasting_pool(ground, workers=1) as pool:
        for text in stranger_words(mark):
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


def knock(role: Role, token: str) -> bytes:
    return frame(msgspec.json.encode(Knock(role=role, name="w", token=token)))


@pytest.mark.parametrize("token", ["", "1.x", "right"])
def test_who_comes_through_the_gate_has_nothing_opened_either(ground: Playground, token: str) -> None:
    """Before it has shown its token, after it showed a wrong one, and with the right one but without a job."""
    mark = ground.folder / "mark"
    poison = cloudpickle.dumps(Poison(mark))
    rows = Rows(seq=1, lease="l", job="j", device="cpu", chunk=ResultChunk([(0, 1)], poison))
    joins = frame(msgspec.msgpack.encode(Join(worker="w", pid=1, host="h", devices=[CPU])))
    with dialled_pool(ground) as there:
        there.worker("a")
        for role in ("worker", "client"):
            right = read_invitation(path_of(there.pool.folder, role), role).token
            shown = knock(role, right if token == "right" else token) if token else b""
            said = stranger_words(mark)
            if role == "worker":
                said.append(joins + frame(msgspec.msgpack.encode(rows)))
            for text in said:
                with socket.create_connection(("127.0.0.1", there.port()), 60) as sock:
                    tls = certificate.dialler_context().wrap_socket(sock)
                    with tls, contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                        tls.settimeout(1.0)  # who was let in may be waited for
                        tls.sendall(shown)
                        if shown:
                            tls.recv(1 << 16)
                        tls.sendall(text)
                        while tls.recv(1 << 16):
                            pass
        source, out = ground.rows(10), ground.folder / "out.jsonl"
        with there.pool.client() as client:
            assert client.end_of(client.submit(request(source, out)).job).outcome == "completed"
        opened_in = mark.read_text() if mark.exists() else ""
        if token == "right":  # a client's job was accepted: its replica may open what it brings
            assert not opened_in or "pilotlight.worker.server" in opened_in
        else:
            assert not opened_in


BAD_FUNCTIONS = """
import sys
import pilotlight as pl

class Raises:
    def __reduce__(self):
        return (int, ("no number",))

class Kills:
    def __reduce__(self):
        return (eval, ("__import__('os').kill(__import__('os').getpid(), 9)",))

class Hangs:
    def __reduce__(self):
        return (eval, ("__import__('time').sleep(600)",))

def outcome(pool, poison, **more):
    def answer(row):
        return (poison, row)[1]
    return [result.error.kind if result.error else result.value for result in pool.map(answer, range(1), **more)]

with pl.Pool.connect(sys.argv[1]) as pool:
    print(outcome(pool, Raises()))
    print(outcome(pool, Kills()))
    print(outcome(pool, Hangs(), request_timeout_s=1.0))
    print(outcome(pool, 1))
"""


def outcomes(ground: Playground, pool: Path) -> list[str]:
    """What becomes of functions that raise, kill and hang where they are unpickled, and then of a good one."""
    script = ground.folder / "functions.py"
    script.write_text(BAD_FUNCTIONS)
    command = [sys.executable, script, pool]
    done = subprocess.run(command, env=ground.environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("engine", ENGINES)
def test_functions_that_are_poison_cost_their_own_rows_only(ground: Playground, engine: str) -> None:
    with pool_over(engine, ground, workers=1) as pool:
        found = outcomes(ground, pool.folder)
    assert found == ["['function_error']", "['killed_replica']", "['timed_out']", "[0]"]


@pytest.mark.parametrize("engine", ENGINES)
def test_of_a_job_that_was_let_in_only_a_replica_opens_pickles(ground: Playground, engine: str) -> None:
    mark = ground.folder / "mark"
    with pool_over(engine, ground, workers=1) as pool, pool.client() as client:
        source = ground.rows(10)
        assert client.end_of(client.submit(request(source, ground.folder / "out.jsonl", context=ECHO)).job)
        job = client.submit(poisoned(mark)).job
        client.send(RowsIn(job=job, chunk=Chunk(0, 1, 1, "poison", cloudpickle.dumps(Poison(mark)))))
        client.send(InputEnd(job=job))
        client.end_of(job)
        pid, line = mark.read_text().split(" ", 1)
        assert "pilotlight.worker.server" in line  # which forks replicas
        assert int(pid) not in ground.by_role()["server"]
