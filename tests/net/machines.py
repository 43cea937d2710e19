"""A pool over several hosts, as a user has it: `pilotlight up` on the first, `pilotlight worker` on the others."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.harness import Playground
from tests.net.lan import Host, Lan, lan

WAIT_S = 60.0


@dataclass
class Machines:
    """Hosts whose first has the manager and the clients. The pool's folder is on the file system that all share."""

    ground: Playground
    net: Lan
    port: int = 7070
    up_options: tuple[str, ...] = ()

    @property
    def pool(self) -> Path:
        """The pool's folder."""
        return self.ground.folder / "pool"

    def environment(self, host: Host) -> dict[str, str]:
        """What a command there has: a temporary folder, a home and a cache on its own disk."""
        own = {"TMPDIR": "tmp", "HOME": "home", "PILOTLIGHT_CACHE": "cache", "PILOTLIGHT_STATE_DIR": "state"}
        return self.ground.environment | {name: str(host.disk / folder) for name, folder in own.items()}

    def start(self, host: Host, *arguments: str | Path, quiet: bool = False) -> subprocess.Popen[str]:
        """Start `pilotlight ...` there. quiet: into a log on its disk."""
        command = [sys.executable, "-m", "pilotlight", *map(str, arguments)]
        if not quiet:
            return host.start(command, self.environment(host), output=subprocess.PIPE, folder=self.ground.folder)
        with (host.disk / "home" / f"{arguments[0]}.log").open("ab") as log:
            return host.start(command, self.environment(host), output=log, folder=self.ground.folder)

    def run(self, host: Host, *arguments: str | Path, timeout_s: float = WAIT_S) -> tuple[int, str]:
        """Run `pilotlight ...` there to its end; its exit code and all it said."""
        command = self.start(host, *arguments)
        try:
            said, _ = command.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            command.kill()
            raise AssertionError(f"{arguments} took more than {timeout_s} s\n{self.logs()}") from None
        return command.returncode, said

    def up(self, host: Host | None = None) -> str:
        """Start a manager, on the first host unless told otherwise."""
        host = host or self.net.hosts[0]
        listen = ("--listen", f"{host.address}:{self.port}")
        code, said = self.run(host, "up", "--pool", self.pool, "--workers", "0", *listen, *self.up_options)
        assert code == 0, f"{said}\n{self.logs()}"
        return said

    def down(self) -> str:
        """End the pool."""
        code, said = self.run(self.net.hosts[0], "down", "--pool", self.pool)
        assert code == 0, f"{said}\n{self.logs()}"
        return said

    def worker(self, host: Host, name: str | None = None, *options: str) -> subprocess.Popen[str]:
        """Start a worker there."""
        named = ("--name", name) if name else ()
        return self.start(host, "worker", "--pool", self.pool / "worker.json", *named, *options, quiet=True)

    def processes(self, role: str, hosts: list[Host] | None = None) -> list[int]:
        """Process ids of a role (manager, worker, replica, ...) on those hosts."""
        here = {p.pid for host in hosts or self.net.hosts for p in host.processes()}
        return [pid for pid in self.ground.by_role().get(role, []) if pid in here]

    def kill(self, role: str, choice: random.Random, number: int = signal.SIGKILL) -> None:
        """Signal one of a role, where there is one."""
        if pids := self.processes(role):
            with contextlib.suppress(ProcessLookupError):
                os.kill(choice.choice(sorted(pids)), number)

    def until(self, what: Callable[[], object], why: str, within_s: float = WAIT_S) -> None:
        """Wait for something."""
        deadline = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < deadline, f"{why} in {within_s} s\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """The end of each log, for a failure's message."""
        paths = sorted(self.ground.folder.glob("**/*.log"))
        return "\n".join(f"--- {path.relative_to(self.ground.folder)}\n{path.read_text()[-1500:]}" for path in paths)

    def assert_clean(self, within_s: float = 10.0) -> None:
        """Nothing of ours runs on any host, and no temporary folder is left where the power stayed on."""
        left: list[str] = []
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            left = [str(path) for host in self.net.hosts if not host.crashed for path in (host.disk / "tmp").iterdir()]
            for host in self.net.hosts:
                for process in host.processes():
                    with contextlib.suppress(psutil.Error):
                        left.append(f"{host.name}: {process.pid} {' '.join(process.cmdline())}")
            if not left:
                return
            time.sleep(0.05)
        raise AssertionError(f"left behind: {left}\n{self.logs()}")


@contextlib.contextmanager
def machines(
    ground: Playground, hosts: int, rate: str = "1gbit", up_options: tuple[str, ...] = ()
) -> Generator[Machines]:
    """Hosts that are on, and a pool that is up without a worker; all is gone afterwards, whatever happened."""
    with lan(ground.folder, hosts, rate) as net:
        made = Machines(ground, net, up_options=up_options)
        made.up()
        yield made
