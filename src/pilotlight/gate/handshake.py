"""The first words on a connection from another machine: who knocks, and whether that one is let in.

They are JSON that passes over fields it does not know, so that any two releases understand each other this far, and
short, so that a stranger costs little. Nothing of `messages.py` is decoded before the answer is `Admitted`.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from pilotlight import __version__
from pilotlight.core.errors import JoinRefused
from pilotlight.gate import tokens
from pilotlight.gate.tokens import Role
from pilotlight.wire import VERSION

KNOCK_BYTES_MAX = 4096
ANSWER_BYTES_MAX = 16384
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

Refusal = Literal["unknown", "expired", "version", "name", "name_taken"]


class Knock(msgspec.Struct, frozen=True, kw_only=True):
    """Said first by who dials. `name` and `ticket` are a worker's; `ticket` is empty when it comes for the first
    time."""

    role: Role
    version: int = VERSION
    release: str = __version__
    name: str = ""
    token: str = ""
    ticket: str = ""


class Admitted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Come in. `ticket`: what a worker shows when it comes again."""

    ticket: str = ""
    release: str = __version__


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stay out, and why: a kind for the program, a sentence with the remedy for its user."""

    kind: str
    sentence: str


Answer = Admitted | Denied


def judge(knock: Knock, key: bytes, now_s: float, *, is_taken: bool) -> Answer:
    """Whether to let somebody in. now_s: Unix time. is_taken: a worker of that name is connected now."""
    came_before = knock.role == "worker" and tokens.is_ticket(key, knock.name, knock.ticket)
    verdict = "good" if came_before else tokens.judge_token(key, knock.role, knock.token, now_s)
    what = f"this {knock.role}"
    if verdict == "unknown":
        return _denied("unknown", f"{what}'s token is none of this pool's: copy its pool file here anew")
    if verdict == "expired":
        return _denied("expired", f"{what}'s token has expired: copy the pool file here anew, its manager renews it")
    if knock.version != VERSION:
        return _denied(
            "version",
            f"{what} runs Pilotlight {knock.release} (wire version {knock.version}), the pool's manager {__version__} "
            f"(wire version {VERSION}): install one release on both machines (pip install pilotlight=={__version__})",
        )
    if knock.role == "client":
        return Admitted()
    if not NAME.fullmatch(knock.name):
        return _denied("name", "a worker's name has 1 to 64 letters, digits, dots, dashes and underscores")
    if is_taken and not came_before:
        return _denied("name_taken", f"a worker called {knock.name} is connected already: give another --name")
    return Admitted(ticket=tokens.ticket(key, knock.name))


def _denied(kind: Refusal, sentence: str) -> Denied:
    return Denied(kind=kind, sentence=sentence)


def may_help(denied: Denied) -> bool:
    """Whether trying again may help: the other worker of that name may be one that has just died."""
    return denied.kind == "name_taken"


def read_knock(body: bytes) -> Knock:
    """Raises `JoinRefused` for what is none."""
    try:
        return msgspec.json.decode(body, type=Knock)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise JoinRefused(f"the first words are no knock: {error}") from error


def read_answer(body: bytes) -> Answer:
    """Raises `JoinRefused` for what is none."""
    try:
        return msgspec.json.decode(body, type=Answer)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise JoinRefused(f"its answer is not understood: {error}") from error
