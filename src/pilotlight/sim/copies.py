"""Copies of files that a simulated worker makes: on its disk from a source, in its memory from its disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pilotlight.core import events as ev
from pilotlight.core.transitions import Level
from pilotlight.sim.links import Shared, Transfer
from pilotlight.sim.surroundings import Host, Surroundings

if TYPE_CHECKING:
    from pilotlight.sim.spec import Model

SILENCE_S = 10.0
"""How long a copy waits for a source that has no more of it (`files.fetching`)."""


class Copies:
    """Those that are under way. `hear` is told what became of each."""

    def __init__(self, host: Host, around: Surroundings, hear: Callable[[ev.AgentEvent], None]) -> None:
        self.fail = False
        """None can be staged."""
        self._host = host
        self._around = around
        self._hear = hear
        self._reads: dict[tuple[str, Level], tuple[Shared, Transfer]] = {}

    def __len__(self) -> int:
        return len(self._reads)

    def make(self, model: Model, level: Level, source: str) -> None:
        """Copy a model's files: to memory from the disk, or to the disk from a worker, the origin if ""."""
        variant_id, size, clock = model.variant_id, model.file_bytes, self._around.clock
        began_s = clock.now
        shared = self._host.disk if level is Level.PARKED else self._around.source(source)
        if shared is None or (self.fail and level is Level.STAGED):
            self._fails(variant_id, level, "it could not be read")
            return

        def came() -> None:
            """As many bytes as the source had: one that still fetches passes on what comes to it."""
            if not source or self._around.holds(source, variant_id):
                made()
            else:
                wait(clock.now + SILENCE_S)

        def wait(until_s: float) -> None:
            if self._reads.get((variant_id, level)) is not under_way:
                return
            if self._around.holds(source, variant_id):
                made()
            elif clock.now < until_s and self._around.source(source) is shared:
                clock.after(self._around.pace.tick_s, lambda: wait(until_s))
            else:
                failed()

        def made() -> None:
            del self._reads[variant_id, level]
            if level is Level.STAGED:
                self._host.staged[variant_id] = size
            origin = "disk" if level is Level.PARKED else "peer" if source else "origin"
            self._around.meter.moved(origin, size)
            self._hear(ev.CopyMade(variant_id, level, size, clock.now - began_s))

        def failed() -> None:
            del self._reads[variant_id, level]
            self._fails(variant_id, level, "its source is gone")

        under_way = self._reads[variant_id, level] = shared, shared.read(size, came, failed)

    def end(self) -> None:
        """Nobody waits for them any more."""
        for shared, transfer in self._reads.values():
            shared.cancel(transfer)
        self._reads.clear()

    def _fails(self, variant_id: str, level: Level, reason: str) -> None:
        event = ev.CopyFailed(variant_id, level, reason)
        self._around.clock.after(self._around.pace.message_s, lambda: self._hear(event))
