"""How well a model verifies: the likelihood of each label after a prompt, and the accuracy that follows.

Labels have several tokens, and not equally many. Both ways to compare them are reported: by the sum of their
tokens' log-likelihoods and by the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from batches import label_tokens
from corpus import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from corpus import Row

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Score:
    """Accuracy over a set of rows as shares of 1; `per_label` and `answers` go by the sum."""

    rows: int
    accuracy_sum: float
    accuracy_mean: float
    per_label: dict[str, float]
    answers: dict[str, float]


@torch.no_grad()
def label_log_likelihoods(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]
) -> torch.Tensor:
    """Summed log-likelihood of every label after every prompt, shape (rows, labels)."""
    labels = [label_tokens(tokenizer, label) for label in LABELS]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
    result = torch.empty(len(rows), len(LABELS))
    for start in range(0, len(rows), _BATCH_ROWS):
        chosen = order[start : start + _BATCH_ROWS]
        prompts = [tokenizer.encode(rows[index].prompt) for index in chosen]
        for column, label in enumerate(labels):
            length = max(map(len, prompts)) + len(label)
            filled = [[*prompt, *label] for prompt in prompts]
            # Padding stands at the right, where causal attention cannot see it.
            tokens = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids in filled])
            where = torch.tensor([[len(prompt) - 1 + step for step in range(len(label))] for prompt in prompts])
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
            picked = hidden[torch.arange(len(chosen)).unsqueeze(1), where]
            logits = model.lm_head(picked).log_softmax(-1)
            result[chosen, column] = logits.gather(2, torch.tensor(label).expand(len(chosen), -1).unsqueeze(2)).sum(
                (1, 2)
            )
    return result


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> Score:
    """Classify every row both ways and count what is right."""
    sums = label_log_likelihoods(model, tokenizer, rows)
    lengths = torch.tensor([len(label_tokens(tokenizer, label)) for label in LABELS])
    truth = torch.tensor([LABELS.index(row.label) for row in rows])
    by_sum, by_mean = sums.argmax(1), (sums / lengths).argmax(1)
    return Score(
        rows=len(rows),
        accuracy_sum=_share(by_sum == truth),
        accuracy_mean=_share(by_mean == truth),
        per_label={
            label: _share(by_sum[truth == index] == index)
            for index, label in enumerate(LABELS)
            if (truth == index).any()
        },
        answers={label: _share(by_sum == index) for index, label in enumerate(LABELS)},
    )


def _share(flags: torch.Tensor) -> float:
    return round(flags.float().mean().item(), 4)
