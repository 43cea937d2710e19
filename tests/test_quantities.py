"""What people write for sizes, times and workers."""

from __future__ import annotations

import pytest

from pilotlight.core.errors import ConfigError
from pilotlight.quantities import duration_s, size, size_bytes, worker_shape
from pilotlight.wire import WorkerShape


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2GB", 2 * 10**9),
        ("512MiB", 512 << 20),
        ("1.5 g", 1_500_000_000),
        ("77", 77),
        ("10kb", 10_000),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size_bytes(text, "--cache-size") == value


@pytest.mark.parametrize(
    ("text", "value"), [("10m", 600), ("90", 90), ("1.5h", 5400), ("-1", -1), ("0", 0), ("2d", 172_800), ("5min", 300)]
)
def test_times(text: str, value: float) -> None:
    assert duration_s(text, "--keep-alive", endless=True) == value


@pytest.mark.parametrize("text", ["", "GB", "-2GB", "2 apples", "1e9", "2GBB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--cache-size must be a size"):
        size_bytes(text, "--cache-size")


@pytest.mark.parametrize("text", ["", "-2", "-1m", "forever", "10 x"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="-1 for ever"):
        duration_s(text, "--keep-alive", endless=True)


def test_workers() -> None:
    assert worker_shape("speed=0.25,memory=2GB") == WorkerShape(speed=0.25, memory_bytes=2 * 10**9)
    assert worker_shape("memory=1GiB") == WorkerShape(memory_bytes=1 << 30)
    for text in ("speed=0", "speed=2", "speed=fast", "memory=x", "fast", "speed"):
        with pytest.raises(ConfigError, match="--worker"):
            worker_shape(text)


def test_sizes_for_people() -> None:
    assert [size(value) for value in (5, 1500, 538 * 10**6, 1_340_000_000)] == ["5 B", "1.5 kB", "538 MB", "1.3 GB"]
