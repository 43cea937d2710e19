"""What opens a file of a file service: for one digest, until a moment on the clock of the machine that serves it.

A token is that moment and an HMAC-SHA256 over it and the digest, by the service's own key. The manager alone has that
key beside the service, so it alone says who may fetch what; the service keeps no list.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets

KEY_BYTES = 32
LIFE_S = 2 * 3600.0
"""Longer than any fetch takes: a file is resumed with the token that began it."""


def fresh_key() -> bytes:
    """A key for one service's life."""
    return secrets.token_bytes(KEY_BYTES)


def mint(key: bytes, digest: str, until_s: float) -> str:
    """What opens a digest. until_s: by the monotonic clock of the machine that serves it."""
    until = str(math.ceil(until_s))
    return f"{until}.{_seal(key, digest, until)}"


def opens(key: bytes, digest: str, token: str, now_s: float) -> bool:
    """Whether a token opens a digest now. Takes equally long wherever a wrong one differs."""
    until, _, seal = token.partition(".")
    if not hmac.compare_digest(seal.encode("utf-8", "surrogateescape"), _seal(key, digest, until).encode()):
        return False
    return until.isdecimal() and now_s < int(until)


def _seal(key: bytes, digest: str, until: str) -> str:
    return hmac.new(key, f"{digest}|{until}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
