"""Virtual time: what is to happen later, in the order in which it will."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Timer:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("due_s", "what")

    def __init__(self, what: Callable[[], object], due_s: float) -> None:
        self.what: Callable[[], object] | None = what
        self.due_s = due_s

    def cancel(self) -> None:
        """Let it not happen."""
        self.what = None


class Clock:
    """Seconds since the start. What is due at one moment happens in the order in which it was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        """How many things have happened."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._asked = 0

    def after(self, seconds: float, what: Callable[[], object]) -> Timer:
        """Let something happen in so many seconds (0: after all that is due now)."""
        return self.at(self.now + seconds, what)

    def at(self, when_s: float, what: Callable[[], object]) -> Timer:
        """Let something happen at a moment; one that has passed counts as now."""
        self._asked += 1
        timer = Timer(what, max(when_s, self.now))
        heapq.heappush(self._heap, (timer.due_s, self._asked, timer))
        return timer

    def delay(self, timer: Timer, seconds: float) -> Timer:
        """Let something happen so much later than it would have."""
        what = timer.what
        timer.cancel()
        return timer if what is None else self.at(timer.due_s + seconds, what)

    @property
    def next_s(self) -> float | None:
        """When the next thing happens; None: nothing will."""
        while self._heap and self._heap[0][2].what is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def step(self) -> bool:
        """Let the next thing happen. False where there is none."""
        if self.next_s is None:
            return False
        self.now, _, timer = heapq.heappop(self._heap)
        what, timer.what = timer.what, None
        self.happened += 1
        if what is not None:
            what()
        return True

    def run(self, until: Callable[[], object], until_s: float = float("inf")) -> bool:
        """Let time pass until something holds, or until a moment. Returns whether it holds."""
        while not until():
            when = self.next_s
            if when is None or when > until_s:
                self.now = max(self.now, until_s) if until_s < float("inf") else self.now
                return False
            self.step()
        return True
