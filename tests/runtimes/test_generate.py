"""Greedy text equals transformers' own `generate`; where texts end; what does not depend on the batch."""

# ruff: noqa: E402  (what is imported needs what `importorskip` looks for)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotlight.io.rows import encode_error, encode_result
from pilotlight.ports import Row
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.runtimes.transformers.cohorts import begin
from pilotlight.runtimes.transformers.reading import result_of
from pilotlight.testing.runtimes import run_rows
from pilotlight.wire import Operation, Sampling
from tests import tiny

HEAD = "Answer yes or no. The quick brown fox jumps over the lazy dog. "
TEXTS = ["Is water wet?", "hello", "Claim:", "The river Elbe flows " * 4, "0 1 2 3", "you are", "x", "Verdict: "]
NEAR_TIE = 1e-4
"""Two tokens this close in logits may swap between two exact orders of the same sums."""


def generate(**sampling: Any) -> Operation:
    return Operation(kind="generate", sampling=Sampling(**{"temperature": 0.0, "max_tokens": 24, **sampling}))


def rows(head: str = "") -> list[dict[str, str]]:
    return [{"prompt": head + text} for text in TEXTS]


def texts(model: Any, operation: Operation, payloads: list[Any]) -> list[str]:
    outcomes = run_rows(model, operation, payloads)
    assert not any(outcome.error_kind for outcome in outcomes), outcomes
    return [outcome.result["text"] for outcome in outcomes]


def expected_ids(reference: Any, prompt_ids: list[int], **arguments: Any) -> list[int]:
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 2, **arguments}
    return reference.generate(torch.tensor([prompt_ids]), **settings)[0][len(prompt_ids) :].tolist()


def smallest_lead(reference: Any, prompt_ids: list[int], answer: list[int]) -> float:
    """How near the greedy path came to a tie."""
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([prompt_ids + answer])).logits[0]
    first, second = logits[len(prompt_ids) - 1 : -1].topk(2, dim=-1).values.unbind(-1)
    return float((first - second).min())


@pytest.mark.parametrize("head", ["", HEAD])
@pytest.mark.parametrize("plain", [True, False])
def test_greedy_equals_generate(folder: Path, reference: Any, tokenizer: Any, head: str, plain: bool) -> None:
    model = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    assert model._network.plain
    model._network.plain = plain
    for row, text in zip(rows(head), texts(model, generate(), rows(head)), strict=True):
        ids = tokenizer(row["prompt"])["input_ids"]
        answer = expected_ids(reference, ids)
        lead = smallest_lead(reference, ids, answer)
        assert text == tokenizer.decode(answer, skip_special_tokens=True), f"the nearest tie was {lead}"
        assert lead > NEAR_TIE


def test_penalties_equal_generates(model: Any, reference: Any, tokenizer: Any) -> None:
    found = texts(model, generate(repetition_penalty=1.3), rows())
    for row, text in zip(rows(), found, strict=True):
        answer = expected_ids(reference, tokenizer(row["prompt"])["input_ids"], repetition_penalty=1.3)
        assert text == tokenizer.decode(answer, skip_special_tokens=True)


def test_rows_join_and_leave_while_others_go_on(model: Any, folder: Path) -> None:
    operations = [generate(max_tokens=count) for count in (1, 3, 60)]
    alone = {
        count: texts(TransformersRuntime().load(tiny.context_of(folder), tiny.CPU), operation, rows())
        for count, operation in enumerate(operations)
    }
    model._decoder.rows_max = model._decoder._ceiling = 5
    expected: dict[int, str] = {}
    got: dict[int, str] = {}
    ticket = 0
    for index, payload in enumerate(rows()):
        for count, operation in enumerate(operations):
            ticket += 1
            expected[ticket] = alone[count][index]
            model.add(operation, [Row(ticket, index, payload)])
        got |= {outcome.ticket: outcome.result["text"] for outcome in model.step()}
    while model.pending:
        got |= {outcome.ticket: outcome.result["text"] for outcome in model.step()}
    assert got == expected


def test_finish_reasons_and_usage(model: Any, tokenizer: Any) -> None:
    (outcome,) = run_rows(model, generate(max_tokens=3, ignore_eos=True), [{"prompt": "hello"}])
    prompt_tokens = len(tokenizer("hello")["input_ids"])
    assert outcome.result["finish_reason"] == "length"
    assert outcome.result["usage"] == {
        "prompt_tokens": prompt_tokens, "completion_tokens": 3, "total_tokens": prompt_tokens + 3,
    }  # fmt: skip
    assert outcome.counters["length"] == 1
    (one,) = run_rows(model, generate(ignore_eos=True), [{"prompt": "hello"}])
    second = expected_second(model, tokenizer)
    (outcome,) = run_rows(model, generate(stop_token_ids=[second]), [{"prompt": "hello"}])
    assert outcome.result["finish_reason"] == "stop"
    assert outcome.result["usage"]["completion_tokens"] == 2
    assert one.result["text"].startswith(outcome.result["text"])


