"""`pilotlight worker`: a worker for a pool on another machine, started by hand or by a batch script."""

from __future__ import annotations

import platform
import re
import secrets
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.core.errors import ConfigError
from pilotlight.gate.invitation import path_of

_OWN_NAME = re.compile(r"worker-[0-9-]*")
_HOST_CHARS_MAX = 50


def worker(
    *,
    pool: Annotated[Path, Parameter(help="The pool's worker.json, here or on a shared file system.")],
    name: Annotated[
        str | None,
        Parameter(help="What it is called, unlike any other; unset: the host and a few letters."),
    ] = None,
    cache: Annotated[
        Path | None,
        Parameter(help="Where this machine keeps copies of model files; unset: PILOTLIGHT_CACHE, else its scratch."),
    ] = None,
    serve: Annotated[
        bool, Parameter(help="Let workers of other machines fetch model files from here, where they can reach it.")
    ] = True,
    serve_port: Annotated[int, Parameter(help="The port for that, if a firewall lets only some through; 0: any.")] = 0,
) -> int:
    """Work for a pool on another machine, with all the GPUs that this process may see (else its CPUs).

    It dials out, needs no open port, and stays until the pool ends, a signal drains it, or it has been without a
    manager for long. Start it in a batch script, a screen session or an SSH line, as often as you like.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ConfigError(f"{name!r} can't name a worker: use 1 to 64 letters, digits, dots, dashes and underscores")
    if name is not None and _OWN_NAME.fullmatch(name):
        raise ConfigError(f"{name} is what pools call workers of their own: give another --name")
    from pilotlight.worker.__main__ import dial_in

    if not 0 <= serve_port <= 65535:
        raise ConfigError(f"--serve-port {serve_port} is no port: give one from 1 to 65535, or 0 for any")
    if serve_port and not serve:
        raise ConfigError("--serve-port and --no-serve can't both be given")

    file = path_of(pool, "worker") if pool.is_dir() else pool
    port = serve_port if serve else None
    dial_in(file, name or _default_name(), "" if cache is None else str(cache), port)
    return 0


def _default_name() -> str:
    host = re.sub(r"[^A-Za-z0-9_-]", "-", platform.node().partition(".")[0])[:_HOST_CHARS_MAX]
    return f"{host or 'host'}-{secrets.token_hex(3)}"
