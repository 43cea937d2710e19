"""Processes with few descriptors: each takes what it may have, and says so where connections have to wait."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys

import psutil
import pytest

from pilotlight.gate.invitation import path_of
from tests.faults.dialled import Dialled, dialled_pool
from tests.faults.harness import Playground
from tests.faults.lasting import request
from tests.faults.test_dialled import joined
from tests.faults.test_endings import wait_for
from tests.faults.test_lasting import assert_exact

SHORT = "can't take another connection now (Too many open files; it may have 56 files open): start it where the limit"

CLIENTS = """
import asyncio, sys, typing
from pathlib import Path
from pilotlight.gate.dialling import dial
from pilotlight.gate.invitation import read_invitation

def ignore(connection):
    connection.on_message = connection.on_closed = lambda _: None

async def come():
    invitation = read_invitation(Path(sys.argv[1]), "client")
    inside = [await dial(invitation, "", "", typing.Any, ignore) for _ in range(60)]

asyncio.run(come())
"""
"""More clients than have room, who are let in and stay."""


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """Runs a command that may have so many files open, and no more than `hard` if it asks."""
    return "sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh"


def test_each_process_takes_all_that_it_may_have(ground: Playground) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with dialled_pool(ground, workers=1, through=limited(100, most)) as there:
        there.worker("a", through=limited(100, most))
        with there.pool.client() as client:
            joined(client, 2)
        for process in ground.processes():
            assert process.rlimit(psutil.RLIMIT_NOFILE) == (most, most), process.cmdline()


def crowd(where: str | tuple[str, int], stack: contextlib.ExitStack) -> None:
    """More than have room connect, and say nothing."""
    for _ in range(120):
        family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.settimeout(10.0)
        sock.connect(where)


def recovered(ground: Playground) -> None:
    """Wait until the manager has done with those who left: it may still take them from the queue of its socket."""
    (manager,) = [process for process in ground.processes() if "pilotlight.manager" in process.cmdline()]
    wait_for(lambda: manager.num_fds() < 40, "the manager has descriptors again")


def assert_works(there: Dialled, ground: Playground) -> None:
    """A worker gets in, and a job through."""
    source, out = ground.rows(300), ground.folder / "out.jsonl"
    there.worker("a")
    with there.pool.client() as client:
        joined(client, 1)
        assert client.end_of(client.submit(request(source, out)).job).outcome == "completed"
    assert_exact(source, out)


@pytest.mark.parametrize("door", ["client.sock", "worker.sock"])
def test_a_crowd_that_takes_all_descriptors_is_told_of_and_ends_nothing(ground: Playground, door: str) -> None:
    with dialled_pool(ground, through=limited(56, 56)) as there:
        log = there.pool.logs / "manager.log"
        with contextlib.ExitStack() as outside:
            crowd(str(there.pool.folder / door), outside)
            wait_for(lambda: SHORT in log.read_text(), "the manager says that it is short of descriptors")
        recovered(ground)
        assert_works(there, ground)
        assert log.read_text().count(SHORT) == 1, "it is said once a minute"


def test_a_crowd_at_the_gate_takes_no_descriptor_from_who_is_inside(ground: Playground) -> None:
    with dialled_pool(ground, through=limited(56, 56)) as there, contextlib.ExitStack() as outside:
        crowd(("127.0.0.1", there.port()), outside)
        assert_works(there, ground)
        assert SHORT not in (there.pool.logs / "manager.log").read_text()


def test_more_clients_than_the_gate_has_descriptors_for_are_told_of(ground: Playground) -> None:
    with dialled_pool(ground, through=limited(56, 56)) as there:
        log = there.pool.logs / "manager.log"
        come = [sys.executable, "-c", CLIENTS, str(path_of(there.pool.folder, "client"))]
        with subprocess.Popen(come, env=ground.environment) as clients:
            wait_for(lambda: SHORT in log.read_text(), "the manager says that it is short of descriptors")
            clients.kill()
        recovered(ground)
        assert_works(there, ground)
