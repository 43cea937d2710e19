"""Keeps as many pilots as the pool should have, replacing those that end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pilotlight.core.errors import PilotlightError
from pilotlight.core.policy import scale
from pilotlight.ports import PilotProvider

JOIN_S_MAX = 120.0
"""A worker that has not joined by then hangs."""


@dataclass(slots=True)
class _Life:
    name: str
    began_s: float
    joined: bool = False
    given_up: bool = False


class Keeper:
    """Call `look` often; it submits, polls and backs off. Names are `worker-1`, `worker-2`, …, each used once."""

    def __init__(self, provider: PilotProvider, target: int, note: Callable[[str, str, str], None]) -> None:
        self._provider = provider
        self._target = target
        self._note = note
        self._lives: dict[str, _Life] = {}
        self._made = 0
        self._stillborn = 0
        self._not_before_s = 0.0

    def joined(self, name: str) -> None:
        """A worker of this name reached the manager."""
        for life in self._lives.values():
            if life.name == name:
                life.joined = True

    def give_up(self, name: str) -> None:
        """A worker of this name is silent: end its pilot, so that another can take its place."""
        for pilot_id, life in self._lives.items():
            if life.name == name and not life.given_up:
                life.given_up = True
                self._provider.cancel(pilot_id)

    def look(self) -> dict[str, str]:
        """Replace what ended. Returns the names of workers that ended, and how."""
        now = time.monotonic()
        ended: dict[str, str] = {}
        for pilot_id, how in self._provider.poll().items():
            life = self._lives.pop(pilot_id)
            ended[life.name] = how
            young = now - life.began_s < scale.HEALTHY_S
            self._stillborn = self._stillborn + 1 if young or not life.joined else 0
            if not life.joined:
                self._note("warning", f"{life.name} ended before it could join ({how}); its log may say why", life.name)
            self._not_before_s = now + scale.backoff_s(self._stillborn)
        for life in list(self._lives.values()):
            if not life.joined and now - life.began_s > JOIN_S_MAX:
                self.give_up(life.name)
        while len(self._lives) < self._target and now >= self._not_before_s:
            name = f"worker-{self._made + 1}"
            try:
                pilot_id = self._provider.submit(name)
            except PilotlightError as error:
                self._stillborn += 1
                self._not_before_s = now + scale.backoff_s(self._stillborn)
                self._note("warning", f"no new worker: {error}", name)
                break
            self._made += 1
            self._lives[pilot_id] = _Life(name, now)
        return ended

    def close(self) -> None:
        """End all pilots."""
        self._provider.close()
