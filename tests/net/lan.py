"""Several machines on one: hosts with an address, a name and processes of their own, on a switch with limited links.

A host is a network, a process, a mount and a host-name namespace (namespaces(7)). What it runs ends with it, all at
once, as when the power goes. The file system is everybody's, like a shared one; whoever wants a disk of its own uses
`Host.disk`. Needs root, iproute2 and util-linux; a firewall needs iptables.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

TOOLS = ("ip", "tc", "nsenter", "unshare", "iptables")
NETWORK = "10.77.0"
START_S_MAX = 10.0
CLONE_NEWNET = 0x40000000
INIT = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execvp('sleep', ['sleep', 'infinity'])"
"""What a host's first process does: take the name, then nothing."""


def missing() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "namespaces need root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} can't be found (Debian: iproute2 util-linux iptables)"
    apart = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "true"]
    tried = subprocess.run(apart, check=False, capture_output=True)
    return "" if tried.returncode == 0 else f"namespaces can't be made: {tried.stderr.decode().strip()}"


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Host:
    """One machine. number: from 1; disk: a folder that only it uses."""

    lan: Lan
    number: int
    disk: Path
    crashed: bool = False
    """Whether its power ever failed: what was on its disk is there still."""
    _holder: subprocess.Popen[bytes] | None = None
    _init: int = 0
    _started: list[subprocess.Popen[str]] = field(default_factory=list[subprocess.Popen[str]])

    @property
    def name(self) -> str:
        """Its host name."""
        return f"{self.lan.prefix}h{self.number}"

    @property
    def address(self) -> str:
        """Its address on the network."""
        return f"{NETWORK}.{self.number}"

    # --- power

    def on(self) -> None:
        """Switch it on: it runs nothing yet."""
        assert self._holder is None, f"{self.name} is on"
        apart = ["unshare", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child=KILL"]
        self._holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}", *apart, "python3", "-c", INIT, self.name],
            stdin=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_S_MAX
        while time.monotonic() < until:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._holder.pid).children(recursive=True):
                    if child.name() == "sleep":
                        self._init = child.pid
                        return
            time.sleep(0.01)
        raise AssertionError(f"{self.name} does not start")

    def off(self) -> None:
        """Cut its power: every process ends at once. Its kernel still says goodbye; see `vanish`."""
        if self._holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            self._holder.kill()
            self._holder.wait()
            self._holder = None
        for process in self._started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._started.clear()

    def crash(self) -> None:
        """Cut its power, with all that runs."""
        self.crashed = True
        self.off()

    def vanish(self) -> None:
        """Cut its link, then its power: nobody hears of it any more."""
        self.cut()
        self.crash()

    # --- processes

    @property
    def entry(self) -> list[str]:
        """What runs the command after it there."""
        assert self._holder is not None, f"{self.name} is off"
        return ["nsenter", f"--target={self._init}", "--net", "--uts", "--pid", "--mount"]

    def start(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        output: IO[Any] | int = subprocess.DEVNULL,
        folder: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Run a command there. The process is nsenter's, which ends as the command ends."""
        process = subprocess.Popen(
            [*self.entry, f"--wd={folder or self.disk}", *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    @contextlib.contextmanager
    def inside(self) -> Generator[None]:
        """What this thread opens in the block is a socket of that host's network; those that it has stay where they
        are (setns(2), which Python has since 3.12 only)."""
        with open("/proc/thread-self/ns/net", "rb") as own, open(f"/run/netns/{self.name}", "rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())

    def processes(self) -> list[psutil.Process]:
        """What runs there, its first process apart. Process ids are this machine's."""
        if self._holder is None:
            return []
        space = os.readlink(f"/proc/{self._init}/ns/pid")
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline", "status"]):
            with contextlib.suppress(OSError, psutil.Error):
                is_here = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                if is_here and process.pid != self._init and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def listening(self) -> set[tuple[str, int]]:
        """TCP sockets that wait for somebody there: address and port."""
        lines = _run("nsenter", f"--net=/run/netns/{self.name}", "ss", "-Hltn").splitlines()
        ends = [line.split()[3].rpartition(":") for line in lines]
        return {(address.strip("[]"), int(port)) for address, _, port in ends}

    # --- the network

    def cut(self) -> None:
        """Pull its plug."""
        _run("ip", "-n", self.lan.switch, "link", "set", f"p{self.number}", "down")

    def heal(self) -> None:
        """Put the plug back."""
        _run("ip", "-n", self.lan.switch, "link", "set", f"p{self.number}", "up")

    def limit(self, rate: str) -> None:
        """Change how fast its link is, both ways: `100mbit`."""
        shape = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "20ms")
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", *shape)
        _run("tc", "-n", self.lan.switch, "qdisc", "replace", "dev", f"p{self.number}", *shape)

    def admit_nothing(self, *, dial: tuple[str, int]) -> None:
        """A firewall: nothing comes in but answers, and nothing goes out but to that address and port."""
        host, port = dial
        for chain, rule in (
            ("INPUT", ("-i", "lo")),
            ("OUTPUT", ("-o", "lo")),
            ("INPUT", ("-p", "tcp", "-s", host, "--sport", str(port), "!", "--syn")),
            ("OUTPUT", ("-p", "tcp", "-d", host, "--dport", str(port))),
        ):
            self._firewall("-A", chain, *rule, "-j", "ACCEPT")
        for chain in ("INPUT", "OUTPUT", "FORWARD"):
            self._firewall("-P", chain, "DROP")

    def _firewall(self, *rule: str) -> None:
        _run("nsenter", f"--net=/run/netns/{self.name}", "iptables", "-w", *rule)

    def sent_bytes(self) -> int:
        """What it has sent over its link so far."""
        (told,) = json.loads(_run("ip", "-n", self.name, "-s", "-j", "link", "show", "dev", "eth0"))
        return int(told["stats64"]["tx"]["bytes"])


@dataclass
class Lan:
    """Hosts on one switch. prefix: tells networks apart that are there at the same time."""

    folder: Path
    prefix: str
    hosts: list[Host] = field(default_factory=list[Host])

    @property
    def switch(self) -> str:
        """The namespace that has the bridge."""
        return f"{self.prefix}sw"

    def make(self, hosts: int, rate: str) -> None:
        """Plug everything together, and switch it on."""
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "br0", "up")
        for number in range(1, hosts + 1):
            disk = self.folder / f"disk{number}"
            for name in ("tmp", "home", "cache"):
                (disk / name).mkdir(parents=True)
            host = Host(self, number, disk)
            port = f"p{number}"
            _run("ip", "netns", "add", host.name)
            self.hosts.append(host)
            pair = ("type", "veth", "peer", "name", "eth0", "netns", host.name)
            _run("ip", "-n", self.switch, "link", "add", port, *pair)
            _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", host.name, "link", "set", device, "up")
            _run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")
            host.limit(rate)
            host.on()

    def close(self) -> None:
        """Switch all off and take it apart."""
        for host in self.hosts:
            host.off()
        for name in [self.switch, *(host.name for host in self.hosts)]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def lan(folder: Path, hosts: int, rate: str = "1gbit") -> Generator[Lan]:
    """A network of so many hosts whose disks are below `folder`; gone afterwards."""
    made = Lan(folder, f"pl{os.getpid()}")
    try:
        made.make(hosts, rate)
        yield made
    finally:
        made.close()
