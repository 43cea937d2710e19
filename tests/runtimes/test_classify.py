"""Labels' scores against plain forwards of prompt and label, one by one."""

# ruff: noqa: E402  (what is imported needs what `importorskip` looks for)

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotlight.ports import Outcome
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.runtimes.transformers.classify import LabelTree, tokenise_labels
from pilotlight.testing.runtimes import run_rows
from pilotlight.wire import Operation
from tests import tiny

LABELS = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO", "NOT"]
CLAIMS = [
    "The Elbe flows through Hamburg.",
    "Marie Curie was born in Paris.",
    "0",
    "Is water wet? " * 5,
    "fox\n",
    "dog",
]
SHARED = "Answer yes or no. The quick brown fox jumps over the lazy dog. "
TOLERANCE = 2e-4
"""Absolute, on sums of log-probabilities of up to about 60 in float32; seen: 3e-5."""


def classify(**changes: Any) -> Operation:
    return Operation(**{"kind": "classify", "labels": LABELS, **changes})


def brute_force(reference: Any, prompt_ids: list[int], label_ids: list[int]) -> float:
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([prompt_ids + label_ids])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt_ids) - 1 + place, token]) for place, token in enumerate(label_ids))


def label_ids(tokenizer: Any, label: str, *, spaced: bool) -> list[int]:
    return tokenizer.encode(f" {label}" if spaced else label, add_special_tokens=False)


def check_scores(outcome: Outcome, expected: dict[str, float]) -> None:
    assert outcome.error_kind is None, outcome.error
    assert outcome.result["logprobs"] == pytest.approx(expected, abs=TOLERANCE)
    total = sum(math.exp(value) for value in outcome.result["logprobs"].values())
    shares = {label: math.exp(value) / total for label, value in outcome.result["logprobs"].items()}
    assert outcome.result["probabilities"] == pytest.approx(shares)
    assert outcome.result["label"] == max(expected, key=lambda label: expected[label])


@pytest.mark.parametrize("shared", ["", SHARED])
def test_scores_are_those_of_plain_forwards(model: Any, reference: Any, tokenizer: Any, shared: str) -> None:
    prompts = [shared + claim for claim in CLAIMS]
    outcomes = run_rows(model, classify(), [{"prompt": prompt} for prompt in prompts])
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        spaced = not prompt[-1].isspace()
        check_scores(
            outcome,
            {label: brute_force(reference, ids, label_ids(tokenizer, label, spaced=spaced)) for label in LABELS},
        )
        assert outcome.result["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}


def test_mean_divides_by_the_labels_tokens(model: Any, tokenizer: Any) -> None:
    rows = [{"prompt": claim} for claim in CLAIMS[:3]]
    sums = run_rows(model, classify(), rows)
    means = run_rows(model, classify(label_scoring="mean"), rows)
    for one, other in zip(sums, means, strict=True):
        for label in LABELS:
            tokens = len(label_ids(tokenizer, label, spaced=True))
            assert other.result["logprobs"][label] == pytest.approx(one.result["logprobs"][label] / tokens, abs=1e-4)


def test_chats_get_no_space_before_the_label(model: Any, reference: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Is water wet?"}]
    (outcome,) = run_rows(model, classify(), [{"messages": messages}])
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    check_scores(
        outcome, {label: brute_force(reference, ids, label_ids(tokenizer, label, spaced=False)) for label in LABELS}
    )


def test_one_token_labels_need_no_tree(model: Any, reference: Any, tokenizer: Any) -> None:
    labels = ["a", "b", "0"]
    (outcome,) = run_rows(model, classify(labels=labels), [{"prompt": "x\n"}])
    ids = tokenizer("x\n")["input_ids"]
    check_scores(
        outcome, {label: brute_force(reference, ids, label_ids(tokenizer, label, spaced=False)) for label in labels}
    )


def test_models_that_are_not_plain_score_the_same(folder: Path, model: Any) -> None:
    rows = [{"prompt": SHARED + claim} for claim in CLAIMS]
    other = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    other._network.plain = False
    for one, two in zip(run_rows(model, classify(), rows), run_rows(other, classify(), rows), strict=True):
        assert one.result["logprobs"] == pytest.approx(two.result["logprobs"], abs=TOLERANCE)


def test_labels_that_begin_alike_share_nodes() -> None:
    tree = LabelTree([[1, 2, 3], [1, 2, 4], [1], [5, 6]])
    assert tree.tokens == [1, 2, 5]
    assert tree.parents == [-1, 0, -1]
    assert tree.depths == [0, 1, 0]
    assert tree.steps == [[(-1, 1), (0, 2), (1, 3)], [(-1, 1), (0, 2), (1, 4)], [(-1, 1)], [(-1, 5), (2, 6)]]
    assert tree.sight() == [[True, False, False], [True, True, False], [False, False, True]]


def test_labels_of_sentencepiece_like_tokenizers_get_one_space() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "\n": 3, "y": 4, "▁a": 5, "▁y": 6}
    inner = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "y")], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenise_labels(tokenizer, ["y"], spaced=True) == [[6]]
    assert tokenise_labels(tokenizer, ["y"], spaced=False) == [[4]]


def test_without_labels_rows_are_answered(model: Any) -> None:
    (outcome,) = run_rows(model, classify(labels=[]), [{"prompt": "x"}])
    assert outcome.error_kind == "bad_operation"
    (outcome,) = run_rows(model, Operation(kind="map"), [{"prompt": "x"}])
    assert outcome.error_kind == "bad_operation"


def test_the_verifier_verifies() -> None:
    import pilotlight.factcheck

    folder = Path(pilotlight.factcheck.__file__).parent / "assets" / "tiny-verifier"
    if not (folder / "model.safetensors").exists():
        pytest.skip("the tiny verifier is not there")
    live = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    operation = Operation(
        kind="classify",
        labels=["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"],
        prompt_template="Evidence: {evidence}\nClaim: {claim}\nVerdict:",
    )
    row = {"evidence": "Paris is the capital of France.", "claim": "Paris is the capital of France."}
    (outcome,) = run_rows(live, operation, [row])
    assert outcome.result["label"] == "SUPPORTS"
