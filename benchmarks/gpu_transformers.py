"""The transformers runtime on a GPU: seconds to load and to unload, memory before and after, rows per second.

    python benchmarks/gpu_transformers.py [--device cpu] [--rows 4096]

A Llama of about 135 million random parameters. Rates are medians; a model that has gone should leave no memory behind.
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

ROUNDS = 3
NEW_TOKENS = 32
WORDS = ("the", "river", "claim", "evidence", "born", "in", "Paris", "Warsaw", "water", "fox", "dog", "hello", "world")
OPERATIONS = {
    "classify": Operation(kind="classify", labels=["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]),
    "generate": Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)),
}


def prompts(rows: int) -> list[str]:
    """Texts of 5 to 45 words, always the same."""
    return [
        " ".join(WORDS[(row * 7 + place) % len(WORDS)] for place in range(5 + row * 13 % 40)) for row in range(rows)
    ]


def seconds(model: Any, operation: Operation, texts: list[str]) -> float:
    """For all rows, handed over as a replica would: never more than the model wants."""
    start_s = time.perf_counter()
    at = done = 0
    while done < len(texts):
        stop = min(len(texts), at + max(0, model.wanted - model.pending))
        model.add(operation, [Row(index, index, {"prompt": texts[index]}) for index in range(at, stop)])
        at = stop
        for outcome in model.step():
            assert outcome.error_kind is None, outcome.error
            done += 1
    return time.perf_counter() - start_s


def allocated_bytes(device: str) -> int:
    """Device memory that torch holds for tensors; 0 on a CPU, where torch does not count."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Load, unload and rate of the transformers runtime.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()
    config = tiny.make_config(**random_llama.shape(arguments.layers), initializer_range=0.02)
    device = DeviceSpec(
        id="it",
        kind="it",
        type=arguments.device,
        memory_bytes=8 << 30,
        visible="0" if arguments.device == "cuda" else "",
    )
    figures: dict[str, Any] = {"rows": arguments.rows, "device": arguments.device}
    texts = prompts(arguments.rows)
    with tempfile.TemporaryDirectory() as scratch:
        context = tiny.context_of(tiny.make_model(Path(scratch) / "model", config=config))
        loads_s: list[float] = []
        unloads_s: list[float] = []
        rates: dict[str, list[float]] = {name: [] for name in OPERATIONS}
        before_bytes = allocated_bytes(arguments.device)
        for _ in range(ROUNDS):
            start_s = time.perf_counter()
            model = TransformersRuntime().load(context, device)
            loads_s.append(time.perf_counter() - start_s)
            figures["live_bytes"] = allocated_bytes(arguments.device)
            for name, operation in OPERATIONS.items():
                rates[name].append(len(texts) / seconds(model, operation, texts))
            start_s = time.perf_counter()
            model.close()
            del model
            unloads_s.append(time.perf_counter() - start_s)
        figures["left_bytes"] = allocated_bytes(arguments.device) - before_bytes
    figures["load_s"] = {"first": loads_s[0], "later": statistics.median(loads_s[1:])}
    figures["unload_s"] = statistics.median(unloads_s)
    figures["rows_per_s"] = {name: statistics.median(each) for name, each in rates.items()}
    lines = [("load, first", f"{loads_s[0]:.2f} s"), ("load, later", f"{figures['load_s']['later']:.2f} s")]
    lines += [("unload", f"{figures['unload_s']:.3f} s"), ("memory left behind", f"{figures['left_bytes']:,} bytes")]
    lines += [(name, f"{rate:,.0f} rows/s") for name, rate in figures["rows_per_s"].items()]
    show("the transformers runtime", ("what", "how much"), lines)
    save("gpu_transformers", figures)


if __name__ == "__main__":
    main()
