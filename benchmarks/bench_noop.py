"""No-op requests: JSON lines in and out, two workers, beside a pool of two processes that does the same by hand.

`pilotlight run --runtime echo` decodes each row, hands it through its model's loop and encodes an answer; the pool's
function decodes the line, wraps it and encodes it, and its parent writes the answers in order.

    python benchmarks/bench_noop.py [--rows 10000 100000 1000000] [--rounds 2]

CPU per request and requests per second "in the long run" are slopes between the smallest and the largest size, so that
starting up is not in them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import ROOT, Usage, command, run, save, show, write_rows

CHUNK_1_ROWS_MAX = 100_000
"""A chunk size of 1 is slow, and holds one future per row in memory."""
ROLES = ("command", "manager", "agents", "replicas")


def ours(rows: Path, out: Path) -> Usage:
    return run(command("run", rows, "-o", out, "--runtime", "echo", "--workers", 2, "--quiet", "--overwrite"))


def executor(rows: Path, out: Path, chunk: int) -> Usage:
    return run([sys.executable, str(ROOT / "benchmarks" / "peer_executor.py"), str(rows), str(out), str(chunk)])


def slope(small: tuple[int, float], large: tuple[int, float]) -> float:
    """Seconds per request."""
    return (large[1] - small[1]) / max(1, large[0] - small[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="No-op requests per second, CPU and memory.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    sizes = sorted(arguments.rows)
    found: dict[tuple[str, int], list[Usage]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs = {size: write_rows(folder / f"{size}.jsonl", size) for size in sizes}
        for _ in range(arguments.rounds):
            for size, path in inputs.items():
                found.setdefault(("pilotlight", size), []).append(ours(path, folder / "ours.jsonl"))
                found.setdefault(("executor, chunk 100", size), []).append(executor(path, folder / "peer.jsonl", 100))
                if size <= CHUNK_1_ROWS_MAX:
                    found.setdefault(("executor, chunk 1", size), []).append(executor(path, folder / "peer.jsonl", 1))
                check(path, folder / "ours.jsonl")
    report(found, sizes)


def check(source: Path, out: Path) -> None:
    """A benchmark of wrong answers is none: as many lines as rows, the last one in its place."""
    import json

    lines = out.read_bytes().splitlines()
    rows = source.read_bytes().splitlines()
    assert len(lines) == len(rows), "a row is missing"
    assert json.loads(lines[-1])["result"] == json.loads(rows[-1]), "rows are out of order"


def report(found: dict[tuple[str, int], list[Usage]], sizes: list[int]) -> None:
    """Tables on the terminal, figures in the file: medians over rounds."""

    def middle(name: str, size: int, what: Any) -> float:
        return statistics.median(what(usage) for usage in found[name, size])

    figures: dict[str, Any] = {"sizes": {}, "long_run": {}}
    table: list[list[object]] = []
    for name, size in sorted(found, key=lambda key: (key[1], key[0] != "pilotlight", key[0])):
        ratio = statistics.median(
            peer.wall_s / mine.wall_s for mine, peer in zip(found["pilotlight", size], found[name, size], strict=True)
        )
        wall_s = middle(name, size, lambda usage: usage.wall_s)
        boss = "manager" if name == "pilotlight" else "command"
        peak = middle(name, size, lambda usage, boss=boss: usage.peak_bytes.get(boss, 0)) / 2**20
        table.append([name, f"{size:,}", f"{wall_s:.2f}", f"{size / wall_s:,.0f}", f"{peak:.0f}", f"{ratio:.2f}"])
        figures["sizes"].setdefault(name, {})[size] = {
            "wall_s": wall_s,
            "requests_per_s": size / wall_s,
            "boss_peak_mib": peak,
            "wall_ratio_to_ours": ratio,
        }
    header = ["", "requests", "wall s", "requests/s", "MiB, manager or parent", "their wall time / ours"]
    show("No-op requests, whole command", header, table)
    table = []
    names = dict.fromkeys(name for name, _ in found)
    for name in names:
        of = [size for size in sizes if (name, size) in found]
        if len(of) < 2:
            continue
        low, high = of[0], of[-1]

        def per(what: Any, name: str = name, low: int = low, high: int = high) -> float:
            return slope((low, middle(name, low, what)), (high, middle(name, high, what)))

        cpu_us = {role: 1e6 * per(lambda usage, role=role: usage.cpu_s.get(role, 0.0)) for role in ROLES}
        wall_us = 1e6 * per(lambda usage: usage.wall_s)
        total_us = sum(cpu_us.values())
        rate = 1e6 / wall_us if wall_us > 0 else float("nan")
        split = ["" if cpu_us[role] < 0.005 else f"{cpu_us[role]:.2f}" for role in ROLES]
        table.append([name, f"{rate:,.0f}", *split, f"{total_us:.2f}", f"{2e6 / total_us:,.0f}"])
        figures["long_run"][name] = {"requests_per_s": rate, "cpu_us": cpu_us, "cpu_us_total": total_us}
    header = [
        "",
        "requests/s",
        *(f"{role}, CPU us" for role in ROLES),
        "all, CPU us",
        "requests/s that 2 whole cores give",
    ]
    show("In the long run, per request", header, table)
    save("noop", figures)


if __name__ == "__main__":
    main()
