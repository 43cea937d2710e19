"""Pools that stay, with real managers and workers: who starts, uses, leaves, breaks and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from pilotlight.poolfile import is_up

LONG_S = 120
SLOW = {"prompt": "x", "sleep_s": 0.005}


@dataclass
class Shell:
    """A user's shell in a folder of its own. Everything started from it carries its mark, and is ended with it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "t").mkdir()
        dropped = {"XDG_RUNTIME_DIR", "PYTHONPATH"}
        self.environment = {name: value for name, value in os.environ.items() if name not in dropped} | {
            "PILOTLIGHT_STATE_DIR": str(self.folder / "s"),
            "PILOTLIGHT_LOG_DIR": str(self.folder / "l"),
            "TMPDIR": str(self.folder / "t"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "COLUMNS": "200",
        }

    def rows(self, count: int, row: dict[str, Any] = SLOW, name: str = "in.jsonl") -> None:
        (self.folder / name).write_text((json.dumps(row) + "\n") * count)

    def start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pilotlight", *line.split()],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, line: str, code: int = 0) -> tuple[str, str]:
        """What it said on stdout and stderr."""
        process = self.start(line)
        out, err = process.communicate(timeout=LONG_S)
        assert process.returncode == code, f"{line} ended with {process.returncode}\n{out}\n{err}\n{self.logs()}"
        return out, err

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {view["job"]: view for view in map(json.loads, self.run("jobs --json")[0].splitlines())}

    def pool(self, name: str = "default") -> Path:
        (folder,) = (self.folder / "s" / "pools").glob(f"*/{name}")
        return folder

    def manager(self) -> int:
        return int((self.pool() / "manager.pid").read_text())

    def lines(self, output: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / output).read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        mark = f"PILOTLIGHT_STATE_DIR={self.folder / 's'}".encode()
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if mark in environment and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def logs(self) -> str:
        paths = sorted(self.folder.glob("s/**/*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in paths)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    try:
        yield shell
        for folder in (tmp_path / "s" / "pools").glob("*/*"):
            shell.run(f"down --pool {folder.name}")
        _until(lambda: not shell.processes(), "everything is gone")
        assert list((tmp_path / "t").glob("pilotlight*")) == []
    finally:
        for process in shell.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


def _until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONG_S
    while not happened():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.05)


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read the command's stderr up to a line with this text."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    pytest.fail(f"{text!r} was not said:\n{said}")


def test_up_twice_run_down(shell: Shell) -> None:
    assert "is up: 1 worker, logs in " in shell.run("up --workers 1")[0]
    assert "is up already: 1 worker" in shell.run("up")[0]
    _, err = shell.run("up --workers 2 --keep-alive -1", code=2)
    assert "--workers, --keep-alive would have no effect: pool default is up with 1 worker" in err
    shell.rows(300, {"prompt": "x"})
    for output in ("a.jsonl", "b.jsonl"):
        out, err = shell.run(f"run in.jsonl -o {output} --runtime echo")
        assert "on pool default (" in err
        assert len(shell.lines(output)) == 300
    assert "contexts loaded  none" in out
    _, err = shell.run("run in.jsonl -o c.jsonl --runtime echo --workers 3", code=2)
    assert "--workers would have no effect: pool default is up with 1 worker" in err
    assert "--no-pool" in err
    out, _ = shell.run("run in.jsonl -o c.jsonl --runtime echo --workers 1 --no-pool")
    assert "contexts loaded  echo once" in out
    assert "echo" in shell.run("contexts -v")[0]
    (context,) = map(json.loads, shell.run("contexts --json")[0].splitlines())
    assert context["used"] == 2
    assert [residence["level"] for residence in context["residences"]] == ["live"]
    assert "worker-1" in shell.run("workers")[0]
    assert "its cache is " in shell.run("workers -v")[0]
    (worker,) = map(json.loads, shell.run("workers --json")[0].splitlines())
    assert (worker["worker"], worker["state"], worker["devices"]) == ("worker-1", "live", ["cpu"])
    assert worker["cache"]["chosen_by"] == "PILOTLIGHT_CACHE"
    assert worker["environment"]["python"] == platform.python_version()
    told = shell.run("explain worker-1 --pool default")[0]
    assert f"it has Python {platform.python_version()}, pilotlight" in told
    assert f"its cache is {worker['cache']['path']} (PILOTLIGHT_CACHE; " in told
    out, _ = shell.run("down")
    assert "let go of echo, which was live on 1 device" in out
    assert "pool default is down, with 1 worker" in out
    assert not is_up(shell.pool())
    assert shell.processes() == []
    assert "there is nothing to end" in shell.run("down")[0]
    assert "pilotlight up" in shell.run("jobs", code=2)[1]


def test_a_detached_job_is_listed_attached_to_left_and_cancelled(shell: Shell) -> None:
    shell.rows(100_000)
    _, err = shell.run("run in.jsonl -o out.jsonl --runtime echo --detach", code=2)
    assert "--detach needs a pool that stays" in err
    shell.run("up --workers 1")
    out, err = shell.run("run in.jsonl -o out.jsonl --runtime echo --detach --weight 2")
    job = out.strip()
    assert f"pilotlight attach {job}" in err
    attached = shell.start("attach out.jsonl")
    _read_until(attached, "on pool default")
    attached.send_signal(signal.SIGINT)
    _, err = attached.communicate(timeout=LONG_S)
    assert attached.returncode == 130
    assert f"left; {job} goes on" in err
    assert shell.jobs()[job]["state"] == "running"
    assert shell.jobs()[job]["weight"] == 2
    listed = shell.run("jobs")[0].splitlines()
    assert listed[2].startswith(job)
    assert "running, detached" in listed[2]
    attached = shell.start(f"attach {job}")
    _read_until(attached, "on pool default")
    assert "what it has written stays" in shell.run(f"cancel {job}")[0]
    out, err = attached.communicate(timeout=LONG_S)
    assert attached.returncode == 130, err
    assert "the same command goes on" in out + err
    assert shell.jobs()[job]["state"] == "cancelled"
    assert f"{job} is over: cancelled" in shell.run(f"attach {job}", code=130)[0]
    assert "there is no job nope" in shell.run("cancel nope", code=2)[1]


def test_two_shells_at_once(shell: Shell) -> None:
    shell.run("up --workers 2")
    shell.rows(2_000)
    line = "run in.jsonl -o out.jsonl --runtime echo"
    first = shell.start(line)
    _read_until(first, "on pool default")
    second, third = shell.start(line), shell.start(f"{line} --limit 5")
    fourth = shell.start("run in.jsonl -o other.jsonl --runtime echo --limit 50")
    assert "joining job-" in _read_until(second, "joining")
    said = {process: process.communicate(timeout=LONG_S) for process in (first, second, third, fourth)}
    assert [process.returncode for process in said] == [0, 0, 2, 0], said
    assert "was asked for something else (input)" in said[third][1]
    assert "2,000 done" in said[first][0]
    assert "2,000 done" in said[second][0]
    assert len(shell.lines("out.jsonl")) == 2_000
    assert len(shell.lines("other.jsonl")) == 50
    assert len(shell.jobs()) == 2


def test_ctrl_c_leaves_a_job_to_the_other_command_that_asks_for_it(shell: Shell) -> None:
    shell.run("up --workers 1")
    shell.rows(200_000)
    line = "run in.jsonl -o out.jsonl --runtime echo"
    first = shell.start(line)
    _read_until(first, "on pool default")
    second = shell.start(line)
    _read_until(second, "joining")
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=LONG_S)
    assert (first.returncode, "goes on, as another command asks for it" in err) == (130, True), err
    assert [view["state"] for view in shell.jobs().values()] == ["running"]
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=LONG_S)
    assert (second.returncode, "stopped after" in err) == (130, True), err
    (view,) = shell.jobs().values()
    assert view["state"] == "cancelled"
    assert view["ended_s"] >= view["began_s"] + view["running_s"] - 1


