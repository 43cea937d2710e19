"""What the benchmarks share: CPU time and memory of a tree of processes, input files, a table, a file of figures.

Times on a shared machine say little by themselves, so every benchmark runs its peer in the same run and prints ratios;
CPU time per request, which neighbours disturb least, stands beside the wall time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("BENCH_RESULTS", ROOT / "bench-results"))
SAMPLE_S = 0.05
SCAN_S = 0.25
ROW_BYTES = 200
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ROLES = (("pilotlight.manager", "manager"), ("pilotlight.worker.server", "replicas"), ("worker", "agents"))


def environment() -> dict[str, str]:
    """The environment in which this checkout's `pilotlight` runs, installed or not."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def command(*arguments: object) -> list[str]:
    """The `pilotlight` command of this checkout."""
    return [sys.executable, "-P", "-m", "pilotlight", *map(str, arguments)]


@dataclass
class Usage:
    """CPU seconds and peak resident bytes by role: command, manager, agents, replicas."""

    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def cpu_s_total(self) -> float:
        """Of all processes together."""
        return sum(self.cpu_s.values())


class Tree:
    """Samples a process and all its descendants while it runs; what one did after its last sample (50 ms) is lost."""

    def __init__(self, pid: int, role: str = "command") -> None:
        self._root = pid
        self._role = role
        self._roles: dict[int, str] = {pid: role}
        self._cpu_s: dict[int, float] = {}
        self._peak_bytes: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began_s = time.perf_counter()
        self._thread.start()

    def stop(self) -> Usage:
        """What was used, by role; the peak is of the largest process of a role."""
        wall_s = time.perf_counter() - self._began_s
        self._over.set()
        self._thread.join()
        usage = Usage(wall_s)
        for pid, role in self._roles.items():
            usage.cpu_s[role] = usage.cpu_s.get(role, 0.0) + self._cpu_s.get(pid, 0.0)
            usage.peak_bytes[role] = max(usage.peak_bytes.get(role, 0), self._peak_bytes.get(pid, 0))
        return usage

    def _watch(self) -> None:
        scanned_s = 0.0
        while not self._over.wait(SAMPLE_S):
            if time.perf_counter() - scanned_s > SCAN_S:
                scanned_s = time.perf_counter()
                self._scan()
            for pid in self._roles:
                with contextlib.suppress(OSError, IndexError, ValueError):
                    self._sample(pid)

    def _scan(self) -> None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._root).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = " ".join(child.cmdline())
                    self._roles[child.pid] = next((role for mark, role in _ROLES if mark in words), self._role)

    def _sample(self, pid: int) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self._cpu_s[pid] = (int(fields[11]) + int(fields[12])) * _TICK_S
        status = Path(f"/proc/{pid}/status").read_text()
        at = status.find("VmHWM:")
        if at >= 0:
            self._peak_bytes[pid] = int(status[at:].split()[1]) * 1024


def run(arguments: Sequence[str]) -> Usage:
    """Run a command to its end and measure it and its descendants."""
    process = subprocess.Popen(
        arguments, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    tree = Tree(process.pid)
    assert process.stderr is not None
    said = process.stderr.read()
    process.wait()
    usage = tree.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}:\n{said.decode(errors='replace')}")
    return usage


def manager_pid() -> int:
    """Of the manager that a pool of this process has started."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "pilotlight.manager" in " ".join(child.cmdline()):
                return child.pid
    raise AssertionError("no pool of this process is up")


def write_rows(path: Path, rows: int) -> Path:
    """A file of that many lines of 200 bytes, newline included."""
    filler = "x" * ROW_BYTES
    with path.open("w") as file:
        for index in range(rows):
            head = f'{{"id":{index},"text":"'
            file.write(f'{head}{filler[: ROW_BYTES - len(head) - 3]}"}}\n')
    return path


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for at, name in enumerate(header):
        table.add_column(name, justify="left" if at == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print()


def save(name: str, figures: dict[str, Any]) -> None:
    """Keep figures in bench-results/NAME.json, with what they were measured on."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps({"when": when, "machine": machine, **figures}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
