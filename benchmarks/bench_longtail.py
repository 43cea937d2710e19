"""Texts of very different lengths: a replica fed by credit against the same runtime given everything at once.

Lengths are lognormal, between 2 and 1,000 tokens (an eighth of 16 to 8,000, for a small random model on one CPU
thread). Three ways, in turn: all rows added at once; rows added by credit, as an agent does (up to `wanted`, once an
eighth of that is free, told of a new `wanted` with finished rows or once a second); and the rows of a file through a
pool of one worker. Each has a model of its own, which has run before. Figures are medians of the rounds' ratios to `at
once`: of the CPU time of the process that computes, which other work disturbs least, of the wall time, and of the rows
that decode together in a pass (until 80 % of the rows are done; then the longest texts end one by one, whoever feeds).

    python benchmarks/bench_longtail.py [--rows 400] [--rounds 5]

Aim: within 5 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psutil  # noqa: E402

from benchmarks.measure import environment, save, show  # noqa: E402
from pilotlight import LLM, Pool  # noqa: E402
from pilotlight.ports import Row  # noqa: E402
from pilotlight.runtimes.transformers import TransformersRuntime  # noqa: E402
from pilotlight.wire import DeviceSpec, Operation, Sampling  # noqa: E402
from tests import tiny  # noqa: E402

MEDIAN_TOKENS, SIGMA, TOKENS_MIN, TOKENS_MAX = 32, 1.3, 2, 1000
STEADY = 0.8
"""Beyond this part of the rows the longest texts end one by one, whoever feeds."""
POOL = "through a pool"
DEVICE = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=8 << 30, threads=1)
OPERATION = Operation(kind="generate", result_format="openai", sampling=Sampling(temperature=0.0, ignore_eos=True))


@dataclass
class Took:
    """CPU and wall seconds for all rows; rows per decoding pass until `STEADY` of them are done."""

    cpu_s: float
    wall_s: float
    rows_per_pass: float


def bodies(rows: int, seed: int) -> list[dict[str, Any]]:
    """Requests of an OpenAI batch file, which may each say how long they get."""
    lengths = random.Random(seed)
    found: list[dict[str, Any]] = []
    for row in range(rows):
        tokens = int(math.exp(lengths.gauss(math.log(MEDIAN_TOKENS), SIGMA)))
        prompt = [10 + (7 * row + place) % 300 for place in range(8 + row % 24)]
        body = {"model": "tiny", "prompt": prompt, "max_tokens": min(TOKENS_MAX, max(TOKENS_MIN, tokens))}
        request = {"custom_id": str(row), "method": "POST", "url": "/v1/completions", "body": body}
        found.append(request)
    return found


class Passes:
    """Counts a model's decoding passes, and the rows that they move on."""

    def __init__(self, model: Any) -> None:
        self.count = self.rows = 0
        self._decode = model._decoder._token  # noqa: SLF001 - what is measured is inside
        model._decoder._token = self._counted  # noqa: SLF001

    def _counted(self, running: Any) -> Any:
        self.count += 1
        self.rows += running.live()
        return self._decode(running)


def in_process(model: Any, rows: list[dict[str, Any]], *, by_credit: bool) -> Took:
    """Through `add` and `step`."""
    passes = Passes(model)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    rows_per_pass, told_s = 0.0, began_s
    at = done = 0
    wanted = model.wanted if by_credit else len(rows)
    while done < len(rows):
        room = wanted - (at - done)
        if at < len(rows) and (at == done or room >= max(1, wanted // 8)):
            stop = min(len(rows), at + room)
            model.add(OPERATION, [Row(index, index, rows[index]) for index in range(at, stop)])
            at = stop
        outcomes = model.step()
        assert all(outcome.error_kind is None for outcome in outcomes), outcomes
        done += len(outcomes)
        if by_credit and (outcomes or time.perf_counter() - told_s >= 1.0):
            wanted, told_s = model.wanted, time.perf_counter()
        if not rows_per_pass and done >= STEADY * len(rows):
            rows_per_pass = passes.rows / passes.count
    return Took(time.process_time() - began_cpu_s, time.perf_counter() - began_s, rows_per_pass)


def through_pool(pool: Pool, llm: LLM, rows: list[dict[str, Any]], folder: Path) -> Took:
    """Between files, on the live context."""
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before_s = replicas_cpu_s()
    began_s = time.perf_counter()
    job = pool.run_files(llm, OPERATION, [source], out, overwrite=True)
    ended = job.wait()
    wall_s = time.perf_counter() - began_s
    assert ended.view.rows_error == 0, ended.view.errors
    return Took(replicas_cpu_s() - before_s, wall_s, math.nan)


def replicas_cpu_s() -> float:
    """Of the processes that compute."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if "pilotlight.worker.server" in " ".join(process.cmdline()):
            total += sum(process.cpu_times()[:2])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="A replica fed by credit against one that has everything.")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.update(environment())
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    config = tiny.make_config(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4096,
        initializer_range=0.02,
        max_position_embeddings=2048,
    )
    seen: dict[str, list[Took]] = {"at once": [], "by credit": [], POOL: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model_folder = tiny.make_model(folder / "model", config=config)
        models = {
            name: TransformersRuntime().load(tiny.context_of(model_folder), DEVICE) for name in seen if name != POOL
        }
        with Pool(1) as pool:
            llm = LLM(model_folder)
            few = bodies(arguments.rows // 2, 1000)
            through_pool(pool, llm, few, folder)
            for name, model in models.items():
                in_process(model, few, by_credit=name == "by credit")
            for round_ in range(arguments.rounds):
                rows = bodies(arguments.rows, round_)
                for name, model in models.items():
                    seen[name].append(in_process(model, rows, by_credit=name == "by credit"))
                seen[POOL].append(through_pool(pool, llm, rows, folder))
        for model in models.values():
            model.close()
    figures: dict[str, Any] = {"rows": arguments.rows, "rounds": arguments.rounds}
    table: list[list[object]] = []
    for name, each in seen.items():
        pairs = list(zip(each, seen["at once"], strict=True))
        figures[name] = {
            what: statistics.median(getattr(mine, what) / getattr(its, what) for mine, its in pairs)
            for what in ("cpu_s", "wall_s", "rows_per_pass")
            if name != POOL or what != "rows_per_pass"
        }
        rate = arguments.rows / statistics.median(took.cpu_s for took in each)
        table.append([name, f"{rate:.1f}", *(f"{value:.3f}" for value in figures[name].values())])
    header = ("", "rows per CPU second", "CPU, ratio", "wall, ratio", "rows per pass, ratio")
    show("Lognormal lengths", header, table)
    save("longtail", figures)


if __name__ == "__main__":
    main()