def test_a_killed_command_ends_its_job_unless_it_is_detached(shell: Shell) -> None:
    shell.run("up --workers 1")
    shell.rows(100_000)
    command = shell.start("run in.jsonl -o out.jsonl --runtime echo")
    _read_until(command, "on pool default")
    detached = shell.run("run in.jsonl -o other.jsonl --runtime echo --detach -q")[0].strip()
    command.kill()
    command.communicate(timeout=LONG_S)
    states: dict[str, str] = {}

    def ended() -> bool:
        states.update({job: view["state"] for job, view in shell.jobs().items()})
        return "cancelled" in states.values()

    _until(ended, "the job of the killed command ends")
    assert states[detached] == "running"
    assert len(states) == 2
    out, _ = shell.run("down")
    assert f"ended {detached} ({shell.folder / 'other.jsonl'})" in out
    assert "rows are done; the same command goes on" in out


def test_a_killed_manager_is_replaced_under_its_commands(shell: Shell) -> None:
    shell.run("up --workers 2")
    shell.rows(2_000)
    command = shell.start("run in.jsonl -o out.jsonl --runtime echo")
    _read_until(command, "on pool default")
    detached = shell.run("run in.jsonl -o other.jsonl --runtime echo --detach -q")[0].strip()
    _until(lambda: shell.jobs()[detached]["rows_done"] > 0, "both jobs run")
    killed = shell.manager()
    os.kill(killed, signal.SIGKILL)
    out, err = command.communicate(timeout=LONG_S)
    assert command.returncode == 0, f"{err}\nkilled {killed}\n{shell.logs()}"
    assert "bringing it up again" in err
    assert "2,000 done" in out
    shell.run("run in.jsonl -o other.jsonl --runtime echo")
    for output in ("out.jsonl", "other.jsonl"):
        assert [row["index"] for row in shell.lines(output)] == list(range(2_000))


