"""What workers leave behind is bounded."""

from __future__ import annotations

from pathlib import Path

from pilotlight.manager.leftovers import GONE_MAX, Leftovers


def test_logs_of_the_last_workers_stay_and_scratch_folders_go(tmp_path: Path) -> None:
    leftovers = Leftovers(tmp_path, tmp_path)
    names = [f"worker-{n}" for n in range(1, GONE_MAX + 3)]
    for name in names:
        (tmp_path / name).mkdir()
        for log in (f"{name}.log", f"{name}.3.log", f"{name}-server-echo.log"):
            (tmp_path / log).touch()
    (tmp_path / "manager.log").touch()
    for name in names:
        leftovers.ended(name)
    kept = {path.name for path in tmp_path.iterdir()}
    expected = {f"{name}{end}" for name in names[2:] for end in (".log", ".3.log", "-server-echo.log")}
    assert kept == expected | {"manager.log"}


def test_a_new_manager_takes_over_what_is_there_but_not_of_the_living(tmp_path: Path) -> None:
    names = [f"worker-{n}" for n in range(1, GONE_MAX + 3)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.log").touch()
    leftovers = Leftovers(tmp_path, tmp_path)
    leftovers.found(["worker-1", "worker-2"])
    assert {path.name for path in tmp_path.iterdir()} >= {"worker-1", "worker-2", "worker-1.log", "worker-2.log"}
    assert not (tmp_path / "worker-3").exists()
    assert len(list(tmp_path.glob("*.log"))) == GONE_MAX + 2
    leftovers.ended("worker-1")
    assert len(list(tmp_path.glob("*.log"))) == GONE_MAX + 1
