"""A full log disk costs lines, and nothing else. `/dev/full` is such a disk."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotlight.worker import log

FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stream = FULL.open("w", buffering=1)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    yield
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.usefixtures("full_disk")
def test_lines_are_lost_without_a_word() -> None:
    log.say("text")
    log.say_plainly("text")
    try:
        raise ValueError
    except ValueError:
        log.say_error()
    log.flush()


def test_a_worker_with_a_full_log_ends_with_its_own_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pilotlight.worker", "--pool", str(tmp_path), "--name", "w"]
    with FULL.open("w") as full:
        done = subprocess.run(command, stderr=full, check=False)
    assert done.returncode == 2
