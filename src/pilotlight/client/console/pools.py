"""Which pool a command uses: the default one where that is up, one that is named, or workers of its own."""

from __future__ import annotations

import sys

from pilotlight.client import lasting
from pilotlight.client.console.options import RunOptions
from pilotlight.client.pool import Pool
from pilotlight.core.errors import ConfigError
from pilotlight.poolfile import DEFAULT_NAME, is_up, pool_folder, read_spec


def choose_pool(options: RunOptions, *, watch_s: float = 0.5) -> Pool:
    """The pool, not started. One that shall be up and whose manager crashed is brought up again.

    Raises `ConfigError` for a named pool that is not up, and for options that the pool makes void.
    """
    name = options.pool or DEFAULT_NAME
    if options.no_pool or not _is_there(name, options):
        if options.pool is not None:
            raise ConfigError(f"pool {name} is not up; start it first: {lasting.command('up', name)}")
        if options.detach:
            raise ConfigError("--detach needs a pool that stays; start one first: pilotlight up")
        return Pool(options.workers, worker_shapes=options.shapes, watch_s=watch_s)
    given = {"--workers": options.workers is not None, "--worker": bool(options.worker)}
    if void := [option for option, is_given in given.items() if is_given]:
        spec = read_spec(pool_folder(name))
        raise ConfigError(
            f"{', '.join(void)} would have no effect: pool {name} is up with {lasting.described(spec)} "
            "(--no-pool starts workers of this command's own)"
        )
    return Pool.connect(name, watch_s=watch_s)


def _is_there(name: str, options: RunOptions) -> bool:
    folder = pool_folder(name)
    if is_up(folder):
        return True
    brought = lasting.revive(name)
    if brought is not None and brought.how == "resumed" and not options.quiet:
        sys.stderr.write(f"pilotlight: {resumed(name)}\n")
    return brought is not None


def resumed(name: str) -> str:
    """What is said when a pool was brought up after a crash."""
    return f"the manager of pool {name} had ended; it is up again ({lasting.command('down', name)} ends it)"
