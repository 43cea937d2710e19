"""Runs real commands, finds their real processes, kills them, and looks at what is left.

Everything of one command lives below its own short temporary folder (TMPDIR, HOME), so that leftovers are found by
looking there, and processes by that folder in their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


@dataclass
class Playground:
    """A folder of its own for commands: inputs, outputs, HOME and temporary files."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tmp", "home"):
            (self.folder / name).mkdir()
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in {"XDG_RUNTIME_DIR", "PILOTLIGHT_LOG_DIR"}
            },
            "TMPDIR": str(self.folder / "tmp"),
            "HOME": str(self.folder / "home"),
            "PLAYGROUND": str(self.folder),
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }

    def rows(
        self, count: int, *, name: str = "in.jsonl", sleep_s: float = 0.0, poison: frozenset[int] = frozenset()
    ) -> Path:
        """An input for the echo runtime."""
        path = self.folder / name
        with path.open("w") as file:
            for index in range(count):
                row: dict[str, object] = {"n": index, "text": "x" * (index % 50)}
                if sleep_s:
                    row["sleep_s"] = sleep_s
                if index in poison:
                    row["die"] = True
                file.write(json.dumps(row) + "\n")
        return path

    def start(self, *arguments: str | Path, through: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start `pilotlight ...`. through: a command that runs its command."""
        return subprocess.Popen(
            [*through, sys.executable, "-m", "pilotlight", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str | Path, timeout_s: float = 120) -> tuple[int, str]:
        """Run `pilotlight ...` to its end; its exit code and all it said."""
        command = self.start(*arguments)
        try:
            said, _ = command.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            tree = "\n".join(f"{p.pid} {p.info['cmdline']}" for p in self.processes())
            command.kill()
            said, _ = command.communicate()
            raise AssertionError(f"{arguments} took more than {timeout_s} s:\n{said}\n{tree}\n{self.logs()}") from None
        return command.returncode, said

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started from here."""
        found: list[psutil.Process] = []
        mark = f"PLAYGROUND={self.folder}".encode()
        for process in psutil.process_iter(["pid", "ppid", "cmdline", "status"]):
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if mark in environment and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def by_role(self) -> dict[str, list[int]]:
        """Process ids by what they are: client, manager, worker, guardian, server, replica."""
        roles: dict[str, list[int]] = {}
        processes = {p.pid: p for p in self.processes()}
        for process in processes.values():
            line = " ".join(process.info["cmdline"] or [])
            parent = processes.get(process.info["ppid"])
            parent_line = " ".join(parent.info["cmdline"] or []) if parent else ""
            if "pilotlight.worker.guardian" in line:
                role = "guardian"
            elif "pilotlight.worker.server" in line:
                role = "replica" if "pilotlight.worker.server" in parent_line else "server"
            elif "pilotlight.worker" in line or "pilotlight worker" in line:
                role = "worker"
            elif "pilotlight.manager" in line:
                role = "manager"
            else:
                role = "client"
            roles.setdefault(role, []).append(process.pid)
        return roles

    def kill(self, role: str, choice: random.Random, number: int = signal.SIGKILL) -> int | None:
        """Signal one process of a role, if there is one."""
        pids = sorted(self.by_role().get(role, []))
        if not pids:
            return None
        pid = choice.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def assert_clean(self, within_s: float = 8.0) -> None:
        """No process and no temporary folder of ours is left."""
        deadline = time.monotonic() + within_s
        left: list[str] = []
        while time.monotonic() < deadline:
            left = [f"{p.pid} {' '.join(p.info['cmdline'] or [])}" for p in self.processes()]
            left += [str(path) for path in (self.folder / "tmp").iterdir()]
            if not left:
                return
            time.sleep(0.05)
        raise AssertionError(f"left behind: {left}\n{self.logs()}")

    def logs(self) -> str:
        """All logs, for a failure's message."""
        texts = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("home/**/*.log"))]
        return "\n".join(texts)


@contextlib.contextmanager
def playground() -> Iterator[Playground]:
    """A playground that is swept when the test is over, whatever it left."""
    folder = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))
    ground = Playground(folder)
    try:
        yield ground
    finally:
        for process in ground.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)
