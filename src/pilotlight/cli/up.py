"""`pilotlight up` and `pilotlight down`: a pool that stays when commands end, and its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pilotlight.client import checks, lasting
from pilotlight.client.console.options import WORKER
from pilotlight.client.console.pools import PoolName
from pilotlight.client.console.tables import where
from pilotlight.core.errors import ConfigError
from pilotlight.core.story.words import count_text
from pilotlight.gate.invitation import path_of, read_invitation
from pilotlight.gate.sockets import split_address
from pilotlight.poolfile import DEFAULT_NAME
from pilotlight.quantities import duration, duration_s, size_bytes, worker_shape


def up(
    *,
    pool: PoolName = DEFAULT_NAME,
    workers: Annotated[
        int | None, Parameter(help="Workers; unset: one per --worker, else one per GPU, else half of the CPUs, 1 to 4.")
    ] = None,
    worker: Annotated[tuple[str, ...], WORKER] = (),
    keep_alive: Annotated[
        str | None, Parameter(help="How long an idle context stays live: 90s, 10m (as by default), -1 for ever.")
    ] = None,
    cache: Annotated[
        Path | None,
        Parameter(
            help="Where this machine's workers keep copies of model files; unset: PILOTLIGHT_CACHE, else its scratch."
        ),
    ] = None,
    cache_size: Annotated[
        str | None, Parameter(help="How much they may take: 50GB; unset: what the disk allows.")
    ] = None,
    listen: Annotated[
        str | None,
        Parameter(help="Let workers and clients of other machines dial HOST:PORT (:0 is every address, any port)."),
    ] = None,
    advertise: Annotated[
        tuple[str, ...],
        Parameter(
            help="Address that they are told to dial: HOST or HOST:PORT. Repeatable.", negative="", show_default=False
        ),
    ] = (),
) -> int:
    """Start a pool that stays: its contexts are there for the next command.

    It has this command's environment (CUDA_VISIBLE_DEVICES, HF_HOME, ...). Where a pool of that name is up already, it
    says so; where its manager crashed, a new one goes on with its jobs and workers.
    """
    checks.check_numbers(limit=None, workers=None if workers == 0 and listen else workers, max_attempts=1)
    if advertise and listen is None:
        raise ConfigError("--advertise would have no effect without --listen")
    if listen is not None:
        split_address(listen, 0)
    for each in advertise:
        split_address(each, 0)
    wishes = lasting.Wishes(
        workers=workers,
        shapes=tuple(worker_shape(text) for text in worker),
        keep_alive_s=None if keep_alive is None else duration_s(keep_alive, "--keep-alive", endless=True),
        cache_dir=None if cache is None else os.path.abspath(cache.expanduser()),
        cache_bytes=None if cache_size is None else size_bytes(cache_size, "--cache-size"),
        listen=listen,
        advertise=advertise,
    )
    brought = lasting.bring_up(pool, wishes)
    how = {
        "started": f"pool {pool} is up",
        "found": f"pool {pool} is up already",
        "resumed": f"pool {pool} is up again after its manager had ended; its jobs go on",
    }[brought.how]
    spec, end = brought.spec, lasting.command("down", pool)
    print(f"{how}: {lasting.described(spec)}, logs in {spec.log_dir} ({end} ends it)")
    if spec.listen:
        _say_where(brought.folder)
    return 0


def _say_where(folder: Path) -> None:
    """What a worker and a client of another machine need."""
    worker_file, client_file = (path_of(folder, role) for role in ("worker", "client"))
    addresses = read_invitation(worker_file, "worker").addresses
    print(f"a worker on another machine: pilotlight worker --pool {worker_file}")
    print(f"a client on another machine: pilotlight jobs --pool {client_file}")
    print(f"they dial {' or '.join(addresses)}, and need the file there (a copy is good for half a week, so share it)")


def down(*, pool: PoolName = DEFAULT_NAME) -> int:
    """End a pool: its jobs, its workers, what they hold. What jobs have written stays.

    Where there is none, it says so, and that is no error.
    """
    ended = lasting.take_down(pool)
    if ended is None:
        print(f"pool {pool} is not up; there is nothing to end")
        return 0
    for job in ended.jobs:
        total = "" if job.rows_total is None else f" of {job.rows_total:,}"
        done = f"{job.rows_done:,}{total} rows are done"
        print(f"ended {job.job} ({job.output or 'rows of a Python process'}): {done}{_goes_on(job.output)}")
    if ended.jobs_unseen:
        print(f"ended {count_text(ended.jobs_unseen, 'job')}; what was written stays, and the same commands go on")
    for context in ended.contexts:
        if any(residence.level != "staged" for residence in context.residences):
            idle = "in use" if context.jobs else f"last used {duration(context.idle_s)} ago"
            print(f"let go of {context.name}, which was {where(context)} and {idle}")
    how = "; its manager did not end by itself and was killed" if ended.forced else ""
    how = "; its manager had ended before" if ended.was_gone else how
    own = "" if ended.workers is None else f", with {count_text(ended.workers, 'worker')}"
    print(f"pool {pool} is down{own}{how}")
    return 0


def _goes_on(output: str) -> str:
    return "; the same command goes on" if output else ""
