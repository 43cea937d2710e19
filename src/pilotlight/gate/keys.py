"""What a listening pool keeps in its folder: its key, its certificate, its port, and the pool files it gives out.

gate.key     the pool's secret; without it, all tokens and tickets are void
gate.pem     private key and certificate for TLS
port         the TCP port that it had last
worker.json, client.json    the pool files (`invitation.py`)
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilotlight.core.errors import ConfigError
from pilotlight.durable import replace_file
from pilotlight.gate import certificate, sockets, tokens
from pilotlight.gate.invitation import Invitation, path_of, write_invitation
from pilotlight.wire import PoolSpec

LOOK_S = 600.0
"""How often to see whether tokens are to be renewed."""


@dataclass(frozen=True)
class Keys:
    """The pool's secrets, ready for use. fingerprint: of its certificate, in hexadecimal."""

    key: bytes
    fingerprint: str
    context: ssl.SSLContext


def load_keys(pool: Path) -> Keys:
    """The keys in a pool's folder, made there at first. Raises `ConfigError`."""
    key = _kept(pool / "gate.key", tokens.new_key)
    if len(key) != tokens.KEY_BYTES:
        raise ConfigError(f"{pool / 'gate.key'} is damaged: remove it, and give out the pool files anew")
    pem = _kept(pool / "gate.pem", certificate.make_certificate)
    return Keys(key, certificate.fingerprint_in(pem), certificate.manager_context(pool / "gate.pem"))


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        if not path.exists():
            replace_file(path, make())
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the pool can't keep {path}: {error.strerror or error}") from error


def bind_port(pool: Path, listen: str) -> socket.socket:
    """A socket bound where `listen` says (`HOST:PORT`). Port 0: the one of last time, else any. Raises
    `ConfigError`."""
    host, wanted = sockets.split_address(listen, 0)
    if not wanted:
        with contextlib.suppress(OSError, ValueError):
            return sockets.bind(host, int((pool / "port").read_text()))
    try:
        listener = sockets.bind(host, wanted)
    except OSError as error:
        raise ConfigError(f"the pool can't listen on {listen}: {error.strerror or error}") from error
    try:
        replace_file(pool / "port", f"{listener.getsockname()[1]}\n".encode())
    except OSError as error:
        listener.close()
        raise ConfigError(f"the pool can't keep {pool / 'port'}: {error.strerror or error}") from error
    return listener


class Invitations:
    """Writes the pool files, and renews them while the manager of that epoch is the pool's."""

    def __init__(
        self, pool: Path, spec: PoolSpec, keys: Keys, port: int, epoch: int, note: Callable[[str, str, str], None]
    ) -> None:
        self._pool = pool
        self._spec = spec
        self._keys = keys
        self._epoch = epoch
        self._note = note
        listen_host, _ = sockets.split_address(spec.listen, 0)
        named = [sockets.address(*sockets.split_address(each, port)) for each in spec.advertise]
        self.addresses = named or sockets.own_addresses(listen_host, port)

    def write(self) -> None:
        """Write both. Raises `ConfigError`."""
        expires_s = time.time() + tokens.TOKEN_S
        for role in ("worker", "client"):
            invitation = Invitation(
                pool=self._spec.name,
                role=role,
                addresses=self.addresses,
                fingerprint=self._keys.fingerprint,
                token=tokens.token(self._keys.key, role, expires_s),
                expires_s=expires_s,
                host=platform.node(),
                epoch=self._epoch,
                orphan_timeout_s=self._spec.orphan_timeout_s,
                grace_s=self._spec.grace_s,
            )
            try:
                write_invitation(path_of(self._pool, role), invitation)
            except OSError as error:
                path = path_of(self._pool, role)
                raise ConfigError(f"the pool file {path} can't be written: {error.strerror or error}") from error

    async def keep_fresh(self) -> None:
        """Write them anew whenever half of their tokens' life is over; never ends by itself."""
        renew_at_s = time.time() + tokens.TOKEN_S / 2
        while True:
            await asyncio.sleep(LOOK_S)
            if time.time() >= renew_at_s:
                try:
                    await asyncio.to_thread(self.write)
                except ConfigError as error:
                    self._note("warning", str(error), "")
                else:
                    renew_at_s = time.time() + tokens.TOKEN_S / 2
