"""Pool files: what a worker or a client of another machine is given, as a file that only its user may read.

The pool's folder has two, `worker.json` and `client.json`. They name where to dial, whose certificate to expect there,
and a token; fields of later releases are passed over.
"""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec

from pilotlight.core.errors import ConfigError
from pilotlight.durable import replace_file
from pilotlight.gate.tokens import Role


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool file says.

    addresses: `host:port`, to be tried in this order. fingerprint: SHA-256 of the certificate, in hexadecimal. host:
    the machine that the manager runs on, as it calls itself. epoch: which of the pool's managers wrote this. expires_s:
    when the token expires, in Unix time by the manager's clock. orphan_timeout_s, grace_s: as in `wire.PoolSpec`.
    """

    pool: str
    role: Role
    addresses: list[str]
    fingerprint: str
    token: str
    expires_s: float
    host: str
    epoch: int = 0
    orphan_timeout_s: float = 600.0
    grace_s: float = 20.0


def path_of(pool: Path, role: Role) -> Path:
    """Where a pool's folder has its pool file for that role."""
    return pool / f"{role}.json"


def write_invitation(path: Path, invitation: Invitation) -> None:
    """Write a pool file anew, for this user's eyes only. Raises OSError."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(invitation)) + b"\n")


def read_invitation(path: Path, role: Role) -> Invitation:
    """A pool file for that role. Raises `ConfigError` where it can't be read, or others than its user may."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the pool file {path} can't be read: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"the pool file {path} holds a secret and others may read it: chmod 600 {path}")
    try:
        invitation = msgspec.json.decode(data, type=Invitation)
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is no pool file: {error}") from error
    if invitation.role != role:
        other = path.with_name(f"{role}.json").name
        raise ConfigError(f"{path} is the pool file of a {invitation.role}: a {role} needs the pool's {other}")
    return invitation
