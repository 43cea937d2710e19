"""A worker's copies of variants' files: staged on its disk, parked in its memory, and how they come to be.

From where a variant is staged is the manager's choice, which knows what other machines hold and read: it is asked, and
its answer waited for, though not for ever. What is wanted, and what is let go of, `residence` decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pilotlight.core.decisions import AgentDecision, AskSource, MakeCopy, SendCopy, SendCopyFailed
from pilotlight.core.model import Variant, VariantId, WorkerId
from pilotlight.core.transitions import Level

LOAD_S_MAX = 1800.0
"""A load that takes longer hangs, and so does a copy."""
ASK_S = 60.0
"""A source is asked for again after so long: a question may be lost, and asking twice changes nothing."""
AGAIN_S = 2.0
"""How long to wait after the origin failed where nothing else can be read; twice as long after each failure."""
TRIES_MAX = 6
"""So many failures of the origin in a row, over a minute, are more than a manager that is being started again."""
ALONE_S = 1800.0
"""Who has waited so long for its turn reads the origin without: longer than a tree of copies ever takes to grow."""


@dataclass(slots=True)
class CopyHeld:
    """A copy of a variant's files: `asking` from where to stage it, `making` until it is there or `failed`, `dropping`
    until it is gone. alone_s: until when to wait for a source to be named. tries: of the origin, that failed."""

    state: str = "making"
    bytes: int = 0
    took_s: float = 0.0
    until_s: float = math.inf
    alone_s: float = math.inf
    source: WorkerId = ""
    tries: int = 0


class Files:
    """The copies of one worker. `begin` opens each step of the machine that owns it."""

    def __init__(self) -> None:
        self.copies: dict[tuple[VariantId, Level], CopyHeld] = {}
        self._out: list[AgentDecision] = []
        self._now = 0.0

    def begin(self, out: list[AgentDecision], now: float) -> None:
        """A step begins: the list that its decisions go to."""
        self._out = out
        self._now = now

    def begin_copy(self, variant_id: VariantId, level: Level) -> None:
        """Have a copy made that there is not; to stage, first ask from where."""
        copy = self.copies[variant_id, level] = CopyHeld()
        if level is Level.STAGED:
            copy.alone_s = self._now + ALONE_S
            self._ask(variant_id, copy)
        else:
            self._make(variant_id, level, copy)

    def _ask(self, variant_id: VariantId, copy: CopyHeld) -> None:
        copy.state, copy.until_s = "asking", self._now + ASK_S
        self._out.append(AskSource(variant_id))

    def _make(self, variant_id: VariantId, level: Level, copy: CopyHeld, source: WorkerId = "") -> None:
        copy.state, copy.source, copy.until_s = "making", source, self._now + LOAD_S_MAX
        self._out.append(MakeCopy(variant_id, level, source))

    def _asking(self) -> list[tuple[VariantId, CopyHeld]]:
        return [(variant_id, copy) for (variant_id, _), copy in self.copies.items() if copy.state == "asking"]

    def ask_again(self) -> None:
        """A manager is there that may not know what was asked."""
        for variant_id, copy in self._asking():
            self._ask(variant_id, copy)

    def wait_for(self, wanted: Iterable[Variant]) -> None:
        """Who waits for a source asks again, or goes without; what nothing wants any more is no longer waited for."""
        if not (asking := self._asking()):
            return
        variant_ids = {variant.variant_id for variant in wanted}
        for variant_id, copy in asking:
            if variant_id not in variant_ids:
                del self.copies[variant_id, Level.STAGED]
            elif self._now >= copy.alone_s:
                self._make(variant_id, Level.STAGED, copy)
            elif self._now >= copy.until_s:
                self._ask(variant_id, copy)

    def source_named(self, variant_id: VariantId, source: WorkerId) -> None:
        """The manager says from where to stage. A second answer to one question may name a peer, where the origin was
        named and can't be read here; else it changes nothing."""
        copy = self.copies.get((variant_id, Level.STAGED))
        if copy is None:
            self._out.append(SendCopyFailed(variant_id, Level.STAGED, "", "it is not wanted any more"))
        elif copy.state == "asking":
            self._make(variant_id, Level.STAGED, copy, source)
        elif copy.state == "making":
            copy.source = copy.source or source

    def made(self, variant_id: VariantId, level: Level, size: int, took_s: float) -> None:
        """A copy is there."""
        self.copies[variant_id, level] = CopyHeld("made", size, took_s)
        self._out.append(SendCopy(variant_id, level, size, took_s))

    def failed(self, variant_id: VariantId, level: Level, reason: str, *, remote: bool = False) -> None:
        """A copy can't be made. After another worker the manager is asked for another source, and again after a pause
        where the origin is all there is (`remote`); else it is not tried again before new wants come."""
        copy = self.copies.get((variant_id, level))
        if copy is None or copy.state != "making":
            return
        if level is Level.STAGED:
            self._out.append(SendCopyFailed(variant_id, level, copy.source, reason))
        if copy.source:
            del self.copies[variant_id, level]
        elif remote and copy.tries < TRIES_MAX:
            copy.state, copy.until_s = "asking", self._now + AGAIN_S * 2**copy.tries
            copy.alone_s = self._now + ALONE_S
            copy.tries += 1
        else:
            copy.state, copy.until_s = "failed", math.inf

    def gone(self, variant_id: VariantId, level: Level) -> None:
        """A copy is no longer there."""
        if self.copies.pop((variant_id, level), None) is not None:
            self._out.append(SendCopy(variant_id, level, 0))

    def tick(self) -> None:
        """Copies that take too long have failed."""
        for (variant_id, level), copy in list(self.copies.items()):
            if copy.state == "making" and self._now >= copy.until_s:
                self.failed(variant_id, level, f"it was not there after {LOAD_S_MAX:.0f} s")

    @property
    def due_s(self) -> float:
        """When a copy takes too long, or is to be asked for again; inf: none is waited for."""
        due_s = math.inf
        for copy in self.copies.values():
            if copy.state == "making":
                due_s = min(due_s, copy.until_s)
            elif copy.state == "asking":
                due_s = min(due_s, copy.until_s, copy.alone_s)
        return due_s

    def check(self) -> None:
        """Assert that no copy takes for ever, and none is what it can't be."""
        for (variant_id, level), copy in self.copies.items():
            waits = copy.state in {"asking", "making"}
            assert not waits or copy.until_s < math.inf, f"{level} of {variant_id} may take for ever"
            assert copy.state != "asking" or copy.alone_s < math.inf, f"{variant_id} may wait for a source for ever"
            assert copy.state != "dropping" or level is Level.PARKED
            assert copy.state != "asking" or level is Level.STAGED
