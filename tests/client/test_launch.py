"""The pool's folder, process and logs: private, and gone at the end."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

import pytest

import pilotlight as pl
from pilotlight.client import folders, launch
from pilotlight.client.pool import Pool
from pilotlight.core.errors import PilotlightError

from .conftest import COMMAND


def _pool_folders(base: Path) -> list[Path]:
    return list(base.glob("pilotlight-*"))


def test_nothing_is_left_after_success(private_folders: Path) -> None:
    with Pool(1, manager_command=COMMAND) as pool:
        (folder,) = _pool_folders(private_folders)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert pool.log_dir is not None
        assert pool.log_dir.is_dir()
        manager = pool._own
        assert manager is not None
        assert os.getsid(manager.process.pid) != os.getsid(0)
    assert manager.process.poll() is not None
    assert _pool_folders(private_folders) == []
    (logs,) = (private_folders / "logs").iterdir()
    assert (logs / "manager.log").exists()


def test_the_logs_are_named_when_something_went_wrong() -> None:
    with Pool(1, manager_command=COMMAND) as pool:
        job = pool.generate(pl.LLM("fail"), ["x"])
        with pytest.raises(pl.JobFailed, match=f"logs: {pool.log_dir}"):
            list(job)
        assert pool.troubled == {"", job.id}


def test_a_manager_that_refuses_to_start(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MANAGER_REFUSES", "1")
    with pytest.raises(pl.ConfigError, match="no worker can be had"):
        Pool(1, manager_command=COMMAND).start()
    assert _pool_folders(private_folders) == []


def test_a_manager_that_crashes_shows_its_last_words(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MANAGER_CRASHES", "1")
    with pytest.raises(PilotlightError, match="a crash before the socket"):
        Pool(1, manager_command=COMMAND).start()
    assert _pool_folders(private_folders) == []


def test_only_stale_folders_are_swept(private_folders: Path) -> None:
    old = time.time() - 60
    stale, locked, young = (
        private_folders / f"pilotlight-{os.getuid()}-{kind}" for kind in ("stale", "locked", "young")
    )
    foreign = private_folders / "pilotlight-0x-foreign"
    for folder in (stale, locked, young, foreign):
        folder.mkdir()
    with (locked / "manager.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder in (stale, locked, foreign):
            os.utime(folder, (old, old))
        assert folders.sweep(private_folders) == [stale]
    assert locked.is_dir()
    assert young.is_dir()
    assert foreign.is_dir()


def test_a_long_temporary_folder_falls_back_to_a_short_one(
    private_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = private_folders / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert folders.base_folder() == Path("/tmp")
    short = private_folders / "run"
    short.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    assert folders.base_folder() == short


def test_only_the_latest_logs_are_kept(private_folders: Path) -> None:
    base = private_folders / "logs"
    for second in range(15):
        (base / f"20200101-0000{second:02d}-999999999-abc").mkdir(parents=True)
    mine = base / f"20190101-000000-{os.getpid()}-abc"
    mine.mkdir()
    assert folders.new_log_folder(base, "PILOTLIGHT_LOG_DIR").parent == base
    left = sorted(path.name for path in base.iterdir())
    assert mine.name in left
    assert "20200101-000014-999999999-abc" in left
    assert "20200101-000000-999999999-abc" not in left
    assert len(left) == folders.LOG_RUNS_MAX + 1


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0)])
def test_hidden_gpus_are_not_counted(visible: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch.gpu_count() == count
    assert 1 <= launch.default_workers() <= 4
