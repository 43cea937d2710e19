"""How long a live variant stays when no job needs it, and which goes first when room is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pilotlight.core.model import VariantId


def retained(
    live: Iterable[VariantId],
    used_at_s: dict[VariantId, float],
    now: float,
    keep_alive_s: float,
) -> list[VariantId]:
    """Idle variants that may stay, the most recently used first. A negative keep_alive_s keeps them for ever."""
    kept = [v for v in live if keep_alive_s < 0 or now - used_at_s.get(v, now) <= keep_alive_s]
    return sorted(kept, key=lambda v: used_at_s.get(v, now), reverse=True)


def fill(
    order: Iterable[VariantId], room_bytes: int, need_bytes: Callable[[VariantId], int]
) -> tuple[list[VariantId], list[VariantId]]:
    """Those that fit into the room, in the given order of importance, and those that don't. The first always goes in:
    its need is only a hint, and the device itself has the last word."""
    inside: list[VariantId] = []
    outside: list[VariantId] = []
    for variant_id in order:
        need = need_bytes(variant_id)
        if not inside or need <= room_bytes:
            inside.append(variant_id)
            room_bytes -= need
        else:
            outside.append(variant_id)
    return inside, outside
