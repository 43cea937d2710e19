"""The peer of `bench_overhead`: files of prompts through one model in one process, without Pilotlight around it.

    python benchmarks/peer_transformers.py hand|runtime MODEL

hand: transformers as one would write it: prompts sorted by length within a window, right-padded batches, the output
layer at each prompt's last token only, the labels' (single) tokens compared. runtime: this project's transformers
runtime in a plain loop, so the same batches as in a replica. Reads lines `IN<tab>OUT` and answers each with a line of
JSON: seconds and CPU seconds from opening IN to closing OUT.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

LABELS = ["S", "R", "N"]
WINDOW_ROWS = 512
BATCH_ROWS = 64


def make_hand(folder: str) -> Callable[[str, str], None]:
    import torch
    import transformers

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokens = [tokenizer.encode(f"a {label}", add_special_tokens=False)[-1] for label in LABELS]

    def score(window: list[str]) -> list[list[float]]:
        encoded = tokenizer(window)["input_ids"]
        order = sorted(range(len(window)), key=lambda at: len(encoded[at]))
        scores: list[list[float]] = [[]] * len(window)
        for first in range(0, len(order), BATCH_ROWS):
            part = order[first : first + BATCH_ROWS]
            longest = max(len(encoded[at]) for at in part)
            ids = torch.tensor([encoded[at] + [0] * (longest - len(encoded[at])) for at in part])
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            last = torch.tensor([len(encoded[at]) - 1 for at in part])
            logits = model.lm_head(hidden[torch.arange(len(part)), last]).float().log_softmax(-1)[:, tokens].tolist()
            for at, row in zip(part, logits, strict=True):
                scores[at] = row
        return scores

    def work(source: str, out: str) -> None:
        with torch.inference_mode(), open(source) as lines, open(out, "w") as results:
            rows = [json.loads(line)["prompt"] for line in lines]
            for first in range(0, len(rows), WINDOW_ROWS):
                for offset, row in enumerate(score(rows[first : first + WINDOW_ROWS])):
                    best = max(range(len(LABELS)), key=row.__getitem__)
                    answer = {"label": LABELS[best], "scores": dict(zip(LABELS, row, strict=True))}
                    results.write(json.dumps({"index": first + offset, "result": answer}) + "\n")

    return work


def make_runtime(folder: str) -> Callable[[str, str], None]:
    from pilotlight.ports import Row
    from pilotlight.runtimes.transformers import TransformersRuntime
    from pilotlight.wire import Context, DeviceSpec, Operation

    runtime = TransformersRuntime()
    runtime.preload()
    device = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=2 << 30, threads=1)
    context = Context(runtime="transformers", name=folder, identity="bench", model_path=folder)
    model = runtime.load(context, device)
    operation = Operation(kind="classify", labels=LABELS)

    def work(source: str, out: str) -> None:
        with open(source) as lines, open(out, "w") as results:
            rows = [Row(index, index, json.loads(line)) for index, line in enumerate(lines)]
            at = done = 0
            while done < len(rows):
                stop = min(len(rows), at + max(0, model.wanted - model.pending))
                if stop > at:
                    model.add(operation, rows[at:stop])
                    at = stop
                for outcome in model.step():
                    done += 1
                    results.write(json.dumps({"index": outcome.ticket, "result": outcome.result}) + "\n")

    return work


def main() -> None:
    kind, folder = sys.argv[1:]
    work = {"hand": make_hand, "runtime": make_runtime}[kind](folder)
    print("ready", flush=True)
    for line in sys.stdin:
        source, out = line.rstrip("\n").split("\t")
        began_s, cpu_s = time.perf_counter(), time.process_time()
        work(source, out)
        seen = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_s}
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
