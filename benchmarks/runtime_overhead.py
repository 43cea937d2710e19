"""The transformers runtime against a loop over transformers written by hand, side by side, as ratios.

Three questions, each answered by alternating both sides and taking the median of the ratios of neighbouring runs:

- scoring: rows through `add` and `step`, against hand-made batches (all rows sorted by length, right-padded) that
  score labels of one token, or each whole label after each prompt.
- generating: against `model.generate` over left-padded batches of the same rows.
- prefix reuse: on against off, rows with a common head.

    python benchmarks/runtime_overhead.py [--model FOLDER] [--hidden 576 --layers 8] [--rows 256] [--rounds 5]

Without --model, a Llama with random weights of the given size is made. Ratios above 1: the runtime is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from pilotlight.ports import Row  # noqa: E402
from pilotlight.runtimes.transformers import TransformersRuntime  # noqa: E402
from pilotlight.wire import DeviceSpec, Operation, Sampling  # noqa: E402
from tests import tiny  # noqa: E402

LABELS = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
HEAD = "Answer yes or no. The quick brown fox jumps over the lazy dog. " * 4
WORDS = "the river claim evidence born in Paris Warsaw water fox dog hello world".split()  # noqa: SIM905
NEW_TOKENS = 16
CPU_TIME = "cuda" not in sys.argv


def _clock() -> float:
    """CPU seconds where the CPU computes, so that a busy machine disturbs less; else wall seconds."""
    return time.process_time() if CPU_TIME else time.perf_counter()


def prompts(rows: int, head: str = "") -> list[str]:
    """Texts of 5 to 45 words, always the same."""
    return [
        head + " ".join(WORDS[(row * 7 + place) % len(WORDS)] for place in range(5 + row * 13 % 40))
        for row in range(rows)
    ]


def one_token_labels(tokenizer: Any) -> list[str]:
    """Three labels that are one token each behind a space."""
    pieces = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    found = [piece[1:] for piece in pieces if piece[:1] == " " and piece[1:].isalpha()]
    return [label for label in found if len(tokenizer.encode(f" {label}", add_special_tokens=False)) == 1][:3]


def through_runtime(model: Any, operation: Operation, texts: list[str]) -> float:
    """Seconds for all rows, handed over as a replica would: never more than the model wants."""
    start_s = _clock()
    at = done = 0
    while done < len(texts):
        while at < len(texts) and model.pending < model.wanted:
            stop = min(len(texts), at + model.wanted - model.pending)
            model.add(operation, [Row(index, index, {"prompt": texts[index]}) for index in range(at, stop)])
            at = stop
        done += len(model.step())
    return _clock() - start_s


def score_by_hand(model: Any, tokenizer: Any, texts: list[str], batch: int) -> float:
    """Prompts in sorted batches, the output layer at the last token only, first tokens of the labels compared."""
    import torch

    firsts = [tokenizer.encode(" " + label, add_special_tokens=False)[0] for label in LABELS]
    start_s = _clock()
    with torch.inference_mode():
        encoded = sorted(tokenizer(texts)["input_ids"], key=len)
        for at in range(0, len(encoded), batch):
            part = encoded[at : at + batch]
            longest = max(map(len, part))
            ids = torch.tensor([row + [2] * (longest - len(row)) for row in part], device=model.device)
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            last = torch.tensor([len(row) - 1 for row in part], device=model.device)
            logits = model.lm_head(hidden[torch.arange(len(part), device=model.device), last])
            logits.log_softmax(-1)[:, firsts].argmax(-1).tolist()
    return _clock() - start_s


def score_labels_by_hand(model: Any, tokenizer: Any, texts: list[str], batch: int) -> float:
    """Every label after every prompt, in sorted batches; only the labels' logits are computed."""
    import torch

    endings = [tokenizer.encode(" " + label, add_special_tokens=False) for label in LABELS]
    start_s = _clock()
    with torch.inference_mode():
        encoded = sorted(tokenizer(texts)["input_ids"], key=len)
        for at in range(0, len(encoded), batch):
            part = encoded[at : at + batch]
            for ending in endings:
                longest = max(map(len, part)) + len(ending) - 1
                ids = [row + ending[:-1] for row in part]
                padded = torch.tensor([row + [2] * (longest - len(row)) for row in ids], device=model.device)
                hidden = model.model(input_ids=padded, use_cache=False).last_hidden_state
                places = torch.tensor([[len(row) - 1 + step for step in range(len(ending))] for row in part])
                logits = model.lm_head(hidden[torch.arange(len(part))[:, None], places]).log_softmax(-1)
                targets = torch.tensor(ending, device=model.device).expand(len(part), -1).unsqueeze(-1)
                logits.gather(2, targets).sum(dim=1).tolist()
    return _clock() - start_s


