"""Logs of a pool that lasts: none of what ended as wished, the last of what died, none too long."""

from __future__ import annotations

from pathlib import Path

from pilotlight import logfiles
from pilotlight.worker import logs


def test_the_logs_of_the_last_that_died_stay(tmp_path: Path) -> None:
    kept = logs.Logs(tmp_path)
    for number in range(3 * logs.DEAD_MAX):
        path = kept.path(f"w.{number}")
        path.write_text("why")
        kept.ended(path, wished=number % 3 == 0)
    kept.ended(kept.path("never written"), wished=True)
    died = [number for number in range(3 * logs.DEAD_MAX) if number % 3]
    assert {path.stem for path in tmp_path.iterdir()} == {f"w.{number}" for number in died[-logs.DEAD_MAX :]}


def test_a_long_log_keeps_its_end_while_it_is_written(tmp_path: Path) -> None:
    path, short = tmp_path / "long.log", tmp_path / "short.log"
    short.write_bytes(b"short\n")
    with path.open("ab", buffering=0) as log:
        log.write(b"x" * (logfiles.LOG_BYTES_MAX + 1) + b"\nthe last line\n")
        logfiles.shorten([path, short, tmp_path / "missing.log"])
        log.write(b"one more\n")
    assert path.stat().st_size < 2 * logfiles.KEPT_BYTES
    assert path.read_bytes().endswith(b"x\nthe last line\none more\n")
    assert short.read_bytes() == b"short\n"
    assert logs.last_line(path) == ": one more"
    assert logs.last_line(tmp_path / "missing.log") == ""
