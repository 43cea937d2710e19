"""Prompts with a common head: its keys and values kept as an attachment, against reading it with every row.

Rows are 100 tokens that all have in common and 20 of their own, on a Llama of the shape of a 135M model with random
weights: `generate` of four tokens, and `classify` into three labels. The runtime runs in this process, once with and
once without sharing; both sides alternate and the figures are prompts per CPU second, medians of the rounds. A second
table has three heads in turn, as few-shot variants would.

    python benchmarks/bench_prefix.py [--rows 24] [--rounds 2] [--layers 30]

Aim: at least three times the prompts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import random_llama  # noqa: E402
from benchmarks.measure import save, show  # noqa: E402
from pilotlight.ports import Row  # noqa: E402
from pilotlight.runtimes.transformers import TransformersRuntime  # noqa: E402
from pilotlight.wire import DeviceSpec, Operation, Sampling  # noqa: E402
from tests import tiny  # noqa: E402

SHARED_TOKENS, OWN_TOKENS, NEW_TOKENS = 100, 20, 4
OPERATIONS = {
    "generate": Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)),
    "classify": Operation(kind="classify", labels=["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]),
}
DEVICE = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=8 << 30, threads=1)


def prompts(rows: int, heads: int, seed: int) -> list[list[int]]:
    """Token ids; `seed` changes what rows have of their own, and not their heads."""
    return [
        [10 + (7 * place + row % heads) % 300 for place in range(SHARED_TOKENS)]
        + [10 + (31 * row + 17 * place + seed) % 300 for place in range(OWN_TOKENS)]
        for row in range(rows)
    ]


def run(model: Any, operation: Operation, rows: list[list[int]]) -> tuple[float, list[Any]]:
    """CPU seconds for all rows, handed over as a replica would; results in order."""
    start_s = time.process_time()
    at = 0
    results: dict[int, Any] = {}
    while len(results) < len(rows):
        stop = min(len(rows), at + max(0, model.wanted - model.pending))
        model.add(operation, [Row(index, index, {"prompt": rows[index]}) for index in range(at, stop)])
        at = stop
        for outcome in model.step():
            assert outcome.error_kind is None, outcome.error
            results[outcome.ticket] = outcome.result
    return time.process_time() - start_s, [results[index] for index in range(len(rows))]


def same(one: list[Any], other: list[Any]) -> float:
    """Part of the rows with the same text or label."""
    key = "text" if "text" in one[0] else "label"
    return statistics.mean(a[key] == b[key] for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Prompts per CPU second with a shared head kept, and without.")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()
    config = tiny.make_config(**random_llama.shape(arguments.layers), initializer_range=0.02)
    figures: dict[str, Any] = {"rows": arguments.rows, "rounds": arguments.rounds, "layers": arguments.layers}
    table: list[list[object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        context = tiny.context_of(tiny.make_model(Path(scratch) / "model", config=config))
        models = {share: TransformersRuntime(share_prefixes=share).load(context, DEVICE) for share in (True, False)}
        for heads in (1, 3):
            for name, operation in OPERATIONS.items():
                for share, model in models.items():
                    run(model, operation, prompts(8 if share else 4, heads, 1000))
                seconds: dict[bool, list[float]] = {True: [], False: []}
                agreed: list[float] = []
                for round_ in range(arguments.rounds):
                    rows = prompts(arguments.rows, heads, round_)
                    found = {share: run(model, operation, rows) for share, model in models.items()}
                    for share, (cpu_s, _) in found.items():
                        seconds[share].append(cpu_s)
                    agreed.append(same(found[True][1], found[False][1]))
                rate = {share: arguments.rows / statistics.median(each) for share, each in seconds.items()}
                ratio = statistics.median(off / on for on, off in zip(seconds[True], seconds[False], strict=True))
                figures[f"{name}-{heads}"] = {"on": rate[True], "off": rate[False], "ratio": ratio}
                agreement = f"{100 * statistics.mean(agreed):.0f} %"
                table.append([name, heads, f"{rate[True]:.1f}", f"{rate[False]:.1f}", f"{ratio:.2f}", agreement])
        figures["attachment_bytes"] = models[True].attachment_bytes
        figures["first_s"], figures["second_s"] = first_and_second(context)
        for model in models.values():
            model.close()
    title = f"{SHARED_TOKENS} tokens in common and {OWN_TOKENS} own: prompts per CPU second"
    show(title, ("", "heads", "kept", "read each time", "ratio", "same answers"), table)
    print(f"attachments at the end: {figures['attachment_bytes'] / 1e6:.1f} MB")
    print(f"after a load, first request {figures['first_s']:.3f} CPU s, second {figures['second_s']:.3f}")
    save("prefix", figures)


def first_and_second(context: Any) -> tuple[float, float]:
    """CPU seconds of the first and the second request after a load: warming up should leave no difference."""
    model = TransformersRuntime().load(context, DEVICE)
    took_s = [run(model, OPERATIONS["generate"], prompts(1, 1, seed))[0] for seed in (5, 6)]
    model.close()
    return took_s[0], took_s[1]


if __name__ == "__main__":
    main()
