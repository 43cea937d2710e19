"""Where a pool that stays is: what `--pool` may say, and whether its manager runs on another machine.

A pool is called by its name, by its folder (what has a slash in it) or by a client file (`*.json`, as the pool's folder
has it). A pool's folder may be on a file system that several machines share; then the client file in it says which of
them its manager ran on last.
"""

from __future__ import annotations

import platform
from pathlib import Path

from pilotlight.client.session import Session
from pilotlight.core.errors import ConfigError, JobCancelled, PilotlightError
from pilotlight.gate.invitation import Invitation, path_of, read_invitation
from pilotlight.messages import Hello
from pilotlight.poolfile import pool_folder, shall_be_up

ANSWER_S_MAX = 10.0


def file_of(pool: str) -> Path | None:
    """The client file that is meant, if it is one."""
    return Path(pool).expanduser() if pool.endswith(".json") else None


def folder_of(pool: str) -> Path:
    """The folder of a pool that a command of this machine can start or end. Raises `ConfigError` for a client file."""
    if file_of(pool) is not None:
        raise ConfigError(f"{pool} leads to a pool but can't start one: name the pool, or its folder")
    return pool_folder(pool)


def elsewhere(pool: str) -> Invitation | None:
    """The way to a pool that is reached through its gate: a client file says so, or its manager ran last on another
    machine. Raises `ConfigError` for a file that can't be read."""
    file = file_of(pool)
    if file is not None:
        return read_invitation(file, "client")
    folder = pool_folder(pool)
    if not shall_be_up(folder) or not path_of(folder, "client").exists():
        return None
    invitation = read_invitation(path_of(folder, "client"), "client")
    return invitation if invitation.host != platform.node() else None


def answers(invitation: Invitation) -> bool:
    """Whether a manager lets us in there now."""
    session = Session([])
    try:
        session.open(invitation, Hello(), timeout_s=ANSWER_S_MAX)
    except PilotlightError:
        return False
    session.close(grace_s=0.0, error=JobCancelled("it was only asked whether it is there"))
    return True


def check_paths(pool: str, paths: list[Path]) -> bool:
    """Whether files are to be looked at here before a job is handed in: not where the pool is known by a client file.
    Then the manager opens them, and relative ones mean nothing to it: raises `ConfigError`."""
    if file_of(pool) is None:
        return True
    invitation = elsewhere(pool)
    host = invitation.host if invitation is not None else ""
    for path in paths:
        if not path.is_absolute():
            raise ConfigError(
                f"{path} is a relative path, and pool {pool} reads and writes files of {host}: give an absolute path "
                "of that machine"
            )
    return False
