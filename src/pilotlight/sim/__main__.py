"""`python -m pilotlight.sim`: look for bugs in random worlds, or replay one.

python -m pilotlight.sim                  random seeds for a minute
python -m pilotlight.sim SEED [SEED ...]  these
python -m pilotlight.sim --seeds 10000    so many, from --first (0)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from pilotlight.sim.hunt import Failure, failure
from pilotlight.sim.plan import plan
from pilotlight.sim.shorten import shorten, story

BATCH = 20


def main() -> int:
    """Returns 1 where a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m pilotlight.sim", description="Look for bugs in random worlds.")
    parser.add_argument("seed", nargs="*", type=int, help="replay these")
    parser.add_argument("--seeds", type=int, default=0, help="so many, instead of for so long")
    parser.add_argument("--first", type=int, default=None, help="the first of them (0; without --seeds: by the clock)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long (60)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed:
        failures = [(seed, found) for seed in options.seed if (found := failure(plan(seed)))]
        for seed, found in failures:
            _tell(seed, found)
        sys.stdout.write(f"{len(options.seed):,} seeds, {len(failures)} failed.\n")
        return int(bool(failures))
    first = options.first
    if first is None:
        first = 0 if options.seeds else int(time.time()) % 10_000_000 * 100
    last = first + options.seeds if options.seeds else None
    until = float("inf") if options.seeds else time.monotonic() + options.seconds
    sys.stdout.write(f"Seeds from {first} on {options.processes} processes ...\n")
    tried, failed = 0, list[tuple[int, Failure]]()
    for count, found in _hunt(first, last, until, options.processes):
        tried += count
        failed += found
    sys.stdout.write(f"{tried:,} seeds, {len(failed)} failed.\n")
    for seed, found in sorted(failed, key=lambda pair: pair[0])[:5]:
        _tell(seed, found)
    return int(bool(failed))


def _hunt(
    first: int, last: int | None, until: float, processes: int
) -> Iterator[tuple[int, list[tuple[int, Failure]]]]:
    """Batches of seeds, each as how many and which failed."""
    with ProcessPoolExecutor(processes) as pool:
        running: set[Future[tuple[int, list[tuple[int, Failure]]]]] = set()
        while True:
            more = time.monotonic() < until and (last is None or first < last)
            while more and len(running) < 2 * processes:
                stop = first + BATCH if last is None else min(last, first + BATCH)
                running.add(pool.submit(_batch, first, stop))
                first = stop
                more = last is None or first < last
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _batch(first: int, stop: int) -> tuple[int, list[tuple[int, Failure]]]:
    found = [(seed, failure(plan(seed))) for seed in range(first, stop)]
    return stop - first, [(seed, one) for seed, one in found if one is not None]


def _tell(seed: int, found: Failure) -> None:
    """Print a failure so that someone else can go on from it."""
    short = shorten(plan(seed), found.kind)
    again = failure(short) or found
    lines = [
        f"\nseed {seed} at commit {_commit()}: {found.text}",
        "The shortest plan found that fails alike:",
        *short.lines(),
        f"It says: {again.text}",
        "What led there:",
        *story(short, again.text),
        f"Replay: make sim SEED={seed}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _commit() -> str:
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
