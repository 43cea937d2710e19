"""The dialling side of the gate: from a pool file to a connection that was let in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import msgspec

from pilotlight.connection import Connection
from pilotlight.core.errors import JoinRefused, LinkClosed, PilotlightError
from pilotlight.gate import certificate, sockets
from pilotlight.gate.first import FirstFrame
from pilotlight.gate.handshake import ANSWER_BYTES_MAX, Admitted, Denied, Knock, may_help, read_answer
from pilotlight.gate.invitation import Invitation

CONNECT_S_MAX = 5.0
ANSWER_S_MAX = 10.0


class TurnedAway(JoinRefused):
    """The pool's own manager said no."""


async def dial(
    invitation: Invitation, name: str, ticket: str, union: Any, prepare: Callable[[Connection], None]
) -> tuple[Connection, str]:
    """Connect to the pool of an invitation, trying its addresses in turn; returns the connection and a worker's ticket.

    name, ticket: a worker's; empty for a client. union: what may be received. `prepare` sets the callbacks. Raises
    `LinkClosed` where trying again may help, else `JoinRefused` (`TurnedAway`, if the pool's own manager said so), each
    with one sentence.
    """
    knock = Knock(role=invitation.role, name=name, token=invitation.token, ticket=ticket)
    refusals: list[PilotlightError] = []
    for address in invitation.addresses:
        try:
            first = await _reach(address)
            try:
                answer = await _introduced(first, address, invitation.fingerprint, knock)
                connection = Connection(union)
                prepare(connection)
                first.become(connection)
            except BaseException:
                first.abort()
                raise
        except (LinkClosed, JoinRefused) as error:
            refusals.append(error)
            if isinstance(error, TurnedAway):
                raise
        else:
            return connection, answer.ticket
    final = next((error for error in refusals if isinstance(error, JoinRefused)), None)
    if final is not None:
        raise JoinRefused(str(final))
    raise LinkClosed("; ".join(map(str, refusals)) or "the pool file names no address")


async def _reach(address: str) -> FirstFrame:
    """A TLS connection, to whomever."""
    host, port = sockets.split_address(address)
    first = FirstFrame(ANSWER_BYTES_MAX)
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            sock = await _connected(host, port)
    except TimeoutError:
        raise LinkClosed(
            f"{address} gives no answer: the machine is off, or a firewall drops what goes to that port"
        ) from None
    except socket.gaierror as error:
        raise LinkClosed(f"{host} is not known here: {error.strerror}") from error
    except ConnectionRefusedError:
        raise LinkClosed(f"nobody listens at {address}: is the pool up? (pilotlight up --listen)") from None
    except OSError as error:
        raise LinkClosed(f"{address} can't be reached: {error.strerror or error}") from error
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: first,
            sock=sock,
            ssl=certificate.dialler_context(),
            server_hostname="",
            ssl_handshake_timeout=ANSWER_S_MAX,
            ssl_shutdown_timeout=sockets.SHUTDOWN_S_MAX,
        )
    except ssl.SSLError as error:
        raise JoinRefused(f"what listens at {address} is no Pilotlight manager ({error.reason or error})") from error
    except OSError as error:
        raise LinkClosed(f"{address} closed the connection before it said who it is: {error}") from error
    return first


async def _connected(host: str, port: int) -> socket.socket:
    """A connected socket to the first of the host's addresses that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, kind, protocol, _, place in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, place)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last or OSError("the host has no address")


async def _introduced(first: FirstFrame, address: str, pinned: str, knock: Knock) -> Admitted:
    """Compare the certificate, then knock; who shows another certificate is told nothing."""
    if not certificate.is_pinned(first.peer_certificate(), pinned):
        raise JoinRefused(
            f"{address} shows another certificate than the pool file names: copy that file here anew, or someone "
            "stands in between"
        )
    sockets.tune(first.transport.get_extra_info("socket"), knock.role)
    first.say(msgspec.json.encode(knock))
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            answer = read_answer(await first.body)
    except TimeoutError:
        raise LinkClosed(f"the manager at {address} did not answer in {ANSWER_S_MAX:.0f} s") from None
    if isinstance(answer, Denied):
        text = f"the pool's manager at {address} refuses: {answer.sentence}"
        raise LinkClosed(text) if may_help(answer) else TurnedAway(text)
    return answer
