"""A pool whose manager is the fake one; everything on the client's side of the socket is real."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotlight.client import folders, launch
from pilotlight.client.pool import Pool
from pilotlight.poolfile import pool_folder, write_spec
from pilotlight.wire import PoolSpec

COMMAND = [sys.executable, str(Path(__file__).with_name("fake_manager.py"))]


@pytest.fixture(autouse=True)
def private_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pool folders and logs of a test go where the test can see them, and nobody else's are swept."""
    base = tmp_path_factory.mktemp("p")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(base))
    monkeypatch.setenv("PILOTLIGHT_LOG_DIR", str(base / "logs"))
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(base / "state"))
    return base


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A started pool."""
    with Pool(2, watch_s=0.1, manager_command=COMMAND) as started:
        yield started


@contextlib.contextmanager
def up(name: str = "default") -> Iterator[int]:
    """A fake manager of a lasting pool; its process id."""
    folder = pool_folder(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_dir = folder / "logs"
    log_dir.mkdir(exist_ok=True)
    spec = PoolSpec(
        workers=1, name=name, lasting=True, log_dir=str(log_dir), socket_dir=folders.socket_folder(folder), python="x"
    )
    write_spec(folder, spec)
    process = launch.start_manager(folder, spec, command=COMMAND)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def lasting_pool() -> Iterator[int]:
    with up() as pid:
        yield pid
