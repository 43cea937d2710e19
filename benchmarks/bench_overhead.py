"""The whole system around a model, beside loops that do the same in one process: what Pilotlight adds.

Claims with their evidence are scored against three one-token labels, JSON lines in and out, everything loaded before
the clock starts: by a pool of one worker, by the same runtime in a plain loop, and by transformers as one would write
it by hand. They take turns, and figures are medians of ratios of neighbours. All of it stays on one core, so that what
manager and agent use is taken from the model and shows in the time.

    python benchmarks/bench_overhead.py [--model FOLDER | --hidden 576 --layers 30] [--rows 1500] [--rounds 5]

Without --model it is the bundled one; --hidden makes a Llama with random weights (576 and 30: about 135M parameters).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

import psutil  # noqa: E402

from benchmarks.measure import ROOT, environment, manager_pid, save, show  # noqa: E402
from benchmarks.peer_transformers import LABELS  # noqa: E402
from pilotlight import LLM, Pool  # noqa: E402
from pilotlight.factcheck import bundled  # noqa: E402
from pilotlight.factcheck.claims import render_prompt  # noqa: E402
from pilotlight.wire import Operation  # noqa: E402


class Peer:
    """A loop in a process of its own that keeps its model."""

    def __init__(self, kind: str, folder: Path) -> None:
        script = str(ROOT / "benchmarks" / "peer_transformers.py")
        self._process = subprocess.Popen(
            [sys.executable, script, kind, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        assert self._read() == "ready\n", f"the peer {kind} could not start"

    def run(self, source: Path, out: Path) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{source}\t{out}\n")
        self._process.stdin.flush()
        seen: dict[str, float] = json.loads(self._read())
        return seen

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def cpu_s(pool_pid: int) -> float:
    """Of this process and of all processes of the pool."""
    total = sum(psutil.Process().cpu_times()[:2])
    root = psutil.Process(pool_pid)
    for process in [root, *root.children(recursive=True)]:
        total += sum(process.cpu_times()[:2])
    return total


def ours(pool: Pool, llm: LLM, source: Path, out: Path) -> dict[str, float]:
    """A job between files on the live context."""
    manager = manager_pid()
    before = cpu_s(manager)
    began_s = time.perf_counter()
    operation = Operation(kind="classify", labels=LABELS)
    ended = pool.run_files(llm, operation, [source], out, overwrite=True).wait()
    seen = {"wall_s": time.perf_counter() - began_s, "cpu_s": cpu_s(manager) - before}
    assert ended.view.rows_error == 0, ended.view.errors
    return seen


def same_answers(one: Path, other: Path) -> float:
    """Part of the rows with the same label; padding moves scores in their last digits."""
    found: list[dict[int, str]] = []
    for path in (one, other):
        rows = map(json.loads, path.read_text().splitlines())
        found.append({row["index"]: row["result"]["label"] for row in rows})
    return sum(found[0][index] == label for index, label in found[1].items()) / len(found[1])


def make_model(folder: Path, hidden: int, layers: int) -> Path:
    from tests import tiny

    config = tiny.make_config(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=9 if hidden % 9 == 0 else 4,
        num_key_value_heads=3 if hidden % 9 == 0 else 4,
        initializer_range=0.02,
        vocab_size=49152,
    )
    return Path(tiny.make_model(folder, config=config))


def write_prompts(path: Path, rows: int) -> Path:
    claims = [json.loads(line) for line in bundled.claims_file().read_text().splitlines()]
    with path.open("w") as file:
        for at in range(rows):
            claim = claims[at % len(claims)]
            file.write(json.dumps({"prompt": render_prompt(claim["claim"], claim["evidence"])}) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="What the whole system adds to a loop over a model.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.update(environment())
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seen: dict[str, list[dict[str, float]]] = {"pilotlight": [], "runtime": [], "hand": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.hidden:
            model = make_model(folder / "model", arguments.hidden, arguments.layers)
        else:
            model = arguments.model or bundled.model_folder()
        source, few = write_prompts(folder / "in.jsonl", arguments.rows), write_prompts(folder / "few.jsonl", 64)
        llm = LLM(model)
        peers = {kind: Peer(kind, model) for kind in ("runtime", "hand")}
        with Pool(1) as pool:
            ours(pool, llm, few, folder / "few.out")
            for peer in peers.values():
                peer.run(few, folder / "few.out")
            for _ in range(arguments.rounds):
                seen["pilotlight"].append(ours(pool, llm, source, folder / "pilotlight.jsonl"))
                for kind, peer in peers.items():
                    seen[kind].append(peer.run(source, folder / f"{kind}.jsonl"))
        for peer in peers.values():
            peer.close()
        same = {kind: same_answers(folder / "pilotlight.jsonl", folder / f"{kind}.jsonl") for kind in peers}
    report(seen, same, arguments)


def report(seen: dict[str, list[dict[str, float]]], same: dict[str, float], arguments: argparse.Namespace) -> None:
    names = {
        "pilotlight": "pilotlight, one worker",
        "runtime": "its runtime in a plain loop",
        "hand": "transformers by hand",
    }
    table: list[list[object]] = []
    figures: dict[str, Any] = {"rows": arguments.rows, "hidden": arguments.hidden, "same_labels": same}
    for kind, name in names.items():
        pairs = list(zip(seen["pilotlight"], seen[kind], strict=True))
        wall = statistics.median(mine["wall_s"] / theirs["wall_s"] for mine, theirs in pairs)
        cpu = statistics.median(mine["cpu_s"] / theirs["cpu_s"] for mine, theirs in pairs)
        rate = arguments.rows / statistics.median(run["wall_s"] for run in seen[kind])
        cpu_us = 1e6 * statistics.median(run["cpu_s"] for run in seen[kind]) / arguments.rows
        figures[kind] = {"rows_per_s": rate, "cpu_us_per_row": cpu_us, "our_wall": wall, "our_cpu": cpu}
        agreed = "" if kind == "pilotlight" else f"{100 * same[kind]:.2f} %"
        table.append([name, f"{rate:,.0f}", f"{cpu_us:,.0f}", f"{wall:.3f}", f"{cpu:.3f}", agreed])
    header = ["", "rows/s", "CPU us/row", "our wall / theirs", "our CPU / theirs", "same labels"]
    show("The whole system around a model", header, table)
    save("overhead" if not arguments.hidden else f"overhead-{arguments.hidden}", figures)


if __name__ == "__main__":
    main()
