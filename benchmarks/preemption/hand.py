"""What users run without Pilotlight: claims through transformers, in one process, written straightforwardly and well.

    python -m benchmarks.preemption.hand once|serve|shard MODEL PROMPTS --speed 1.0 [--rows START STOP --out FILE]

once: load the model, do these rows, end. serve: read `START STOP OUT` lines, and load the model anew for each. shard:
load the model, skip what OUT already has, do the rest; a batch is in OUT as soon as it is done. Every event is a line
of JSON on stdout, with the machine's monotonic clock, so that whoever kills this process knows what it had in hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.preemption.claims import LABELS

WINDOW_ROWS = 512
"""Rows are sorted by length within a window."""
BATCH_ROWS = 64


def tell(what: str, **more: object) -> None:
    print(json.dumps({"what": what, "at_s": time.monotonic(), **more}), flush=True)


def import_libraries() -> None:
    """What loading the bundled model needs; transformers imports its parts when they are looked at."""
    import torch  # noqa: F401
    import transformers
    import transformers.models.llama.modeling_llama

    assert transformers.AutoModelForCausalLM is not None
    assert transformers.AutoTokenizer is not None


class Verifier:
    """Tokenizer and model, loaded. Labels are compared by their summed log-likelihoods after a prompt, which is read
    once; its keys and values are kept for the labels."""

    def __init__(self, folder: str, speed: float) -> None:
        import_libraries()
        import torch
        import transformers

        began_s = time.monotonic()
        torch.set_num_threads(1)
        self.torch: Any = torch
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self.labels: list[list[int]] = [
            self.tokenizer.encode(f" {label}", add_special_tokens=False) for label in LABELS
        ]
        time.sleep((time.monotonic() - began_s) * (1 / speed - 1))
        tell("loaded")

    def lengths(self, prompts: list[str]) -> list[int]:
        encoded: list[list[int]] = self.tokenizer(prompts)["input_ids"]
        return [len(ids) for ids in encoded]

    def verdicts(self, prompts: list[str]) -> list[tuple[str, float]]:
        """For each prompt the likeliest label, and by how much it leads the next."""
        torch = self.torch
        with torch.inference_mode():
            given = self.tokenizer(prompts, return_tensors="pt", padding=True)
            mask, rows = given["attention_mask"], len(prompts)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            read = self.model(**given, position_ids=positions, use_cache=True, logits_to_keep=1)
            first = read.logits[:, -1].float().log_softmax(-1)
            cache = read.past_key_values
            next_position = positions[:, -1:] + 1
            scores: list[Any] = []
            for label in self.labels:
                steps = len(label) - 1
                ids = torch.tensor(label[:-1]).expand(rows, steps)
                after = self.model(
                    input_ids=ids,
                    attention_mask=torch.cat((mask, torch.ones(rows, steps, dtype=mask.dtype)), -1),
                    position_ids=next_position + torch.arange(steps),
                    past_key_values=cache,
                )
                rest = after.logits.float().log_softmax(-1)
                wanted = torch.tensor(label[1:]).expand(rows, steps).unsqueeze(-1)
                scores.append(first[:, label[0]] + rest.gather(2, wanted).squeeze(-1).sum(-1))
                cache.crop(-steps)  # as if this label had not been read
            best = torch.stack(scores, -1).topk(2, -1)
        places: list[int] = best.indices[:, 0].tolist()
        leads: list[float] = (best.values[:, 0] - best.values[:, 1]).tolist()
        return [(LABELS[at], lead) for at, lead in zip(places, leads, strict=True)]


def work(verifier: Verifier, rows: list[tuple[int, str]], out: Path, speed: float) -> None:
    """Verify rows (index, prompt) and append to `out` after each batch."""
    with out.open("a") as file:
        for start in range(0, len(rows), WINDOW_ROWS):
            window = rows[start : start + WINDOW_ROWS]
            lengths = verifier.lengths([prompt for _, prompt in window])
            order = sorted(range(len(window)), key=lengths.__getitem__)
            for first in range(0, len(order), BATCH_ROWS):
                part = [window[at] for at in order[first : first + BATCH_ROWS]]
                tell("batch", rows=len(part))
                began_s = time.monotonic()
                verdicts = verifier.verdicts([prompt for _, prompt in part])
                busy_s = time.monotonic() - began_s
                time.sleep(busy_s * (1 / speed - 1))
                for (index, _), (label, lead) in zip(part, verdicts, strict=True):
                    file.write(json.dumps({"index": index, "label": label, "lead": lead}) + "\n")
                file.flush()
                tell("done", rows=len(part), busy_s=busy_s)


def done_in(out: Path) -> set[int]:
    """Indices of the rows in a file whose last line may be torn."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []
    return {json.loads(line)["index"] for line in lines}


def mend(out: Path) -> None:
    """Cut off a torn last line."""
    if out.exists():
        kept = out.read_bytes()
        out.write_bytes(kept[: kept.rfind(b"\n") + 1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["once", "serve", "shard"])
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--rows", type=int, nargs=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with arguments.prompts.open() as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]

    def do(start: int, stop: int, out: Path, verifier: Verifier) -> None:
        done = done_in(out)
        rows = [(index, prompts[index]) for index in range(start, stop) if index not in done]
        work(verifier, rows, out, arguments.speed)

    if arguments.mode == "serve":
        import_libraries()
        for line in sys.stdin:
            start, stop, out = line.rstrip("\n").split("\t")
            do(int(start), int(stop), Path(out), Verifier(arguments.model, arguments.speed))
            tell("finished")
        return
    if arguments.mode == "shard":
        mend(arguments.out)
    first, last = arguments.rows
    do(first, last, arguments.out, Verifier(arguments.model, arguments.speed))
    tell("finished")


if __name__ == "__main__":
    main()
