"""Local pilots: workers as child processes of the manager, on its own machine. `ports.PilotProvider`."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pilotlight.core.errors import PilotlightError

END_S_MAX = 5.0
CANCEL_S_MAX = 2.0
"""How long a cancelled worker may take before it is killed."""


@dataclass(slots=True)
class _Pilot:
    process: subprocess.Popen[bytes]
    slot: int
    kill_at_s: float = math.inf


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
                )
        except OSError as error:
            raise PilotlightError(f"a worker can't be started: {error}") from error
        self._pilots[str(process.pid)] = _Pilot(process, free[0])
        return str(process.pid)

    def poll(self) -> dict[str, str]:
        """See `ports.PilotProvider`."""
        ended: dict[str, str] = {}
        for pilot_id, pilot in list(self._pilots.items()):
            if time.monotonic() >= pilot.kill_at_s:
                _kill(pilot.process.pid)
            status = pilot.process.poll()
            if status is not None:
                del self._pilots[pilot_id]
                ended[pilot_id] = _how(status)
        return ended

    def cancel(self, pilot_id: str) -> None:
        """See `ports.PilotProvider`."""
        pilot = self._pilots.get(pilot_id)
        if pilot is not None:
            pilot.process.terminate()
            pilot.kill_at_s = min(pilot.kill_at_s, time.monotonic() + CANCEL_S_MAX)  # `poll` sees to it

    def close(self) -> None:
        """See `ports.PilotProvider`."""
        deadline = time.monotonic() + END_S_MAX
        for pilot in self._pilots.values():
            pilot.process.terminate()
        for pilot in self._pilots.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                pilot.process.wait(max(0.0, deadline - time.monotonic()))
            if pilot.process.poll() is None:
                _kill(pilot.process.pid)
                pilot.process.wait()
        self._pilots.clear()


def _kill(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return (
        f"killed by {signal.Signals(-status).name}" if -status in set(signal.Signals) else f"killed by signal {-status}"
    )
