"""Where pools of one command and logs are on this machine: private, short enough for sockets, swept when left behind.

Where a lasting pool's folder is: `poolfile.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import IO

from pilotlight.core.errors import ConfigError
from pilotlight.poolfile import SOCKET_PATH_BYTES_MAX

STALE_S_MIN = 1.0
"""A younger folder may belong to a client that has not taken its lock yet."""
LOG_RUNS_MAX = 10
_SOCKET_NAME_BYTES_MAX = 24


# --- pools of one command --------------------------------------------------------------------------------------


def base_folder(*, lasting: bool = False) -> Path:
    """Where folders with sockets go: a Unix socket's path must be short, and the folder private. `lasting`: not where
    it ends with the user's last session. Raises `ConfigError`."""
    choices = [tempfile.gettempdir(), "/tmp"]  # noqa: S108 - the pool's folder in it is made 0700 and is random
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_dir and not lasting and _is_ours(Path(runtime_dir)):
        choices.insert(0, runtime_dir)
    name_bytes = len(f"/pilotlight-{os.getuid()}-00000000/") + _SOCKET_NAME_BYTES_MAX
    for choice in choices:
        fits = len(os.fsencode(choice)) + name_bytes <= SOCKET_PATH_BYTES_MAX
        if fits and os.access(choice, os.W_OK | os.X_OK):
            return Path(choice)
    tried = ", ".join(dict.fromkeys(choices))
    raise ConfigError(f"no folder for the pool's sockets: {tried} must be writable and the path short (set TMPDIR)")


def socket_folder(pool: Path) -> str:
    """Where a lasting pool's sockets go: empty if its own folder's path is short enough, else a folder that is made
    here. Raises `ConfigError`."""
    if len(os.fsencode(pool)) + 1 + len("worker.sock") <= SOCKET_PATH_BYTES_MAX:
        return ""
    name = f"pilotlight-pool-{os.getuid()}-{hashlib.sha256(os.fsencode(pool)).hexdigest()[:8]}"
    folder = base_folder(lasting=True) / name
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ConfigError(f"{folder} is not a private folder of yours: remove it, or set TMPDIR") from None
    return str(folder)


def lock_folder(folder: Path) -> IO[bytes]:
    """Say that a living client uses this folder; the lock ends with the process."""
    lock = (folder / "owner").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def sweep(base: Path) -> list[Path]:
    """Remove this user's pool folders that neither a client nor a manager uses; returns them."""
    removed: list[Path] = []
    for folder in base.glob(f"pilotlight-{os.getuid()}-*"):
        try:
            young = time.time() - folder.stat().st_mtime < STALE_S_MIN
        except OSError:
            continue
        if not young and _is_ours(folder) and not any(_is_locked(folder / name) for name in ("owner", "manager.lock")):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _is_ours(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# --- logs ------------------------------------------------------------------------------------------------------


def logs_folder() -> Path:
    """Where the logs of one-command pools are, a folder each; it may not be there yet."""
    given = os.environ.get("PILOTLIGHT_LOG_DIR")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return platformdirs.user_log_path("pilotlight")


def new_log_folder(base: Path, variable: str) -> Path:
    """A fresh folder for the logs of a pool's processes, named by time and process; the oldest are removed.
    `variable`: what the user can set to have it elsewhere. Raises `ConfigError`."""
    make_folder(base, "logs", variable)
    try:
        _prune_logs(base)
        return Path(tempfile.mkdtemp(prefix=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-", dir=base))
    except OSError as error:
        raise _unusable(base, "logs", variable, error.strerror or "") from error


def make_folder(folder: Path, what: str, variable: str) -> None:
    """Make a private folder with what is above it, but never a home folder. Raises `ConfigError`."""
    home = Path.home()
    if home in folder.parents and not home.is_dir():
        raise _unusable(folder, what, variable, f"the home folder {home} does not exist")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, what, variable, error.strerror or "") from error


def _unusable(folder: Path, what: str, variable: str, why: str) -> ConfigError:
    return ConfigError(f"no {what} can be written in {folder} ({why}); set {variable} to a folder that can")


def _prune_logs(base: Path) -> None:
    runs = sorted(path for path in base.iterdir() if path.is_dir() and path.name.count("-") >= 3)
    for run in runs[: max(0, len(runs) - LOG_RUNS_MAX + 1)]:
        if not _is_running(run.name.split("-")[2]):
            shutil.rmtree(run, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
