"""Keeps as many pilots as the pool should have, replacing those that end and adopting those of an earlier manager."""

from __future__ import annotations

import math
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pilotlight.core.errors import PilotlightError
from pilotlight.core.policy import scale
from pilotlight.ports import PilotProvider

JOIN_S_MAX = 120.0
"""A worker that has not joined by then hangs."""
RETURN_S_MAX = 15.0
"""A worker of no known pilot whose connection broke counts for so long: it may come back."""
_OURS = re.compile(r"worker-[0-9]+(-[0-9]+)?")
"""What a keeper calls its workers."""


@dataclass(slots=True)
class _Life:
    name: str
    began_s: float
    joined: bool = False
    given_up: bool = False


class Keeper:
    """Call `look` often; it submits, polls and backs off.

    Names are used once in a pool's life: `worker-1`, `worker-2`, … in its first epoch, `worker-3-1` in its third.
    `keep` is told name -> pilot id whenever that changes, before a submission too (with an empty id), so that the next
    manager knows of every worker that may live; `ended` hears the name of each whose pilot is gone. A worker of this
    machine with such a name that no pilot of ours runs counts as one, and is kept with an empty id: an earlier manager
    started it. Workers that dial in by themselves count as none.
    """

    def __init__(
        self,
        provider: PilotProvider,
        target: int,
        note: Callable[[str, str, str], None],
        *,
        epoch: int = 1,
        keep: Callable[[Mapping[str, str]], None] = lambda _pilots: None,
        ended: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._provider = provider
        self._target = target
        self._note = note
        self._prefix = "worker-" if epoch == 1 else f"worker-{epoch}-"
        self._keep = keep
        self._ended = ended
        self._lives: dict[str, _Life] = {}
        self._strangers: dict[str, float] = {}
        """Workers of no known pilot, and until when each counts."""
        self._made = 0
        self._stillborn = 0
        self._not_before_s = 0.0

    def adopt(self, pilots: Mapping[str, str]) -> list[str]:
        """Look after the pilots (name -> id) of the manager before this one, and end those that are too many now.
        Returns the names of those that live on."""
        now = time.monotonic()
        alive: list[str] = []
        for name, pilot_id in pilots.items():
            if not pilot_id:
                self._strangers[name] = now + RETURN_S_MAX
            elif self._provider.adopt(pilot_id):
                self._lives[pilot_id] = _Life(name, now)
                if len(alive) < self._target:
                    alive.append(name)
                else:
                    self.give_up(name)
        self._tell()
        return alive

    def has(self, name: str) -> bool:
        """Whether a pilot of this pool runs the worker of that name."""
        return any(life.name == name for life in self._lives.values())

    def joined(self, name: str, host: str) -> None:
        """A worker of this name reached the manager, from that machine."""
        for life in self._lives.values():
            if life.name == name:
                life.joined = True
                return
        if host != platform.node() or not _OURS.fullmatch(name):
            return
        is_new = name not in self._strangers
        self._strangers[name] = math.inf
        if is_new:
            self._tell()

    def left(self, name: str) -> None:
        """A worker's connection broke."""
        if name in self._strangers:
            self._strangers[name] = time.monotonic() + RETURN_S_MAX

    def give_up(self, name: str) -> None:
        """A worker of this name is silent: end its pilot, so that another can take its place."""
        for pilot_id, life in self._lives.items():
            if life.name == name and not life.given_up:
                life.given_up = True
                self._provider.cancel(pilot_id)
        self.left(name)

    def look(self) -> dict[str, str]:
        """Replace what ended. Returns the names of workers that ended, and how."""
        now = time.monotonic()
        ended = self._bury(now)
        for life in list(self._lives.values()):
            if not life.joined and now - life.began_s > JOIN_S_MAX:
                self.give_up(life.name)
        if overdue := [name for name, until_s in self._strangers.items() if until_s <= now]:
            for name in overdue:
                del self._strangers[name]
            self._tell()
        while len(self._lives) + len(self._strangers) < self._target and now >= self._not_before_s:
            name = f"{self._prefix}{self._made + 1}"
            self._tell(name)
            try:
                pilot_id = self._provider.submit(name)
            except PilotlightError as error:
                self._stillborn += 1
                self._not_before_s = now + scale.backoff_s(self._stillborn)
                self._note("warning", f"no new worker: {error}", name)
                self._tell()
                break
            self._made += 1
            self._lives[pilot_id] = _Life(name, now)
            self._tell()
        return ended

    def close(self) -> None:
        """End all pilots."""
        self._provider.close()
        self._lives.clear()
        self._tell()

    def _bury(self, now: float) -> dict[str, str]:
        ended: dict[str, str] = {}
        for pilot_id, how in self._provider.poll().items():
            life = self._lives.pop(pilot_id)
            ended[life.name] = how
            self._ended(life.name)
            young = now - life.began_s < scale.HEALTHY_S
            self._stillborn = self._stillborn + 1 if young or not life.joined else 0
            if not life.joined:
                self._note("warning", f"{life.name} ended before it could join ({how}); its log may say why", life.name)
            self._not_before_s = now + scale.backoff_s(self._stillborn)
        if ended:
            self._tell()
        return ended

    def _tell(self, coming: str = "") -> None:
        pilots = dict.fromkeys(self._strangers, "") | {life.name: pilot_id for pilot_id, life in self._lives.items()}
        self._keep({**pilots, coming: ""} if coming else pilots)
