"""Sizes, durations, counts and workers as people write them (`2GB`, `10m`, `speed=0.25,memory=2GB`) and read them."""

from __future__ import annotations

import re

from pilotlight.core.errors import ConfigError
from pilotlight.wire import WorkerShape

_BYTES = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1000), ("B", 1000), ("iB", 1024))
}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def size_bytes(text: str, name: str) -> int:
    """`2GB` (10^9 bytes each), `512MiB`, or plain bytes. Raises `ConfigError` that calls it `name`."""
    value, unit = _split(text)
    units = {known.lower(): factor for known, factor in _BYTES.items()}
    if value is None or value < 0 or unit.lower() not in units:
        raise ConfigError(f"{name} must be a size such as 2GB or 512MiB, not {text!r}")
    return int(value * units[unit.lower()])


def duration_s(text: str, name: str, *, endless: bool = False) -> float:
    """`10m`, `90s`, `1h` or plain seconds; `endless`: -1 means for ever. Raises `ConfigError` that calls it `name`."""
    value, unit = _split(text)
    if value is None or unit not in _SECONDS or (value < 0 and not (endless and (value, unit) == (-1, ""))):
        for_ever = ", or -1 for ever" if endless else ""
        raise ConfigError(f"{name} must be a time such as 90s, 10m or 1h{for_ever}, not {text!r}")
    return value * _SECONDS[unit]


def worker_shape(text: str) -> WorkerShape:
    """`speed=0.25,memory=2GB`, either or both. Raises `ConfigError`."""
    speed, memory_bytes = 1.0, 0
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        match name:
            case "speed":
                speed = _speed(value)
            case "memory":
                memory_bytes = size_bytes(value, "--worker's memory")
            case _:
                raise ConfigError(f"--worker is written as speed=0.25,memory=2GB (either or both), not {text!r}")
    return WorkerShape(speed=speed, memory_bytes=memory_bytes)


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed <= 1:
        raise ConfigError(f"--worker's speed must be above 0 and at most 1, not {text!r}")
    return speed


def _split(text: str) -> tuple[float | None, str]:
    found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    return (float(found[1]), found[2]) if found else (None, "")


def size(value: int) -> str:
    """For people: `538 MB`, `1.3 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= factor:
            short = value / factor
            return f"{short:.0f} {unit}" if short >= 10 else f"{short:.1f} {unit}"
    return f"{value} B"


def number(value: float) -> str:
    """A figure for people: whole from 10 on, one digit below."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
