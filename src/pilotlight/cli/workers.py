"""`pilotlight workers`: the workers of a pool that stays, where each has its cache, and what is odd about them."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from pilotlight.client.console.pools import PoolName, connect
from pilotlight.client.console.tables import print_json, print_table
from pilotlight.poolfile import DEFAULT_NAME
from pilotlight.quantities import size
from pilotlight.views import CacheView, WorkerView


def workers(
    *,
    pool: PoolName = DEFAULT_NAME,
    verbose: Annotated[
        bool, Parameter(name=["--verbose", "-v"], help="All that is known of each, in sentences.", negative="")
    ] = False,
    json: Annotated[bool, Parameter(help="One JSON object a line.", negative="")] = False,
) -> int:
    """List the workers of a pool: where they run, what they hold, where their cache lies, and what they can't do."""
    with connect(pool) as connected:
        views = connected.workers()
    if json:
        print_json(views)
        return 0
    if not views:
        print(f"pool {pool} has no workers now")
        return 0
    print_table(["worker", "host", "state", "devices", "live", "rows", "cache"], [_line(view) for view in views])
    for view in views if verbose else ():
        told = [f"its cache is {view.cache.text}"] if view.cache is not None else []
        told += [f"it has {view.environment.text}"] if view.environment is not None else []
        print(f"\n{view.worker}", *(f"  {text}" for text in [*told, *view.troubles]), sep="\n")
    if not verbose and any(view.troubles for view in views):
        print()
        for view in views:
            for text in view.troubles:
                print(f"{view.worker}: {text}")
    return 0


def _line(view: WorkerView) -> list[str]:
    kinds = dict.fromkeys(view.devices)
    devices = ", ".join(
        f"{view.devices.count(kind)} x {kind}" if view.devices.count(kind) > 1 else kind for kind in kinds
    )
    live = sorted({replica.name for replica in view.replicas if replica.state == "live"})
    held = ", ".join([*live, *(arrival.text for arrival in view.arriving)])
    return [view.worker, view.host, view.state, devices, held, f"{view.rows_done:,}", _cache(view.cache)]


def _cache(cache: CacheView | None) -> str:
    if cache is None:
        return ""
    odd = ", in memory" if cache.in_memory else ", over the network" if cache.network else ""
    return f"{cache.path} ({size(cache.free_bytes)} free{odd}{', for this job only' if cache.ends_with_job else ''})"
