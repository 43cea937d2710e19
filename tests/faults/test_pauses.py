"""Processes that stand still for a while (SIGSTOP: a scheduler's suspend, a debugger, a swapping machine) and go on."""

from __future__ import annotations

import contextlib
import signal
import sys
import time

import psutil

from pilotlight.gate.invitation import path_of
from tests.faults.dialled import dialled_pool
from tests.faults.harness import Playground
from tests.faults.lasting import WAIT_S, request
from tests.faults.test_endings import wait_for
from tests.faults.test_lasting import assert_exact, done_rows, live


def signalled(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Signal them all."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def test_workers_that_stood_still_come_back_with_their_replicas(ground: Playground) -> None:
    """One agent alone for 5 s, one worker with all that it runs for 20 s; large rows are on their way to both."""
    source, out = ground.rows(9000, sleep_s=0.004), ground.folder / "out.jsonl"
    text = source.read_text().replace('"text": "', '"text": "' + "x" * 4000)
    source.write_text(text)
    with dialled_pool(ground) as there, there.pool.client() as client:
        agents = {name: there.worker(name) for name in ("agent", "whole", "awake")}
        job = client.submit(request(source, out)).job
        before = live(client.seen(lambda seen: len(live(seen)) == 3 and done_rows(seen) > 200))
        whole = psutil.Process(agents["whole"].pid)
        alone, tree = [psutil.Process(agents["agent"].pid)], [whole, *whole.children(recursive=True)]
        signalled([*alone, *tree], signal.SIGSTOP)
        began = time.monotonic()
        assert set(live(client.seen(lambda seen: len(live(seen)) == 1)).values()) == {"awake"}
        client.seen(lambda _: time.monotonic() - began > 5)
        signalled(alone, signal.SIGCONT)
        client.seen(lambda seen: set(live(seen).values()) == {"agent", "awake"})
        client.seen(lambda _: time.monotonic() - began > 20)
        signalled(tree, signal.SIGCONT)
        assert live(client.seen(lambda seen: len(live(seen)) == 3)) == before
        ended = client.end_of(job)
        assert (ended.outcome, ended.view.rows_done) == ("completed", 9000)
        assert live(client.seen(lambda seen: True)) == before
        assert ended.totals.loads == {"echo": 3}, "nothing was loaded again"
    assert_exact(source, out)


def test_a_command_that_stood_still_keeps_its_job(ground: Playground) -> None:
    source, out = ground.rows(3000, sleep_s=0.003), ground.folder / "out.jsonl"
    with dialled_pool(ground) as there:
        there.worker("a")
        file = path_of(there.pool.folder, "client")
        command = ground.start("run", source, "--runtime", "echo", "-o", out, "--pool", file)
        with there.pool.client() as client:
            client.seen(lambda seen: done_rows(seen) > 100)
            command.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            client.seen(lambda _: time.monotonic() - began > 5)
            assert command.poll() is None
            client.seen(lambda seen: len(seen.jobs) == 1 and seen.jobs[0].rows_done > 500)
            command.send_signal(signal.SIGCONT)
        said, _ = command.communicate(timeout=WAIT_S)
        assert command.returncode == 0, said
        assert "waiting for the next one" not in said
    assert_exact(source, out)


STREAM = """
import sys
import pilotlight as pl
with pl.Pool.connect(sys.argv[1]) as pool:
    done = 0
    for result in pool.map(lambda n: bytes(300_000) + n.to_bytes(4), range(150)):
        assert result.value[-4:] == result.index.to_bytes(4)
        done += 1
        if done == 1:
            print("first", flush=True)
print(done)
"""


def test_a_client_that_reads_nothing_for_a_while_gets_all_its_results(ground: Playground) -> None:
    with dialled_pool(ground) as there:
        there.worker("a")
        file = path_of(there.pool.folder, "client")
        script = ground.folder / "stream.py"
        script.write_text(STREAM)
        with (
            (ground.folder / "said").open("w+") as said,
            psutil.Popen([sys.executable, script, file], env=ground.environment, stdout=said, stderr=said) as process,
        ):
            wait_for(lambda: "first" in (ground.folder / "said").read_text(), "the first result")
            process.send_signal(signal.SIGSTOP)
            time.sleep(5)  # its socket is full long before
            process.send_signal(signal.SIGCONT)
            assert process.wait(WAIT_S) == 0, (ground.folder / "said").read_text()
        assert (ground.folder / "said").read_text().split() == ["first", "150"]
