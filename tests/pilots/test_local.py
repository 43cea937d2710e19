"""Local pilots: children, and processes of an earlier manager that are looked after without being children."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pilotlight.pilots import local
from pilotlight.pilots.local import LocalProvider

WORKER = """#!{python}
import sys, time
time.sleep(60)
"""
"""A stand-in for the interpreter: whatever it is told to run, it sleeps."""


def provider(folder: Path, slots: int = 2) -> LocalProvider:
    script = folder / "sleeper"
    if not script.exists():
        script.write_text(WORKER.format(python=sys.executable))
        script.chmod(0o700)
    return LocalProvider(str(script), str(folder), str(folder), slots)


def polled(of: LocalProvider) -> dict[str, str]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ended := of.poll():
            return ended
        time.sleep(0.01)
    raise AssertionError("no pilot ended")


Orphan = Callable[[], str]


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[Orphan]:
    """Starts a pilot by a manager that ends at once; gives its id."""
    pids: list[int] = []

    def start() -> str:
        provider(tmp_path)
        code = (
            "import sys; from pilotlight.pilots.local import LocalProvider as P; "
            f"print(P({str(tmp_path / 'sleeper')!r}, {str(tmp_path)!r}, {str(tmp_path)!r}, 2).submit('worker-1'))"
        )
        said = subprocess.run(
            [sys.executable, "-c", f"{code}; sys.stdout.flush(); import os; os._exit(0)"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        pilot_id = said.stdout.strip()
        pids.append(int(pilot_id.split(":")[0]))
        return pilot_id

    yield start
    for pid in pids:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("pidfds", [True, False])
def test_an_adopted_pilot_is_looked_after(
    tmp_path: Path, orphan: Orphan, pidfds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfds:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    pilot_id = orphan()
    mine = provider(tmp_path)
    assert mine.adopt(pilot_id)
    assert mine.poll() == {}
    fresh = mine.submit("worker-2")
    assert {fresh.split(":")[2], pilot_id.split(":")[2]} == {"0", "1"}  # its share of the machine stays taken
    mine.cancel(pilot_id)
    assert polled(mine) == {pilot_id: "its process is gone"}
    mine.close()
    assert not psutil.pid_exists(int(fresh.split(":")[0]))


def test_a_process_that_started_at_another_time_is_not_adopted(tmp_path: Path, orphan: Orphan) -> None:
    pid, started, slot, host = orphan().split(":")
    mine = provider(tmp_path)
    assert not mine.adopt(f"{pid}:{int(started) + 1}:{slot}")
    assert not mine.adopt(f"{pid}::{slot}")
    assert not mine.adopt(f"{pid}:{started}:{slot}:not-{host}")
    assert not mine.adopt("nonsense")
    assert not mine.adopt("4194304:1:0")
    mine.close()
    assert psutil.pid_exists(int(pid))


def test_close_ends_adopted_pilots_too(tmp_path: Path, orphan: Orphan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "END_S_MAX", 0.5)
    pilot_id = orphan()
    mine = provider(tmp_path)
    assert mine.adopt(pilot_id)
    mine.close()
    process = psutil.Process(int(pilot_id.split(":")[0])) if psutil.pid_exists(int(pilot_id.split(":")[0])) else None
    assert process is None or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
def test_a_system_without_pidfds_loses_no_pilot(
    tmp_path: Path, orphan: Orphan, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    pilot_id = orphan()
    pilots = provider(tmp_path)
    assert pilots.adopt(pilot_id)
    assert not pilots.poll()
    pilots.close()
    assert not local._started(int(pilot_id.split(":")[0]))


def test_a_process_that_cant_be_ended_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("END_S_MAX", "KILLED_S_MAX"):
        monkeypatch.setattr(local, name, 0.0)
    pilots = provider(tmp_path)
    pilot_id = pilots.submit("worker-1")
    pid = pilot_id.split(":")[0]
    pilot = pilots._pilots[pilot_id]
    with monkeypatch.context() as system:  # which hangs in a disk that does not answer, say
        system.setattr(pilot, "signal", lambda _number: None)
        system.setattr(pilot, "kill", lambda: None)
        pilots.close()
    assert f"worker process {pid} can't be ended" in capsys.readouterr().err
    pilot.kill()
    pilot._process.wait()  # type: ignore[attr-defined]