def expected_second(model: Any, tokenizer: Any) -> int:
    """The second greedy token after `hello`."""
    ids = [tokenizer("hello")["input_ids"]]
    cohort, logits = result_of(begin(model._network, ids, [], tokens_max=1 << 20))
    return int(cohort.decode([int(logits.argmax())]).argmax())


def test_the_end_token_ends_a_text_unless_ignored(folder: Path, tokenizer: Any) -> None:
    model = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    end = expected_second(model, tokenizer)
    model._eos_ids = frozenset({end})
    (outcome,) = run_rows(model, generate(), [{"prompt": "hello"}])
    assert (outcome.result["finish_reason"], outcome.result["usage"]["completion_tokens"]) == ("stop", 2)
    (outcome,) = run_rows(model, generate(ignore_eos=True), [{"prompt": "hello"}])
    assert outcome.result["usage"]["completion_tokens"] == 24
    (outcome,) = run_rows(model, generate(min_tokens=5), [{"prompt": "hello"}])
    assert outcome.result["usage"]["completion_tokens"] >= 5


def test_stop_strings_cut_the_text(model: Any) -> None:
    (whole,) = texts(model, generate(), [{"prompt": "hello"}])
    stop = whole[4:7]
    cut = whole[: whole.index(stop)]
    (outcome,) = run_rows(model, generate(stop=["never there", stop]), [{"prompt": "hello"}])
    assert outcome.result["text"] == cut
    assert outcome.result["finish_reason"] == "stop"
    (kept,) = texts(model, generate(stop=[stop], include_stop_str_in_output=True), [{"prompt": "hello"}])
    assert kept == cut + stop


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"top_p": 0.8},
        {"top_k": 5},
        {"min_p": 0.05},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4, "top_k": 9},
    ],
)
def test_samples_depend_on_seed_and_index_alone(model: Any, folder: Path, sampling: dict[str, Any]) -> None:
    operation = generate(temperature=0.9, seed=3, **sampling)
    together = texts(model, operation, rows(HEAD))
    for index, payload in enumerate(rows(HEAD)):
        model.add(operation, [Row(1, index, payload)])
        found = []
        while model.pending:
            found += model.step()
        assert found[0].result["text"] == together[index]
    other = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    other._decoder.rows_max = other._decoder._ceiling = 3
    assert texts(other, operation, rows(HEAD)) == together
    assert texts(model, generate(temperature=0.9, seed=4, **sampling), rows(HEAD)) != together


def test_equal_rows_at_other_indices_differ(model: Any) -> None:
    assert len(set(texts(model, generate(temperature=1.0), [{"prompt": "hello"}] * 6))) > 1


def test_max_tokens_stop_at_the_models_limit(folder: Path) -> None:
    model = TransformersRuntime().load(tiny.context_of(folder, max_model_len=12), tiny.CPU)
    (outcome,) = run_rows(model, generate(max_tokens=100, ignore_eos=True), [{"prompt": [5] * 8}])
    assert outcome.result["usage"]["total_tokens"] == 12
    (outcome,) = run_rows(model, generate(), [{"prompt": [5] * 12}])
    assert outcome.error_kind == "prompt_too_long"


def test_bad_sampling_is_the_rows_error(model: Any) -> None:
    (outcome,) = run_rows(model, generate(top_p=0.0), [{"prompt": "x"}])
    assert outcome.error_kind == "bad_row"
    assert "top_p" in outcome.error


def test_openai_answers(model: Any) -> None:
    operation = Operation(kind="generate", result_format="openai", sampling=Sampling(temperature=0.0))
    chat = {"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}}
    plain = {"url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": 4}}
    one, two = (outcome.result for outcome in run_rows(model, operation, [chat, plain]))
    assert one["object"] == "chat.completion"
    assert one["choices"][0]["message"]["role"] == "assistant"
    assert two["object"] == "text_completion"
    assert two["choices"][0]["finish_reason"] in ("stop", "length")
    assert set(two["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert one["model"] == two["model"] == "tiny"


def test_openai_lines_are_whole(model: Any, tokenizer: Any) -> None:
    flags = Sampling(temperature=0.0, max_tokens=9, ignore_eos=True)
    operation = Operation(kind="generate", result_format="openai", sampling=flags)
    body = {"model": "theirs", "prompt": "hi", "max_tokens": 4}
    given = [{"url": "/v1/completions", "body": body}, {"url": "/v1/completions", "body": {**body, "n": 2}}]
    good, bad = run_rows(model, operation, given)
    line = json.loads(encode_result(0, good.result, "a", "openai"))
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("a", None, 200)
    answer = line["response"]["body"]
    assert (answer["model"], answer["choices"][0]["finish_reason"]) == ("theirs", "length")
    prompt_tokens = len(tokenizer("hi")["input_ids"])
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens, "completion_tokens": 4, "total_tokens": prompt_tokens + 4,
    }  # fmt: skip
    assert bad.error_kind == "unsupported"
    line = json.loads(encode_error(1, bad.error_kind, bad.error, "b", "openai"))
    assert (line["custom_id"], line["error"]["code"], line["response"]["status_code"]) == ("b", "unsupported", 400)
    assert line["response"]["body"]["error"]["type"] == "invalid_request_error"
    assert "`n`" in line["error"]["message"]
