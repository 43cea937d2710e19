"""A pool's folder: where a named pool has it, what its `pool.json` says, where its sockets are, whether it is up.

The folder of a one-command pool is wherever its client made it. That of a lasting pool is found by host and name, so
that any command on this machine finds the pool; what its manager keeps there: `manager/journal.py`.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
from pathlib import Path
from typing import Literal

import msgspec

from pilotlight.core.errors import ConfigError
from pilotlight.durable import replace_file
from pilotlight.wire import PoolSpec

DEFAULT_NAME = "default"
ENDED = "ended"
"""The file that marks the folder of a pool that was taken down."""
SOCKET_PATH_BYTES_MAX = 107
"""What fits into a Unix socket's address (unix(7)): `socket_dir` is for pools whose folder's path is longer."""

SocketName = Literal["client.sock", "worker.sock"]


def pools_folder() -> Path:
    """Where this machine's lasting pools of this user are, one folder each; it may not be there yet."""
    given = os.environ.get("PILOTLIGHT_STATE_DIR")
    if given:
        base = Path(given).expanduser().absolute()
    else:
        import platformdirs

        base = platformdirs.user_state_path("pilotlight")
    return base / "pools" / (platform.node() or "localhost")


def pool_folder(name: str = DEFAULT_NAME) -> Path:
    """The folder of the lasting pool of that name, or of that folder if there is a slash in it; it may not be there
    yet. Raises `ConfigError`."""
    if "/" in name:
        return Path(os.path.abspath(os.path.expanduser(name)))
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name in {".", ".."}:
        raise ConfigError(f"{name!r} can't name a pool: use 1 to 64 letters, digits, dots, dashes and underscores")
    return pools_folder() / name


def read_spec(pool: Path) -> PoolSpec:
    """What the pool's folder says of it. Raises `ConfigError`."""
    try:
        return msgspec.json.decode((pool / "pool.json").read_bytes(), type=PoolSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{pool} is not a pool's folder: {error}") from error


def write_spec(pool: Path, spec: PoolSpec) -> None:
    """Say what the pool is, for this user's eyes only. Raises `ConfigError` where that can't be written."""
    try:
        replace_file(pool / "pool.json", msgspec.json.encode(spec), sync=False)
    except OSError as error:
        raise ConfigError(f"the pool's folder {pool} can't be written: {error.strerror or error}") from error


def socket_path(pool: Path, spec: PoolSpec, name: SocketName) -> str:
    """Where the pool's manager listens for clients, or for workers."""
    return str(Path(spec.socket_dir or pool) / name)


def remove_sockets(pool: Path, spec: PoolSpec) -> None:
    """Remove what a manager that is gone may have left. For the holder of the manager's lock."""
    for name in ("client.sock", "worker.sock"):
        Path(socket_path(pool, spec, name)).unlink(missing_ok=True)


def mark_ended(pool: Path) -> None:
    """Say that the pool shall not be up any more. Raises OSError."""
    (pool / ENDED).touch(mode=0o600)


def shall_be_up(pool: Path) -> bool:
    """Whether the pool was brought up and not taken down since; its manager may have crashed."""
    return (pool / "pool.json").exists() and not (pool / ENDED).exists()


def is_up(pool: Path) -> bool:
    """Whether a manager serves the pool now."""
    try:
        with (pool / "manager.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def command(verb: str, name: str) -> str:
    """What to type to have that done to the pool of that name."""
    return f"pilotlight {verb}" + ("" if name == DEFAULT_NAME else f" --pool {name}")
