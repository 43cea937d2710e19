"""What proves that somebody may come in: tokens that expire, and tickets for workers that were in before.

Both are made of the pool's key and need no memory: whoever has the key can judge them. A token says for which role and
until when it is good, by the manager's clock alone; a ticket is good for one worker's name and as long as the key is.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Literal

KEY_BYTES = 32
TOKEN_S = 7 * 24 * 3600
"""How long a token is good. It is renewed when half of that is over, so a copied file is good for half a week."""

Role = Literal["worker", "client"]
Verdict = Literal["good", "expired", "unknown"]


def new_key() -> bytes:
    """A pool's secret."""
    return secrets.token_bytes(KEY_BYTES)


def derived(key: bytes, purpose: str) -> bytes:
    """A key for another purpose, from which nobody learns the pool's."""
    return hmac.digest(key, f"key|{purpose}".encode(), hashlib.sha256)


def token(key: bytes, role: Role, expires_s: float) -> str:
    """Good for that role until then, in Unix time."""
    return f"{int(expires_s)}.{_seal(key, f'token|{role}|{int(expires_s)}')}"


def judge_token(key: bytes, role: Role, shown: str, now_s: float) -> Verdict:
    """Whether a token is one of ours, and not over at `now_s` in Unix time."""
    expires, _, seal = shown.partition(".")
    if not (expires.isascii() and expires.isdigit()) or not _equal(seal, _seal(key, f"token|{role}|{expires}")):
        return "unknown"
    return "good" if now_s < int(expires) else "expired"


def ticket(key: bytes, worker: str) -> str:
    """Good for a worker of that name, for as long as the pool has this key."""
    return _seal(key, f"ticket|{worker}")


def is_ticket(key: bytes, worker: str, shown: str) -> bool:
    """Whether a ticket is one of ours, for that worker."""
    return bool(shown) and _equal(shown, ticket(key, worker))


def _seal(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), hashlib.sha256).hex()


def _equal(shown: str, right: str) -> bool:
    return hmac.compare_digest(shown.encode(), right.encode())
