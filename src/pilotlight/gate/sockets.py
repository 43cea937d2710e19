"""How sockets between machines are set up, and how their addresses are written."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket

from pilotlight.core.errors import ConfigError
from pilotlight.gate.tokens import Role

SHUTDOWN_S_MAX = 2.0
"""How long a peer may take to answer the end of TLS."""
VANISHED_S: dict[Role, float] = {"worker": 3.0, "client": 60.0}
"""A peer whose machine answers nothing for so long has vanished. A suspended client may be long in reading."""


def tune(sock: socket.socket, role: Role) -> None:
    """Send small messages at once, and notice a peer that vanished without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    vanished_s = VANISHED_S[role]
    options = {  # tcp(7); not every system has them all
        "TCP_KEEPIDLE": max(1, int(vanished_s / 3)),
        "TCP_KEEPINTVL": max(1, int(vanished_s / 3)),
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": int(vanished_s * 1000),
    }
    for name, value in options.items():
        number = getattr(socket, name, None)
        if number is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, number, value)


def split_address(text: str, port: int | None = None) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[HOST]:PORT` or `:PORT`; `port` is what a missing one stands for. Raises
    `ConfigError`."""
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", text)
    if found is None or (found[3] is None and port is None) or int(found[3] or 0) >= 65536:
        raise ConfigError(f"{text!r} is no address: write HOST:PORT")
    return found[1] or found[2] or "", port if found[3] is None and port is not None else int(found[3])


def address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets where the host has colons."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to that address, which does not listen yet; an empty host means every address. Raises OSError."""
    if not host:
        dual = socket.has_dualstack_ipv6()
        family, place = (socket.AF_INET6, ("::", port)) if dual else (socket.AF_INET, ("0.0.0.0", port))  # noqa: S104
    else:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        dual = False
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(place)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def own_addresses(listen_host: str, port: int) -> list[str]:
    """Where others may reach a port of this machine that listens on that host, likeliest first."""
    if listen_host not in {"", "0.0.0.0", "::"}:  # noqa: S104 - it is compared with
        return [address(listen_host, port)]
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    hosts = [platform.node()] if platform.node() else []
    for name, entries in psutil.net_if_addrs().items():
        if name in up:
            ips = [entry.address for entry in entries if entry.family in {socket.AF_INET, socket.AF_INET6}]
            hosts += [ip for ip in ips if not (ip == "::1" or ip.startswith(("127.", "fe80:")))]
    return [address(host, port) for host in dict.fromkeys(hosts)] or [address("localhost", port)]
