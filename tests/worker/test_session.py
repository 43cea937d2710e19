"""A worker that a shell starts as a job leads its process group, and so must fork to get a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from pilotlight.wire import PoolSpec

Starter = Callable[[], tuple["subprocess.Popen[bytes]", psutil.Process]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts a worker whose manager never comes; gives what a shell would hold of it, and the worker itself."""
    pool, log = tmp_path / "pool", tmp_path / "log"
    pool.mkdir()
    log.mkdir()
    spec = PoolSpec(workers=1, log_dir=str(log), orphan_timeout_s=60.0, lasting=True)
    (pool / "pool.json").write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", "pilotlight.worker", "--pool", str(pool), "--name", "w"]
    started: list[subprocess.Popen[bytes]] = []

    def starting() -> tuple[subprocess.Popen[bytes], psutil.Process]:
        shells = subprocess.Popen(command, process_group=0)
        started.append(shells)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for child in psutil.Process(shells.pid).children():
                if _catches(child.pid, signal.SIGTERM):
                    return shells, child
            time.sleep(0.02)
        raise AssertionError("no worker came up")

    yield starting
    for shells in started:
        for left in psutil.Process(shells.pid).children() if shells.poll() is None else ():
            left.kill()
        shells.kill()
        shells.wait()


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether that process has got as far as to handle a signal."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_worker(start: Starter, number: signal.Signals) -> None:
    shells, worker = start()
    assert os.getsid(worker.pid) == worker.pid
    shells.send_signal(number)
    assert shells.wait(30) == 0, "it did not drain"
    assert not worker.is_running()


def test_its_end_is_the_worker_s(start: Starter) -> None:
    shells, worker = start()
    worker.kill()
    assert shells.wait(30) == 128 + signal.SIGKILL
