"""What the command costs before it does anything: `pilotlight --help`, `import pilotlight`, beside a bare interpreter.

python benchmarks/bench_startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import command, environment, save, show

CASES = {
    "python -c pass": [sys.executable, "-P", "-c", "pass"],
    "import pilotlight": [sys.executable, "-P", "-c", "import pilotlight"],
    "from pilotlight import Pool, LLM": [sys.executable, "-P", "-c", "from pilotlight import LLM, Pool"],
    "pilotlight --version": command("--version"),
    "pilotlight --help": command("--help"),
    "pilotlight run --help": command("run", "--help"),
}


def once(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.perf_counter()
    subprocess.run(arguments, env=environment(), stdout=subprocess.DEVNULL, check=True)
    wall_s = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to start.")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for case in CASES.values():
        once(case)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, case in CASES.items():
            found[name].append(once(case))
    table: list[list[object]] = []
    figures: dict[str, dict[str, float]] = {}
    bare_s = statistics.median(wall_s for wall_s, _ in found["python -c pass"])
    for name, times in found.items():
        wall_s = statistics.median(wall_s for wall_s, _ in times)
        best_s = min(wall_s for wall_s, _ in times)
        cpu_s = statistics.median(cpu_s for _, cpu_s in times)
        figures[name] = {"wall_s": wall_s, "wall_s_best": best_s, "cpu_s": cpu_s, "ratio": wall_s / bare_s}
        table.append([name, f"{wall_s:.3f}", f"{best_s:.3f}", f"{cpu_s:.3f}", f"{wall_s / bare_s:.1f}"])
    show("Starting", ["", "wall s, median", "best", "CPU s", "times a bare Python"], table)
    save("startup", figures)


if __name__ == "__main__":
    main()
