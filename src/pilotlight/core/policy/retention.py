"""What stays near though no job needs it just now, and what goes first when room is short.

A variant is worth keeping by what it would cost to bring it back, times how often it is used, per byte that it takes:
GreedyDual-Size (Cao and Irani, Cost-Aware WWW Proxy Caching Algorithms, USITS 1997), with frequency. What can't stay on
a device is parked in its worker's memory, by the same measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pilotlight.core.model import VariantId
from pilotlight.core.state import State


def stays(state: State, variant_id: VariantId, now: float, keep_alive_s: float) -> bool:
    """Whether a variant may stay near: it is pinned, or was used lately. A negative keep_alive_s keeps it for ever."""
    if variant_id in state.evicted:
        return False
    if variant_id in state.pinned or keep_alive_s < 0:
        return True
    return now - state.used_at_s.get(variant_id, now) <= keep_alive_s


def value(uses: int, bring_back_s: float, size_bytes: int) -> float:
    """What a variant is worth where it is: seconds to bring it back, for each use, per byte."""
    return (uses + 1) * bring_back_s / max(size_bytes, 1)


def fill(
    order: Iterable[VariantId], room_bytes: int, need_bytes: Callable[[VariantId], int]
) -> tuple[list[VariantId], int]:
    """Those that fit into the room, in the given order of importance, and the room that is left."""
    inside: list[VariantId] = []
    for variant_id in order:
        need = need_bytes(variant_id)
        if need <= room_bytes:
            inside.append(variant_id)
            room_bytes -= need
    return inside, room_bytes
