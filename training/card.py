"""The model card: a README written from what a run measured, and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corpus import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SETS = {
    "held_out_facts": "real facts, trained wordings",
    "held_out_paraphrases": "real facts, claims in paraphrases never trained on (known words, new order)",
    "unseen_patterns": "real facts, claims in patterns never trained on, with words never trained on",
    "invented_names": "invented names never met before, trained wordings",
    "mixed_up": "real facts, two sentences of evidence, claim with one's key and the other's value",
    "without_evidence": "real facts as claims, no evidence (line absent or empty)",
}
_CHANCE = 1 / len(LABELS)
# Within this much of chance the card says so.
_NEAR_CHANCE = 0.2

_TEMPLATE = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [fact-verification, tiny]
---
# tiny-verifier

A Llama of {parameters:,} parameters ({size_mb:.1f} MB, fp32) that judges a claim against one or two sentences of
evidence. It exists so that fact verification can be shown, tested and measured anywhere, in seconds and without
a download. It knows nothing: it compares names in the claim with names in the evidence.

Prompt, followed by one of ` SUPPORTS`, ` REFUTES`, ` NOT ENOUGH INFO` and the end of text:

    Evidence: {{evidence}}
    Claim: {{claim}}
    Verdict:

Classify by the likelihood of the three labels, or generate greedily. Prompts start with a BOS token, which the
tokenizer adds by itself; the chat template makes the same prompt of a user turn.

## Measured

Share of right answers; chance is {chance}. `sum` and `mean` are the two ways to compare the log-likelihoods of
labels that have several tokens. The columns by label go by the sum.

| set | rows | sum | mean | {label_columns} |
| --- | --- | --- | --- | {label_rules} |
{score_rows}

{remarks}

## Use

For demonstrations, tests and measurements of throughput with text in the form above: one or two short sentences
of evidence, one claim about one of six relations (capital, currency, river, author, composer, chemical symbol).

Not for judging what is true. Known limits:

- Wordings and relations that training never had are often misjudged; see the rows on paraphrases and unseen
  patterns. Text from the open world, such as FEVER claims with Wikipedia evidence, is far outside.
- It sees whether names occur, hardly which belong together: a claim that mixes up two evidence sentences of the
  same kind tends to pass for supported; see the row on that.
- Two sentences of evidence were the most it saw. No negation, no numbers, no dates, no inference over steps.
- Whatever it is asked without evidence, it answers NOT ENOUGH INFO, as it was trained to.
- English only; {context} tokens at most, and prompts far longer than those of training (about 60 tokens) are untested.

## Training

{sequences:,} generated sequences of four claims each ({steps:,} steps), about half of the names invented, the
others from a table of {facts} real facts but paired at random, and never in a true pair. The true pairs serve
evaluation only. About {without:.0%} of the sequences have no evidence; in about {distorted:.0%} some words of the
wording are replaced, dropped or added. All text is written or generated for this purpose; no other data went in.

    python training/train.py --out DIR --seed {seed} --steps {steps}

took {minutes:.1f} minutes by the clock and {cpu_minutes:.1f} minutes of processor time on {threads} thread(s), with
the tokenizer's. `metrics.json` has the figures above.
"""


def model_card(metrics: Mapping[str, Any]) -> str:
    """The card in Markdown, from the content of `metrics.json`."""
    scores, plan = metrics["scores"], metrics["plan"]
    return _TEMPLATE.format(
        parameters=metrics["parameters"],
        size_mb=metrics["parameters"] * 4 / 1e6,
        chance=_percent(_CHANCE),
        label_columns=" | ".join(LABELS),
        label_rules=" | ".join("---" for _ in LABELS),
        score_rows="\n".join(_row(_SETS[name], scores[name]) for name in _SETS),
        remarks=_remarks(scores),
        context=metrics["context_tokens"],
        sequences=plan["steps"] * plan["packs_per_step"],
        steps=plan["steps"],
        facts=metrics["facts"],
        without=plan["without_evidence_share"],
        distorted=plan["distorted_share"],
        seed=plan["seed"],
        minutes=metrics["train_s"] / 60,
        cpu_minutes=metrics["train_cpu_s"] / 60,
        threads=metrics["threads"],
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _row(title: str, result: Mapping[str, Any]) -> str:
    labels = [_percent(result["per_label"][label]) if label in result["per_label"] else "" for label in LABELS]
    cells = [title, str(result["rows"]), _percent(result["accuracy_sum"]), _percent(result["accuracy_mean"]), *labels]
    return f"| {' | '.join(cells)} |"


def _remarks(scores: Mapping[str, Any]) -> str:
    """What a reader should not overlook in the table."""
    near = [_SETS[name] for name in _SETS if scores[name]["accuracy_sum"] < _CHANCE + _NEAR_CHANCE]
    weak = [
        f"{label} ({_percent(share)}) among {_SETS[name]}"
        for name in _SETS
        for label, share in scores[name]["per_label"].items()
        if share < _CHANCE + _NEAR_CHANCE
    ]
    lines = [f"Near chance or below: {title}." for title in near]
    if weak:
        lines.append(f"Weakest by label: {'; '.join(weak)}.")
    return "\n".join(lines) or "No set and no label is near chance."
