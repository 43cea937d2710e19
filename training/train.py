"""Train the bundled fact verifier: tokenizer, model, evaluation, model card, all from one seed.

    python training/train.py --out DIR --seed 0

Takes a few minutes on one CPU thread and reads nothing but the sentences that `corpus.py` makes up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional

from batches import IGNORED, Batch, make_batch
from card import model_card
from corpus import Row, invented_rows, mixed_up_rows, real_rows, rows_without_evidence, training_packs
from facts import all_facts
from model import CONTEXT_TOKENS, new_model, train_tokenizer
from muon import Muon
from scoring import Score, score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZER_PACKS = 6000


@dataclass(frozen=True)
class Plan:
    """How a run trains; learning rates are peaks, before the schedule."""

    seed: int
    steps: int
    packs_per_step: int = 16
    muon_lr: float = 0.015
    adam_lr: float = 2e-3
    probe_weight: float = 0.5
    tokenizer_invented_share: float = 0.15
    muon_decay: float = 0.1
    without_evidence_share: float = 0.08
    distorted_share: float = 0.35
    warmup_share: float = 0.03
    final_lr_share: float = 0.05

    def lr_share(self, step: int) -> float:
        """Linear warm-up, then a cosine down to the final share."""
        warmup = self.warmup_share * self.steps
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1.0, self.steps - warmup)
        return self.final_lr_share + (1 - self.final_lr_share) * (1 + math.cos(math.pi * progress)) / 2


class Probes(torch.nn.Module):
    """Training-only questions to hidden states, those of `Batch`.

    They give the lower layers something to learn from before the verdict does. `LAYERS` says which layer's
    output must answer a question.
    """

    LAYERS: ClassVar = {"token_known": 2, "name_known": 2, "stated": 3}

    def __init__(self, hidden_size: int) -> None:
        """Set up one linear probe a question."""
        super().__init__()
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(hidden_size, 1) for name in self.LAYERS})

    def forward(self, hidden_states: Sequence[torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Cross-entropy of each question, over the places where it is asked."""
        result = {}
        for name, layer in self.LAYERS.items():
            answers: torch.Tensor = getattr(batch, name)
            asked = ~answers.isnan()
            guesses = self.heads[name](hidden_states[layer][asked]).squeeze(-1)
            result[name] = functional.binary_cross_entropy_with_logits(guesses, answers[asked])
        return result


def losses(model: LlamaForCausalLM, probes: Probes, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Label loss in nats a claim, and the probes' losses."""
    output = model.model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=True,
    )
    labelled = batch.targets != IGNORED
    logits = model.lm_head(output.last_hidden_state[labelled])
    label_loss = functional.cross_entropy(logits, batch.targets[labelled], reduction="sum") / batch.claims
    return label_loss, probes(output.hidden_states, batch)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: Plan) -> None:
    """Train in place; the probes are thrown away at the end."""
    probes = Probes(model.config.hidden_size)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in itertools.chain(model.parameters(), probes.parameters()) if id(p) not in chosen]
    optimisers = [
        Muon(matrices, lr=plan.muon_lr, decay=plan.muon_decay),
        torch.optim.AdamW(rest, lr=plan.adam_lr, weight_decay=0.0),
    ]
    peaks = [plan.muon_lr, plan.adam_lr]
    packs = training_packs(
        Random(f"{plan.seed}-train"),
        without_evidence_share=plan.without_evidence_share,
        distorted_share=plan.distorted_share,
    )
    model.train()
    started, shown = time.monotonic(), 0.0
    for step in range(plan.steps):
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * plan.lr_share(step)
        batch = make_batch(tokenizer, list(itertools.islice(packs, plan.packs_per_step)))
        label_loss, probe_losses = losses(model, probes, batch)
        torch.autograd.backward(label_loss + plan.probe_weight * torch.stack(list(probe_losses.values())).sum())
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        shown = label_loss.item() if step == 0 else 0.98 * shown + 0.02 * label_loss.item()
        if step % 100 == 0 or step == plan.steps - 1:
            elapsed_s = time.monotonic() - started
            asked = "  ".join(f"{name} {loss.item():.3f}" for name, loss in probe_losses.items())
            print(f"step {step:5d}  label {shown:.3f}  {asked}  {elapsed_s:6.1f} s", flush=True)
    model.train(mode=False)


def evaluation_sets(seed: int) -> dict[str, list[Row]]:
    """The sets that the card reports, each from its own seed."""
    return {
        "held_out_facts": real_rows(Random(f"{seed}-facts"), "claims"),
        "held_out_paraphrases": real_rows(Random(f"{seed}-paraphrases"), "paraphrases"),
        "unseen_patterns": real_rows(Random(f"{seed}-unseen"), "unseen"),
        "invented_names": invented_rows(Random(f"{seed}-invented"), 300),
        "mixed_up": mixed_up_rows(Random(f"{seed}-mixed")),
        "without_evidence": rows_without_evidence(Random(f"{seed}-none")),
    }


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Score]:
    """Score every evaluation set."""
    scores = {name: score(model, tokenizer, rows) for name, rows in evaluation_sets(seed).items()}
    for name, result in scores.items():
        print(f"{name:22s} sum {result.accuracy_sum:.3f}  mean {result.accuracy_mean:.3f}  {result.per_label}")
    return scores


def _name_tokenizer_class(folder: Path) -> None:
    """Name the tokenizer's class as versions of transformers before 5 know it; later ones know it as well."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the bundled fact verifier.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its card and metrics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600, help="training steps of 16 packs of 4 claims")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result depends on it a little")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    plan = Plan(seed=arguments.seed, steps=arguments.steps)

    started, started_cpu = time.monotonic(), time.process_time()
    texts = training_packs(Random(f"{plan.seed}-tokenizer"), invented_share=plan.tokenizer_invented_share)
    tokenizer = train_tokenizer(row.prompt for pack in itertools.islice(texts, TOKENIZER_PACKS) for row in pack)
    model = new_model(tokenizer)
    train(model, tokenizer, plan)
    train_s, train_cpu_s = time.monotonic() - started, time.process_time() - started_cpu
    scores = evaluate(model, tokenizer, plan.seed)

    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    _name_tokenizer_class(arguments.out)
    for file in arguments.out.iterdir():
        file.chmod(0o644)
    metrics = {
        "plan": asdict(plan),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "context_tokens": CONTEXT_TOKENS,
        "facts": len(all_facts()),
        "threads": arguments.threads,
        "train_s": round(train_s),
        "train_cpu_s": round(train_cpu_s),
        "scores": {name: asdict(result) for name, result in scores.items()},
    }
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (arguments.out / "README.md").write_text(model_card(metrics))


if __name__ == "__main__":
    main()
