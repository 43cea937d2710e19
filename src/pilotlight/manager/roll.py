"""Who may be in this pool: what each worker said of itself as it joined, and what was judged of it.

A worker whose messages are of another version is told to drain; one on which nothing of use can run is turned away,
unless it is the pool's own: then it stays, so that a job which needs more ends with the reason instead of waiting.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Literal

from pilotlight import __version__
from pilotlight.manager.environment import Verdict, judge
from pilotlight.messages import Drain, Join, TurnedAway
from pilotlight.wire import VERSION, Environment, other_version

Level = Literal["warning", "debug"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a `Join`. no: what to send to a worker that is not let in. notes: what to tell people, once."""

    no: Drain | TurnedAway | None = None
    verdict: Verdict = field(default_factory=Verdict)
    notes: tuple[tuple[Level, str], ...] = ()


class Roll:
    """Of one manager. own: what the manager itself runs on, which speaks for the pool."""

    def __init__(self, own: Environment | None = None) -> None:
        self._own = own or Environment(python=platform.python_version(), release=__version__)
        self._here: dict[str, tuple[Join, Verdict]] = {}
        self._outside: set[str] = set()
        self._told: dict[str, set[str]] = {}
        """What was said of workers, by host: a worker that dials in again and again brings no news."""

    def take(self, join: Join, *, ours: bool) -> Answer:
        """A worker says who it is. ours: this pool started it."""
        self.leave(join.worker)
        found = join.environment
        if join.version != VERSION:
            self._outside.add(join.worker)
            release = found.release if found is not None else ""
            text = other_version(join.worker, join.version, release, self._own.release)
            return Answer(Drain(grace_s=0.0), notes=self._news(join, [("warning", text)]))
        others = {name: there.environment for name, (there, _) in self._here.items() if there.environment is not None}
        verdict = judge(found, join.devices, self._own, others)
        if verdict.refusal and not ours:
            self._outside.add(join.worker)
            text = f"{join.worker} on {join.host} is of no use to this pool: {verdict.refusal}"
            return Answer(TurnedAway(reason=text), verdict, self._news(join, [("warning", text)]))
        self._here[join.worker] = (join, verdict)
        notes: list[tuple[Level, str]] = []
        notes.extend(("warning", f"{join.worker}: {text}") for text in verdict.warnings)
        notes.extend(("debug", f"{join.worker}: {text}") for text in verdict.absences)
        return Answer(None, verdict, self._news(join, notes))

    def leave(self, worker_id: str) -> None:
        """A worker's connection is gone, or a new one begins."""
        self._here.pop(worker_id, None)
        self._outside.discard(worker_id)

    def is_outside(self, worker_id: str) -> bool:
        """Whether a worker that is connected was not let in: what it says is to be passed over."""
        return worker_id in self._outside

    def said(self, worker_id: str) -> tuple[Join, Verdict] | None:
        """What a worker said as it joined, and what was judged of it."""
        return self._here.get(worker_id)

    def _news(self, join: Join, notes: list[tuple[Level, str]]) -> tuple[tuple[Level, str], ...]:
        told = self._told.setdefault(join.host, set())
        news: list[tuple[Level, str]] = []
        for level, text in notes:
            plain = text.removeprefix(join.worker)
            if plain not in told:
                news.append((level, text))
            told.add(plain)
        return tuple(news)
