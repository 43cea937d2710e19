"""Local pilots: workers as processes of the manager's own machine. `ports.PilotProvider`.

A pilot's id is `pid:start:slot:host`: the process, when it started (so that a process id that was given out again is
never taken for it), its share of the machine, and which machine that is: on another one the rest means nothing. What an
earlier manager started is not our child: its end is seen through a pidfd where the system has them, else by looking.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import platform
import select
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from pilotlight.core.errors import PilotlightError

END_S_MAX = 5.0
KILLED_S_MAX = 5.0
"""A process that does not end by then after it was killed hangs in the system: nobody can end it."""
CANCEL_S_MAX = 2.0
"""How long a cancelled worker may take before it is killed."""
LOOK_S = 0.02
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_")
"""How variables begin that open other people's models: the manager fetches those, workers run what users send."""


class _Pilot(ABC):
    def __init__(self, pid: int, slot: int) -> None:
        self.pid = pid
        self.slot = slot
        self.kill_at_s = math.inf

    @abstractmethod
    def ended(self) -> str:
        """How it ended; empty while it runs."""

    @abstractmethod
    def signal(self, number: signal.Signals) -> None:
        """Signal it, and nobody else."""

    def kill(self) -> None:
        """Kill it and its group, of which it is the leader."""
        if not self.ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of it."""


class _Child(_Pilot):
    def __init__(self, process: subprocess.Popen[bytes], slot: int) -> None:
        super().__init__(process.pid, slot)
        self._process = process

    def ended(self) -> str:
        status = self._process.poll()
        return "" if status is None else _how(status)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)  # none is sent to one that was reaped


class _Adopted(_Pilot):
    def __init__(self, pid: int, slot: int, started: str) -> None:
        """Raises ProcessLookupError if that very process is gone."""
        super().__init__(pid, slot)
        self._started = started
        self._fd = -1
        if hasattr(os, "pidfd_open"):
            try:
                self._fd = os.pidfd_open(pid)
            except OSError as error:  # a kernel or a sandbox without it says ENOSYS, EINVAL or EPERM
                if error.errno == errno.ESRCH:
                    raise
        if not started or _started(pid) != started:
            self.close()
            raise ProcessLookupError

    def ended(self) -> str:
        return "its process is gone" if self._gone() else ""

    def _gone(self) -> bool:
        if self._fd < 0:
            return _started(self.pid) != self._started
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)  # pidfd_open(2): readable when the process has ended
        return bool(poll.poll(0))

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, number)
            elif not self.ended():
                os.kill(self.pid, number)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LocalProvider:
    """Keeps each worker in a session of its own, with one of `slots` equal shares of the machine."""

    def __init__(self, python: str, pool_dir: str, log_dir: str, slots: int) -> None:
        self._python = python
        self._pool_dir = pool_dir
        self._log_dir = Path(log_dir)
        self._slots = slots
        self._pilots: dict[str, _Pilot] = {}

    def submit(self, name: str) -> str:
        """See `ports.PilotProvider`."""
        taken = {pilot.slot for pilot in self._pilots.values()}
        free = [slot for slot in range(self._slots) if slot not in taken]
        if not free:
            raise PilotlightError(f"all {self._slots} shares of this machine are taken")
        command = [self._python, "-P", "-m", "pilotlight.worker", "--pool", self._pool_dir, "--name", name]
        try:
            with (self._log_dir / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    [*command, "--slot", f"{free[0]}/{self._slots}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={name: value for name, value in os.environ.items() if not name.startswith(SECRETS)},
                )
        except OSError as error:
            raise PilotlightError(f"a worker can't be started: {error}") from error
        pilot_id = f"{process.pid}:{_started(process.pid)}:{free[0]}:{platform.node()}"
        self._pilots[pilot_id] = _Child(process, free[0])
        return pilot_id

    def adopt(self, pilot_id: str) -> bool:
        """See `ports.PilotProvider`."""
        try:
            pid, started, slot, *host = pilot_id.split(":")  # earlier releases named no host
            if host not in ([], [platform.node()]):
                return False
            self._pilots[pilot_id] = _Adopted(int(pid), int(slot), started)
        except (ValueError, OSError):
            return False
        return True

    def poll(self) -> dict[str, str]:
        """See `ports.PilotProvider`."""
        ended: dict[str, str] = {}
        for pilot_id, pilot in list(self._pilots.items()):
            if time.monotonic() >= pilot.kill_at_s:
                pilot.kill()
            if how := pilot.ended():
                pilot.close()
                del self._pilots[pilot_id]
                ended[pilot_id] = how
        return ended

    def cancel(self, pilot_id: str) -> None:
        """See `ports.PilotProvider`."""
        pilot = self._pilots.get(pilot_id)
        if pilot is not None:
            pilot.signal(signal.SIGTERM)
            pilot.kill_at_s = min(pilot.kill_at_s, time.monotonic() + CANCEL_S_MAX)  # `poll` sees to it

    def close(self) -> None:
        """See `ports.PilotProvider`."""
        for pilot in self._pilots.values():
            pilot.signal(signal.SIGTERM)
            pilot.kill_at_s = time.monotonic() + END_S_MAX
        give_up_at_s = time.monotonic() + END_S_MAX + KILLED_S_MAX
        while self._pilots:
            self.poll()
            if time.monotonic() >= give_up_at_s:
                self._leave_behind()
                return
            time.sleep(LOOK_S)

    def _leave_behind(self) -> None:
        for pilot in self._pilots.values():
            with contextlib.suppress(OSError):
                sys.stderr.write(f"worker process {pilot.pid} can't be ended, not even by SIGKILL: it is left behind\n")
            pilot.close()
        self._pilots.clear()


def _started(pid: int) -> str:
    """When a process started, in the system's own words; empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else _started_elsewhere(pid)
    except ProcessLookupError:
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()  # proc_pid_stat(5): fields 3 and 22


def _started_elsewhere(pid: int) -> str:
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return (
        f"killed by {signal.Signals(-status).name}" if -status in set(signal.Signals) else f"killed by signal {-status}"
    )