def generate_by_hand(model: Any, tokenizer: Any, texts: list[str], batch: int) -> float:
    """`model.generate` over sorted, left-padded batches."""
    import torch

    tokenizer.padding_side = "left"
    start_s = _clock()
    ordered = sorted(texts, key=len)
    with torch.inference_mode():
        for at in range(0, len(ordered), batch):
            inputs = tokenizer(ordered[at : at + batch], return_tensors="pt", padding=True).to(model.device)
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=2,
            )
            tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return _clock() - start_s


def compare(name: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int, rows: int) -> None:
    """Alternate, print both speeds and the median ratio."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratio = statistics.median(their_s / our_s for our_s, their_s in pairs)
    spread = sorted(their_s / our_s for our_s, their_s in pairs)
    our_rate, their_rate = (rows / statistics.median(side) for side in zip(*pairs, strict=True))
    spread_text = f"({spread[0]:.2f} to {spread[-1]:.2f})"
    print(f"{name:<34} {our_rate:9.1f} {their_rate:9.1f} rows/s   ratio {ratio:.2f}  {spread_text}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The runtime against loops written by hand.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or tiny.make_model(
            Path(scratch) / "model",
            config=tiny.make_config(
                hidden_size=arguments.hidden,
                intermediate_size=arguments.hidden * 8 // 3,
                num_hidden_layers=arguments.layers,
                initializer_range=0.02,
                vocab_size=8192,
            ),
        )
        device = DeviceSpec(id="it", kind="it", type=arguments.device, memory_bytes=8 << 30, threads=arguments.threads)
        torch.set_num_threads(arguments.threads)
        live = TransformersRuntime().load(tiny.context_of(folder), device)
        unshared = TransformersRuntime(share_prefixes=False).load(tiny.context_of(folder), device)
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=live._network.dtype)  # noqa: SLF001
        plain.eval().to(live._network.device)  # noqa: SLF001
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        texts, headed = prompts(arguments.rows), prompts(arguments.rows, HEAD)
        labels = Operation(kind="classify", labels=one_token_labels(tokenizer))
        whole = Operation(kind="classify", labels=LABELS)
        sampling = Sampling(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
        generate = Operation(kind="generate", sampling=sampling)
        print(f"{'':<34} {'runtime':>9} {'by hand':>9}   (reuse: {'on':>4}, {'off':>4})")
        cases: list[tuple[str, Callable[[], float], Callable[[], float]]] = []
        for batch in (8, 32):
            cases += [
                (
                    f"score one-token labels, batch {batch}",
                    lambda: through_runtime(unshared, labels, texts),
                    lambda batch=batch: score_by_hand(plain, tokenizer, texts, batch),
                ),
                (
                    f"score whole labels, batch {batch}",
                    lambda: through_runtime(unshared, whole, texts),
                    lambda batch=batch: score_labels_by_hand(plain, tokenizer, texts, batch),
                ),
                (
                    f"generate {NEW_TOKENS} tokens, batch {batch}",
                    lambda: through_runtime(unshared, generate, texts),
                    lambda batch=batch: generate_by_hand(plain, tokenizer, texts, batch),
                ),
            ]
        for name, operation in (("score", whole), ("generate", generate)):
            cases.append(
                (
                    f"{name}, prefix reuse on against off",
                    lambda operation=operation: through_runtime(live, operation, headed),
                    lambda operation=operation: through_runtime(unshared, operation, headed),
                )
            )
        for name, ours, theirs in cases:
            compare(name, ours, theirs, arguments.rounds, arguments.rows)


if __name__ == "__main__":
    main()