def test_a_crashed_pool_is_brought_up_again_by_who_needs_it(shell: Shell) -> None:
    shell.run("up --workers 1")
    shell.rows(100_000)
    detached = shell.run("run in.jsonl -o out.jsonl --runtime echo --detach -q")[0].strip()
    os.kill(shell.manager(), signal.SIGKILL)
    _until(lambda: not is_up(shell.pool()), "its manager is gone")
    assert "up again after its manager had ended; its jobs go on" in shell.run("up")[0]
    os.kill(shell.manager(), signal.SIGKILL)
    _until(lambda: not is_up(shell.pool()), "its manager is gone")
    assert "the manager of pool default had ended; it is up again" in shell.run("jobs")[1]
    _until(lambda: shell.jobs().get(detached, {}).get("state") == "running", "the job goes on")
    os.kill(shell.manager(), signal.SIGKILL)
    _until(lambda: not is_up(shell.pool()), "its manager is gone")
    shell.rows(10, {"prompt": "y"}, "few.jsonl")
    _, err = shell.run("run few.jsonl -o few.out.jsonl --runtime echo")
    assert "the manager of pool default had ended; it is up again" in err
    os.kill(shell.manager(), signal.SIGKILL)
    _until(lambda: not is_up(shell.pool()), "its manager is gone")
    out, _ = shell.run("down")
    assert "ended 1 job; what was written stays" in out
    assert "its manager had ended before" in out
    assert shell.processes() == []
    assert "pool default is up: 2 workers" in shell.run("up --workers 2")[0]
    ended = shell.jobs()[detached]
    assert ended["state"] == "cancelled"
    assert "taken down" in ended["message"]


def test_a_manager_that_hangs_is_ended_all_the_same(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotlight.client import lasting

    shell.run("up --workers 1")
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(shell.folder / "s"))
    monkeypatch.setattr(lasting, "TALK_S_MAX", 0.5)
    os.kill(shell.manager(), signal.SIGSTOP)
    ended = lasting.take_down("default")
    assert ended is not None
    assert ended.forced
    _until(lambda: not shell.processes(), "all its processes are gone")


def test_named_pools_stand_side_by_side(shell: Shell) -> None:
    shell.rows(10, {"prompt": "x"})
    assert "pilotlight up --pool other" in shell.run("run in.jsonl -o out.jsonl --runtime echo --pool other", code=2)[1]
    out, _ = shell.run("up --pool other --worker speed=0.5,memory=1GB --keep-alive -1")
    assert "pool other is up: 1 worker, 1 of them slower or smaller" in out
    assert "pilotlight down --pool other ends it" in out
    _, err = shell.run("run in.jsonl -o out.jsonl --runtime echo --pool other")
    assert "on pool other (" in err
    _, err = shell.run("run in.jsonl -o own.jsonl --runtime echo --workers 1")
    assert "on pool" not in err
    assert (shell.pool("other") / "pool.json").stat().st_mode & 0o777 == 0o600
    assert shell.pool("other").stat().st_mode & 0o777 == 0o700


SCRIPT = """
import os
import pilotlight as pl

WORDS = {"one", "two", "three"}

@pl.context
def load(path, tags):
    return os.getpid(), sorted(WORDS), path

def answer(state, row):
    return [*state, row]

with pl.Pool.connect() as pool:
    context = load("/data", {"a", "b", "c"})
    results = list(pool.map(answer, ["row"], context=context))
    print(*[context.id, *results[0].value])
"""


def test_two_processes_share_a_live_python_context(shell: Shell) -> None:
    shell.run("up --workers 1")
    (shell.folder / "script.py").write_text(SCRIPT)
    said = [
        subprocess.run(
            [sys.executable, "script.py"],
            cwd=shell.folder,
            env=shell.environment | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]  # the same id, and the same process of a replica
    (context,) = map(json.loads, shell.run("contexts --json")[0].splitlines())
    assert (context["name"], context["used"], len(context["residences"])) == ("load", 2, 1)
