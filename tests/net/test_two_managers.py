"""Two managers of one pool at once, on machines that share its folder but not their locks: the newer one has it.

File locks that stay on the machine that takes them are what some cluster file systems give (Lustre's localflock, NFS's
local_lock). Here a filter (seccomp(2)) has the second machine's kernel answer flock with success and do nothing.
"""

from __future__ import annotations

import json
import sys

import pytest

from pilotlight.manager.__main__ import EXIT_FENCED
from pilotlight.messages import Accepted, Ask, Attach, JobsAnswer
from tests.faults.harness import Playground
from tests.faults.lasting import WAIT_S, LastingPool, request
from tests.faults.test_lasting import assert_exact, done_rows, live
from tests.net.lan import lan

WITHOUT_LOCKS = """
import ctypes, os, platform, struct, sys

FLOCK = {"x86_64": 73, "aarch64": 32}[platform.machine()]
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ANSWER_SUCCESS = 0x7FFF0000, 0x00050000

rules = [(LOAD, 0, 0, 0), (JUMP_EQUAL, 0, 1, FLOCK), (RETURN, 0, 0, ANSWER_SUCCESS), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)):
    if libc.prctl(*call) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Runs a command whose file locks hold off nobody."""
ROWS = 1500


@pytest.mark.parametrize("done", [0, 800, 1000, 1200])
def test_the_older_one_ends_and_the_output_is_exact(ground: Playground, done: int) -> None:
    source, out = ground.rows(ROWS, sleep_s=0.004), ground.folder / "out.jsonl"
    with lan(ground.folder, 3) as net:
        first_host, second_host, workers_host = net.hosts
        pool = LastingPool(ground, workers=0, spec={"listen": ":7070", "silence_s": 3.0})
        pool.up(first_host.entry)
        first = pool.manager
        assert first is not None
        worker = [sys.executable, "-m", "pilotlight", "worker", "--pool", str(pool.folder / "worker.json")]
        workers_host.start([*worker, "--name", "a"], ground.environment)
        with pool.client() as client:
            job = client.submit(request(source, out), detached=True).job
            before = live(client.seen(lambda seen: len(live(seen)) == 1 and done_rows(seen) >= done))
        pool.up([*second_host.entry, sys.executable, "-c", WITHOUT_LOCKS])
        with pool.client() as client:
            assert client.greeting.epoch == 2
            client.send(Attach(ticket=1, job=job))
            if isinstance(client.answer(), Accepted):
                ended = client.end_of(job)
                assert ended.outcome == "completed", f"{ended.message} {out.exists()} {ground.logs()}"
            client.send(Ask(ticket=2, what="jobs"))
            assert [view.state for view in client.take(JobsAnswer).jobs] == ["completed"]
            assert live(client.seen(lambda seen: len(live(seen)) == 1)) == before, "the worker came over as it was"
        assert first.wait(WAIT_S) == EXIT_FENCED
        pool.down()
    assert_exact(source, out)
    history = (pool.folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in history] == ["completed"], "the older one told no end of its own"
    assert not (ground.folder / "out.jsonl.pilotlight").exists()
