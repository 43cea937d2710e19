"""What a run cost and yielded, counted while it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pilotlight.sim.spec import Kind


def _floats() -> dict[str, float]:
    return {}


def _counts() -> dict[str, int]:
    return {}


@dataclass(slots=True)
class Meter:
    """Totals over a world's life, and the curves that pictures are drawn from.

    useful_s: device-seconds, on a device of speed 1, of results that went into an output; lost_s: of work that was
    thrown away (rows begun on what died) or done twice. available_s: device-seconds times speed that workers were
    there; first_load_s: of those, one load per device and life, as measured. loads: by origin; bytes: by source.
    curve: (time, rows in outputs); present: (time, kind, workers of it).
    """

    useful_s: float = 0.0
    lost_s: float = 0.0
    rows_lost: int = 0
    rows_repeated: int = 0
    available_s: float = 0.0
    first_load_s: float = 0.0
    device_s: float = 0.0
    loads: dict[str, int] = field(default_factory=_counts)
    load_s: dict[str, float] = field(default_factory=_floats)
    bytes: dict[str, float] = field(default_factory=_floats)
    joined: int = 0
    lost: int = 0
    rows: int = 0
    curve: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    workers: dict[str, int] = field(default_factory=_counts)
    """How many of each kind are there."""
    present: list[tuple[float, str, int]] = field(default_factory=list[tuple[float, str, int]])
    curve_every_s: float = 0.0
    """Points of the curve are at least so far apart."""
    watch: Callable[[float, str], None] | None = None
    """Called with the time and a line for everything that happens; for traces."""

    def loaded(self, origin: str, seconds: float) -> None:
        """A replica went live."""
        self.loads[origin] = self.loads.get(origin, 0) + 1
        self.load_s[origin] = self.load_s.get(origin, 0.0) + seconds

    def moved(self, source: str, size: float) -> None:
        """Bytes came from a source: `origin`, `peer`, `disk`, `memory`."""
        self.bytes[source] = self.bytes.get(source, 0.0) + size

    def wrote(self, now: float, rows: int) -> None:
        """Rows went into outputs."""
        self.rows += rows
        if not self.curve or now - self.curve[-1][0] >= self.curve_every_s:
            self.curve.append((now, self.rows))
        else:
            self.curve[-1] = (self.curve[-1][0], self.rows)

    def count(self, now: float, kind: str, more: int) -> None:
        """So many workers more (or less) of a kind are there now."""
        self.workers[kind] = self.workers.get(kind, 0) + more
        self.present.append((now, kind, self.workers[kind]))

    def was_there(self, kind: Kind, seconds: float) -> None:
        """A worker of a kind was there for so long."""
        self.device_s += seconds * kind.devices
        self.available_s += seconds * kind.devices * kind.speed

    def say(self, now: float, line: str) -> None:
        """Something happened."""
        if self.watch is not None:
            self.watch(now, line)
