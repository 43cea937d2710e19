"""`pilotlight contexts`, `pin` and `evict`: what a pool that stays holds where, and what it shall hold."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from pilotlight.client import checks
from pilotlight.client.console.options import LoadOptions
from pilotlight.client.console.pools import PoolName, connect
from pilotlight.client.console.tables import print_json, print_table, where
from pilotlight.poolfile import DEFAULT_NAME
from pilotlight.quantities import duration, size
from pilotlight.views import ContextView, ResidenceView

SHARED = {"parked", "staged"}


def contexts(
    *,
    pool: PoolName = DEFAULT_NAME,
    verbose: Annotated[
        bool, Parameter(name=["--verbose", "-v"], help="A line for each place, with what loading took.", negative="")
    ] = False,
    json: Annotated[bool, Parameter(help="One JSON object a line.", negative="")] = False,
) -> int:
    """List the contexts of a pool and where they are: live on devices, asleep, parked in memory, staged on disk."""
    with connect(pool) as connected:
        views = connected.contexts()
    if json:
        print_json(views)
        return 0
    if not views:
        print(f"pool {pool} has no contexts")
        return 0
    print_table(
        ["context", "id", "where", "devices", "memory", "disk", "used", "idle", "pinned"],
        [_line(view) for view in views],
    )
    if verbose:
        print()
        lines = [
            _residence_line(view, residence)
            for view in views
            for residence in sorted(view.residences, key=lambda r: (r.worker, r.device, r.level))
        ]
        print_table(["context", "level", "worker", "device", "memory", "since", "rows", "took"], lines)
    return 0


def _line(view: ContextView) -> list[str]:
    return [
        view.name,
        view.context,
        where(view),
        _size(sum(r.bytes for r in view.residences if r.level not in SHARED)),
        _size(_shared_bytes(view, "parked")),
        _size(_shared_bytes(view, "staged")),
        f"{view.used} job{'' if view.used == 1 else 's'}" + (f", {view.jobs} now" if view.jobs else ""),
        "" if view.jobs else duration(view.idle_s),
        "yes" if view.pinned else "",
    ]


def _shared_bytes(view: ContextView, level: str) -> int:
    """All workers of a host share one copy."""
    hosts: dict[str, int] = {}
    for residence in view.residences:
        if residence.level == level:
            hosts[residence.host] = max(hosts.get(residence.host, 0), residence.bytes)
    return sum(hosts.values())


def _size(total: int) -> str:
    return size(total) if total else ""


def _residence_line(view: ContextView, residence: ResidenceView) -> list[str]:
    prefixes = f" ({size(residence.attachment_bytes)} prefixes)" if residence.attachment_bytes else ""
    stages = ", ".join(f"{stage} {took_s:.1f}" for stage, took_s in residence.stages.items())
    return [
        view.name,
        residence.level,
        residence.worker,
        residence.device,
        _size(residence.bytes) + prefixes,
        f"{duration(residence.age_s)} ago",
        f"{residence.rows:,}" if residence.rows else "",
        (f"{residence.took_s:.1f} s" if residence.took_s else "") + (f" ({stages})" if stages else ""),
    ]


def pin(
    model: Annotated[str, Parameter(help="Model folder, or Hugging Face id.")],
    /,
    *,
    how: Annotated[LoadOptions | None, Parameter(name="*")] = None,
    off: Annotated[bool, Parameter(help="Let it go when nothing needs it.", negative="")] = False,
    pool: PoolName = DEFAULT_NAME,
) -> int:
    """Keep a model loaded wherever there is room, with these options, whether a job needs it or not."""
    how = how or LoadOptions()
    checks.check_model(model, runtime=how.runtime)
    with connect(pool) as connected:
        llm = how.context(model)
        print(connected.unpin(llm) if off else connected.pin(llm))
    return 0


def evict(
    name: Annotated[str, Parameter(help="A context's name or id, or its model's folder.")],
    /,
    *,
    disk: Annotated[bool, Parameter(help="Remove it from the caches on disk, too.", negative="")] = False,
    pool: PoolName = DEFAULT_NAME,
) -> int:
    """Drop a context that no job needs from all devices and memories."""
    with connect(pool) as connected:
        print(connected.evict(name, disk=disk))
    return 0
