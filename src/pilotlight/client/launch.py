"""Starting and ending a manager's process, and the pool of one command that goes with it.

The manager is always a process of its own, in a session of its own, so that Ctrl-C in a terminal reaches only the
client. Who uses a one-command pool's folder holds a lock in it, so that folders of killed pools can be told from living
ones and are swept. Lasting pools: `lasting.py`. What is said over the socket: `connection.py`.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pilotlight.client import folders
from pilotlight.core import errors
from pilotlight.core.errors import ConfigError, PilotlightError
from pilotlight.poolfile import socket_path, write_spec
from pilotlight.wire import PoolSpec, WorkerShape

START_S_MAX = 60.0
"""A manager imports little; one that is not ready by then hangs."""
END_S_MAX = 10.0


@dataclass
class OwnPool:
    """The pool of one command, whose manager said that it is ready. `end` is to be called once, whatever happened."""

    folder: Path
    spec: PoolSpec
    process: subprocess.Popen[bytes]
    _lock: IO[bytes] = field(repr=False)

    @property
    def log_dir(self) -> Path:
        """Where its processes write."""
        return Path(self.spec.log_dir)

    @property
    def socket(self) -> str:
        """Where its manager listens for clients."""
        return socket_path(self.folder, self.spec, "client.sock")

    def end(self, grace_s: float = END_S_MAX) -> None:
        """Wait for the manager to leave (it was told to), force it after `grace_s`, and remove what it used, but for
        the logs."""
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            # Its workers watch it and end by themselves; the group is what has not left its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def launch(
    *,
    workers: int,
    shapes: Sequence[WorkerShape] = (),
    orphan_timeout_s: float = 2.0,
    command: list[str] | None = None,
) -> OwnPool:
    """Start the manager of a one-client pool and wait until it listens.

    `command` replaces `python -m pilotlight.manager`, for tests; it gets the same arguments.
    Raises the error that the manager names, or `PilotlightError` with the end of its log.
    """
    base = folders.base_folder()
    folders.sweep(base)
    log_dir = folders.new_log_folder(folders.logs_folder(), "PILOTLIGHT_LOG_DIR")
    folder = base / f"pilotlight-{os.getuid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    lock = folders.lock_folder(folder)
    spec = PoolSpec(
        workers=workers,
        shapes=list(shapes),
        orphan_timeout_s=orphan_timeout_s,
        log_dir=str(log_dir),
        python=python(),
    )
    try:
        write_spec(folder, spec)
        process = start_manager(folder, spec, command=command)
    except BaseException:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return OwnPool(folder, spec, process, lock)


def python() -> str:
    """The interpreter for manager and workers: this one. Raises `ConfigError`."""
    if not sys.executable:
        raise ConfigError("this Python does not know its own executable, so no manager can be started")
    return sys.executable


def start_manager(
    folder: Path,
    spec: PoolSpec,
    *,
    command: list[str] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start the manager of the pool in `folder`, which has its `pool.json`, and wait until it listens.

    Raises as `launch` does; then no process is left.
    """
    ready, ready_child = os.pipe()
    log_path = Path(spec.log_dir) / "manager.log"
    # -P: a file in the current folder must not shadow a module.
    argv = [*(command or [spec.python, "-P", "-m", "pilotlight.manager"]), str(folder), "--ready-fd"]
    try:
        with log_path.open("ab") as log:
            log_begin = log.tell()
            process = subprocess.Popen(
                [*argv, str(ready_child)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_child],
                start_new_session=True,
                env=environment,
                cwd=cwd,
            )
    except OSError as error:
        os.close(ready)
        raise PilotlightError(f"the manager can't be started: {error}") from error
    finally:
        os.close(ready_child)
    try:
        _await_ready(ready, process, log_path, log_begin)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        os.close(ready)
    return process


def _await_ready(ready: int, process: subprocess.Popen[bytes], log_path: Path, log_begin: int) -> None:
    said = b""
    deadline = time.monotonic() + START_S_MAX
    while b"\n" not in said:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ready], [], [], left)[0]:
            raise PilotlightError(f"the manager was not ready after {START_S_MAX:.0f} s{_tail(log_path, log_begin)}")
        part = os.read(ready, 65536)
        if not part:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            how = f"exit status {process.returncode}"
            raise PilotlightError(f"the manager ended before it was ready ({how}){_tail(log_path, log_begin)}")
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


def _tail(log_path: Path, begin: int) -> str:
    with log_path.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").strip().splitlines()[-15:]
    return "; the end of its log:\n  " + "\n  ".join(lines) if lines else f"; its log is {log_path}"


# --- defaults ------------------------------------------------------------------------------------------------


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
