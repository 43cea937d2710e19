"""A plan that fails, made short, and what led to its failure: for the one who is to understand it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections import deque
from collections.abc import Iterator

from pilotlight.sim.hunt import failure, run
from pilotlight.sim.plan import Plan
from pilotlight.sim.spec import Work

EVENTS_MAX = 5000


def shorten(what: Plan, kind: str, seconds: float = 20.0) -> Plan:
    """A plan with fewer faults, jobs, workers and rows that still fails in the same way; looked for so long."""
    until = time.monotonic() + seconds
    changed = True
    while changed:
        changed = False
        for shorter in _shorter(what):
            if time.monotonic() > until:
                return what
            found = failure(shorter)
            if found is not None and found.kind == kind:
                what, changed = shorter, True
                break
    return what


def _shorter(what: Plan) -> Iterator[Plan]:
    """Plans that lack something, the most first."""
    size = len(what.faults)
    part = size
    while part >= 1:
        for start in range(0, size, part):
            yield dataclasses.replace(what, faults=what.faults[:start] + what.faults[start + part :])
        part //= 2
    for n in range(len(what.works)) if len(what.works) > 1 else ():
        yield dataclasses.replace(what, works=what.works[:n] + what.works[n + 1 :])
    for n in range(len(what.workers)):
        yield dataclasses.replace(what, workers=what.workers[:n] + what.workers[n + 1 :])
    for n, work in enumerate(what.works):
        for simpler in _simpler(work):
            yield dataclasses.replace(what, works=(*what.works[:n], simpler, *what.works[n + 1 :]))
    if what.pace.jitter_s:
        yield dataclasses.replace(what, pace=dataclasses.replace(what.pace, jitter_s=0.0))


def _simpler(work: Work) -> Iterator[Work]:
    if work.rows > 1:
        rows = work.rows // 2
        yield dataclasses.replace(
            work,
            rows=rows,
            poison=frozenset(index for index in work.poison if index < rows),
            hangs=frozenset(index for index in work.hangs if index < rows),
            outgrows={index: size for index, size in work.outgrows.items() if index < rows},
        )
    if work.poison:
        yield dataclasses.replace(work, poison=frozenset[int]())
    if work.hangs:
        yield dataclasses.replace(work, hangs=frozenset[int]())
    if work.outgrows:
        yield dataclasses.replace(work, outgrows={})
    if work.sigma:
        yield dataclasses.replace(work, sigma=0.0)


def story(what: Plan, text: str, lines: int = 25) -> list[str]:
    """The last events of a failing plan that name what its failure names (a job, a worker, a lease), or the last."""
    told: deque[tuple[float, str]] = deque(maxlen=EVENTS_MAX)
    with contextlib.suppress(Exception):  # it is known; what led to it is wanted
        run(what, lambda now, line: told.append((now, line)))
    names = set(re.findall(r"\b(?:job|worker|lease)-\w+(?:\.\w+)?", text))
    concerned = [pair for pair in told if any(re.search(rf"\b{re.escape(name)}\b", pair[1]) for name in names)]
    return [f"{now:10.3f} s  {line}" for now, line in (concerned or list(told))[-lines:]]
