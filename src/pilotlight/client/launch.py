"""Starting and ending a pool's manager: its private folder, its process, its logs.

The manager is always a process of its own, in a session of its own, so that Ctrl-C in a terminal reaches only the
client. The folder holds the socket and what the manager is told; who uses a folder holds a lock in it, so that
folders of killed pools can be told from living ones and are swept. What is said over the socket: `connection.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from pilotlight.core import errors
from pilotlight.core.errors import ConfigError, PilotlightError
from pilotlight.wire import PoolSpec

START_S_MAX = 60.0
"""A manager imports little; one that is not ready by then hangs."""
END_S_MAX = 10.0
STALE_S_MIN = 1.0
"""A younger folder may belong to a client that has not taken its lock yet."""
LOG_RUNS_MAX = 10
_SOCKET_PATH_BYTES_MAX = 107
_SOCKET_NAME_BYTES_MAX = 24


def socket_path(folder: Path) -> str:
    """Where the manager of this pool folder listens for clients."""
    return str(folder / "client.sock")


@dataclass
class ManagerProcess:
    """A manager that said it is ready. `end` is to be called once, whatever happened."""

    folder: Path
    log_dir: Path
    process: subprocess.Popen[bytes]
    _lock: IO[bytes] = field(repr=False)

    def end(self, *, keep_logs: bool, grace_s: float = END_S_MAX) -> None:
        """Wait for the manager to leave (it was told to), force it after `grace_s`, and remove what it used."""
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            # Its workers watch it and end by themselves; the group is what has not left its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if not keep_logs:
            shutil.rmtree(self.log_dir, ignore_errors=True)


def launch(*, workers: int, orphan_timeout_s: float = 2.0, command: list[str] | None = None) -> ManagerProcess:
    """Start the manager of a one-client pool and wait until it listens.

    `command` replaces `python -m pilotlight.manager`, for tests; it gets the same arguments.
    Raises the error that the manager names, or `PilotlightError` with the end of its log.
    """
    if not sys.executable:
        raise ConfigError("this Python does not know its own executable, so no manager can be started")
    base = _base_folder()
    sweep(base)
    log_dir = _log_folder()
    folder = base / f"pilotlight-{os.getuid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    lock = _lock_folder(folder)
    try:
        process = _start(folder, log_dir, workers, orphan_timeout_s, command)
    except BaseException:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ManagerProcess(folder, log_dir, process, lock)


def _start(
    folder: Path, log_dir: Path, workers: int, orphan_timeout_s: float, command: list[str] | None
) -> subprocess.Popen[bytes]:
    spec = PoolSpec(
        workers=workers, lasting=False, orphan_timeout_s=orphan_timeout_s, log_dir=str(log_dir), python=sys.executable
    )
    (folder / "pool.json").write_bytes(msgspec.json.encode(spec))
    ready, ready_child = os.pipe()
    log_path = log_dir / "manager.log"
    # -P: a file in the current folder must not shadow a module.
    argv = [*(command or [sys.executable, "-P", "-m", "pilotlight.manager"]), str(folder), "--ready-fd"]
    try:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [*argv, str(ready_child)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_child],
                start_new_session=True,
            )
    finally:
        os.close(ready_child)
    try:
        _await_ready(ready, process, log_path)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        os.close(ready)
    return process


def _await_ready(ready: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    said = b""
    deadline = time.monotonic() + START_S_MAX
    while b"\n" not in said:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ready], [], [], left)[0]:
            raise PilotlightError(f"the manager was not ready after {START_S_MAX:.0f} s{_tail(log_path)}")
        part = os.read(ready, 65536)
        if not part:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            message = f"the manager ended before it was ready (exit status {process.returncode}){_tail(log_path)}"
            raise PilotlightError(message)
        said += part
    line = said.split(b"\n", 1)[0]
    if line != b"ready":
        told = json.loads(line)
        raise named_error(told["kind"], told["message"], told.get("exit_code", 1))


def named_error(kind: str, message: str, exit_code: int = 1) -> PilotlightError:
    """The error of our tree that goes by `kind`, as another process reported it."""
    for leaf in vars(errors).values():
        if isinstance(leaf, type) and issubclass(leaf, PilotlightError) and leaf.kind == kind:
            return leaf(message)
    error = ConfigError(message) if exit_code == ConfigError.exit_code else PilotlightError(message)
    error.kind = kind
    return error


def _tail(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").strip().splitlines()[-15:]
    return "; the end of its log:\n  " + "\n  ".join(lines) if lines else f"; its log is {log_path}"


# --- defaults ----------------------------------------------------------------------------------------------------


def default_workers() -> int:
    """One per visible GPU, else half of the CPUs that we may use, 1 to 4."""
    return gpu_count() or min(4, max(1, cpu_count() // 2))


def cpu_count() -> int:
    """CPUs in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_count() -> int:
    """GPUs (or slices) that CUDA_VISIBLE_DEVICES leaves visible; 0 without a driver. Touches no device."""
    try:
        from pilotlight.worker import devices
    except ImportError:
        return _gpu_count_nvml()
    return sum(device.type == "cuda" for device in devices.find())


def _gpu_count_nvml() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        listed = [entry for entry in visible.split(",") if entry.strip()]
        return len(listed) if listed and listed[0].strip() not in {"-1", "NoDevFiles"} else 0
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return 0
    count = int(pynvml.nvmlDeviceGetCount())
    pynvml.nvmlShutdown()
    return count
