"""What rows become: results with their counters, and errors."""

from __future__ import annotations

import math
from typing import Any

from pilotlight.ports import Outcome
from pilotlight.runtimes.transformers import openai
from pilotlight.runtimes.transformers.classify import LabelTree
from pilotlight.runtimes.transformers.generate import Generating
from pilotlight.runtimes.transformers.prompts import Prompt
from pilotlight.wire import Context, Operation


def generated(context: Context, row: Generating) -> Outcome:
    """A finished text, in the form that its operation asks for."""
    usage = row.usage()
    result: dict[str, Any] = {"text": row.text, "finish_reason": row.finish_reason, "usage": usage}
    if row.operation.result_format == "openai":
        name = f"{context.id}-{row.index}"
        model = row.prompt.model or context.name
        result = openai.response(result, chat=row.prompt.chat, model=model, request_id=name)
    counters = {
        "prompt_tokens": float(usage["prompt_tokens"]),
        "completion_tokens": float(usage["completion_tokens"]),
        "truncated": float(row.prompt.truncated),
        "length": float(row.finish_reason == "length"),
    }
    return Outcome(row.ticket, result, counters=counters)


def classified(ticket: int, operation: Operation, tree: LabelTree, prompt: Prompt, sums: list[float]) -> Outcome:
    """The likeliest label. sums: of log-probabilities, per label."""
    scores = sums
    if operation.label_scoring == "mean":
        scores = [value / len(ids) for value, ids in zip(sums, tree.labels, strict=True)]
    if not all(math.isfinite(value) for value in scores):
        return failed(ticket, "not_finite", "The model's scores are not numbers; a wider dtype may help.")
    top = max(scores)
    weights = [math.exp(value - top) for value in scores]
    total = sum(weights)
    labels = operation.labels
    prompt_tokens = len(prompt.ids)
    result = {
        "label": labels[scores.index(top)],
        "probabilities": {label: weight / total for label, weight in zip(labels, weights, strict=True)},
        "logprobs": dict(zip(labels, scores, strict=True)),
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens},
    }
    counters = {"prompt_tokens": float(prompt_tokens), "truncated": float(prompt.truncated)}
    return Outcome(ticket, result, counters=counters)


def failed(ticket: int, kind: str, text: str) -> Outcome:
    """A row's own fault."""
    return Outcome(ticket, error_kind=kind, error=text)
