"""What a live context saves: the first result of a cold pool, of a second job, and of a replica that was killed.

Through the Python API (`pilotlight.Pool`, one worker), with the echo runtime and with the bundled model; beside them a
fresh interpreter that loads the same model with transformers and scores one prompt.

    python benchmarks/bench_context.py [--rounds 3] [--jobs 20]

cold: from `Pool()` to the first result. second job: from the call to the first result, one row. killed: from SIGKILL of
the replica to the first result of a job that is handed in right after it. All of it stays on one core: a model on
several threads waits for the slowest of them, which on a busy machine drowns everything else.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from benchmarks.measure import environment, save, show  # noqa: E402
from pilotlight import LLM, Pool  # noqa: E402
from pilotlight.factcheck import bundled  # noqa: E402
from pilotlight.messages import Notice, Snapshot  # noqa: E402

LABELS = ["SUPPORTS", "REFUTES"]
PROMPT = "Evidence: Havana is the capital of Cuba.\nClaim: Havana is in Cuba.\nVerdict:"
BY_HAND = """
import sys, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.inference_mode():
    logits = model(**tokenizer(sys.argv[2], return_tensors="pt")).logits[0, -1].log_softmax(-1)
print(float(logits[tokenizer.encode(" S", add_special_tokens=False)[-1]]))
"""
Ask = Callable[[Pool], Any]


class Sight:
    """The process id of the live replica, as the pool tells its watchers."""

    def __init__(self, pool: Pool) -> None:
        self._changed = threading.Condition()
        self._pid = 0
        pool.watch(self._saw)

    def _saw(self, message: Snapshot | Notice) -> None:
        if isinstance(message, Snapshot):
            live = [r.pid for worker in message.workers for r in worker.replicas if r.state == "live"]
            with self._changed:
                self._pid = live[0] if live else 0
                self._changed.notify_all()

    def pid(self, but: int = 0) -> int:
        """Wait for a live replica other than `but`."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._pid not in (0, but), 60.0), "no replica is live"
            return self._pid


def timed(pool: Pool, ask: Ask) -> float:
    """Seconds to a job's first result."""
    began_s = time.perf_counter()
    result = next(iter(ask(pool)))
    seconds = time.perf_counter() - began_s
    assert result.error is None, result.error
    return seconds


def measure(ask: Ask, rounds: int, jobs: int) -> dict[str, list[float]]:
    seen: dict[str, list[float]] = {"cold": [], "second job": [], "killed": []}
    for _ in range(rounds):
        began_s = time.perf_counter()
        with Pool(1, watch_s=0.05) as pool:
            sight = Sight(pool)
            timed(pool, ask)
            seen["cold"].append(time.perf_counter() - began_s)
            seen["second job"] += [timed(pool, ask) for _ in range(jobs)]
            pid = 0
            for _ in range(3):
                pid = sight.pid(but=pid)
                os.kill(pid, signal.SIGKILL)
                seen["killed"].append(timed(pool, ask))
    return seen


def by_hand(folder: Path) -> float:
    began_s = time.perf_counter()
    arguments = [sys.executable, "-c", BY_HAND, str(folder), PROMPT]
    subprocess.run(arguments, check=True, env=environment(), capture_output=True)
    return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description="Cold, second job, killed replica: seconds to the first result.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.update(environment())
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    folder = bundled.model_folder()
    echo, model = LLM("echo", runtime="echo"), LLM(folder)
    cases: dict[str, Ask] = {
        "echo": lambda pool: pool.generate(echo, [PROMPT]),
        "bundled model": lambda pool: pool.classify(model, [PROMPT], labels=LABELS),
    }
    table: list[list[object]] = []
    figures: dict[str, Any] = {}
    for name, ask in cases.items():
        seen = measure(ask, arguments.rounds, arguments.jobs)
        if name != "echo":
            seen["transformers by hand, fresh interpreter"] = [by_hand(folder) for _ in range(arguments.rounds)]
        cold_s = statistics.median(seen["cold"])
        for what, seconds in seen.items():
            middle_s = statistics.median(seconds)
            figures.setdefault(name, {})[what] = {
                "s_median": middle_s,
                "s_best": min(seconds),
                "s_worst": max(seconds),
                "part_of_cold": middle_s / cold_s,
            }
            spread = f"{1e3 * min(seconds):,.1f} to {1e3 * max(seconds):,.1f}"
            table.append([name, what, f"{1e3 * middle_s:,.1f}", spread, f"{middle_s / cold_s:.3f}"])
    show("First result", ["", "", "ms, median", "best to worst", "of cold"], table)
    save("context", figures)


if __name__ == "__main__":
    main()
