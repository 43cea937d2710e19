"""Which pool a command uses: the default one where that is up, one that is named, or workers of its own.

A pool that shall be up and whose manager crashed counts as up: whoever connects to it brings it up again.
"""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from pilotlight.client import lasting
from pilotlight.client.console.options import RunOptions
from pilotlight.client.places import elsewhere
from pilotlight.client.pool import Pool
from pilotlight.core.errors import ConfigError
from pilotlight.poolfile import DEFAULT_NAME, is_up, pool_folder, read_spec

PoolName = Annotated[str, Parameter(name="--pool", help="The pool's name, its folder, or its client.json.")]


def choose_pool(options: RunOptions, *, watch_s: float = 0.5) -> Pool:
    """The pool, not connected to yet; raises as `chosen_name` does."""
    name = chosen_name(options)
    if name is None:
        return Pool(options.workers, worker_shapes=options.shapes, watch_s=watch_s)
    return connect(name, watch_s=watch_s, quiet=options.quiet)


def chosen_name(options: RunOptions) -> str | None:
    """Which pool that stays is meant; None: workers of the command's own. Starts nothing.

    Raises `ConfigError` for a named pool that is not up, and for options that would have no effect.
    """
    name = options.pool or DEFAULT_NAME
    if not options.no_pool and elsewhere(name) is not None:
        _refuse_void(options, f"pool {name} has workers of its own")
        return name
    folder = pool_folder(name)
    if options.no_pool or not (is_up(folder) or lasting.shall_be_up(folder)):
        if options.pool is not None:
            raise ConfigError(f"pool {name} is not up; start it first: {lasting.command('up', name)}")
        if options.detach:
            raise ConfigError("--detach needs a pool that stays; start one first: pilotlight up")
        if options.weight is not None:
            raise ConfigError("--weight would have no effect: workers of this command's own have no other job")
        return None
    _refuse_void(options, f"pool {name} is up with {lasting.described(read_spec(folder))}")
    return name


def _refuse_void(options: RunOptions, why: str) -> None:
    given = {"--workers": options.workers is not None, "--worker": bool(options.worker)}
    if void := [option for option, is_given in given.items() if is_given]:
        own = "(--no-pool starts workers of this command's own)"
        raise ConfigError(f"{', '.join(void)} would have no effect: {why} {own}")


def connect(name: str, *, watch_s: float = 0.0, quiet: bool = False) -> Pool:
    """The pool of this name, not connected to yet, brought up again if its manager crashed. Raises `ConfigError` if it
    is not up, and `PilotlightError` if it can't be brought up."""
    brought = lasting.revive(name) if lasting.has_crashed(name) else None
    if brought is not None and brought.how == "resumed" and not quiet:
        end = lasting.command("down", name)
        sys.stderr.write(f"pilotlight: the manager of pool {name} had ended; it is up again ({end} ends it)\n")
    return Pool.connect(name, watch_s=watch_s)
