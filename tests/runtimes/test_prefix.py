"""Prompt prefixes as attachments: nothing changes but the work, they outlive jobs, and they make room."""

# ruff: noqa: E402  (what is imported needs what `importorskip` looks for)

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotlight.ports import Row
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.runtimes.transformers.cohorts import SlotCohort
from pilotlight.runtimes.transformers.reading import result_of
from pilotlight.testing.runtimes import run_rows
from pilotlight.wire import Operation, Sampling
from tests import tiny

LABELS = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO", "NOT"]
CLAIMS = ["The Elbe flows through Hamburg.", "Marie Curie was born in Paris.", "0", "Is water wet? " * 5, "fox", "dog"]
HEAD = "Answer yes or no. The quick brown fox jumps over the lazy dog. "
HEADS = [f"{kind} assistant: {HEAD}" for kind in ("helpful", "user", "system")]
TOLERANCE = 2e-4
"""Absolute, on sums of log-probabilities of up to about 60 in float32; seen: 3e-5."""

CLASSIFY = Operation(kind="classify", labels=LABELS)
GREEDY = Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=12))
SAMPLED = Operation(kind="generate", sampling=Sampling(temperature=0.9, top_p=0.95, seed=3, max_tokens=12))
CHAT = Operation(
    kind="generate", chat=True, system_prompt=HEAD, sampling=Sampling(temperature=0.0, max_tokens=6, ignore_eos=True)
)


@pytest.fixture
def model(model: Any) -> Any:
    """Passes cost it nothing, so that what pays does not depend on how busy the machine is."""
    model._budget._pass_s = 0.0
    return model


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Any]:
    """The same model without anything shared."""
    model = TransformersRuntime(share_prefixes=False).load(tiny.context_of(folder), tiny.CPU)
    yield model
    assert model.attachment_bytes == 0
    model.close()


def with_heads(*heads: str) -> list[dict[str, str]]:
    """Each claim after each head, heads alternating."""
    return [{"prompt": head + claim} for claim in CLAIMS for head in heads]


def few_shot(head: str) -> list[dict[str, str]]:
    return [{"prompt": f"{head}\nClaim: water. Verdict: SUPPORTS\nClaim: {claim} Verdict:"} for claim in CLAIMS]


CASES: dict[str, list[dict[str, Any]]] = {
    "one head": with_heads(HEAD),
    "no head": with_heads(""),
    "three heads": with_heads(*HEADS),
    "few-shot": few_shot(HEAD),
    "a head, and rows without": with_heads(HEAD, "", "x"),
    "rows equal to the head": [{"prompt": HEAD}] * 3 + with_heads(HEAD),
    "equal rows": [{"prompt": HEAD}] * 6,
    "chats": [
        {"messages": [{"role": "system", "content": HEAD}, {"role": "user", "content": claim}]} for claim in CLAIMS
    ],
}
SHARING = set(CASES) - {"no head"}


def check_same(operation: Operation, one: Any, other: Any) -> None:
    if operation.kind == "generate":
        assert one == other
    else:
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=TOLERANCE)
        assert one["label"] == other["label"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("operation", [CLASSIFY, GREEDY, SAMPLED], ids=["classify", "greedy", "sampled"])
def test_results_are_those_without(model: Any, alone: Any, operation: Operation, case: str) -> None:
    rows = CASES[case]
    shared, plain = run_rows(model, operation, rows), run_rows(alone, operation, rows)
    assert (model.attachment_bytes > 0) == (case in SHARING), "this test tested something else"
    for one, other in zip(shared, plain, strict=True):
        assert one.error_kind is None
        check_same(operation, one.result, other.result)


def test_templates_and_chats_share_their_heads(model: Any, alone: Any) -> None:
    rows = [{"prompt": claim} for claim in CLAIMS]
    template = Operation(kind="classify", labels=LABELS, prompt_template=HEAD + "Claim: {prompt} Verdict:")
    for operation in (CHAT, template):
        for one, other in zip(run_rows(model, operation, rows), run_rows(alone, operation, rows), strict=True):
            check_same(operation, one.result, other.result)
    lengths = [prefix.length for prefix in model._prefixes._known if prefix.kept]
    assert len(lengths) == 2


def test_logits_differ_by_rounding_only(model: Any, tokenizer: Any) -> None:
    network = model._network
    batch = [tokenizer(HEAD + claim)["input_ids"] for claim in CLAIMS]
    model._prefixes.propose(tokenizer(HEAD)["input_ids"][:-1], "")
    prefix = model._prefixes.find(batch[0], "")
    kept = result_of(model._prefixes.read(prefix, 7))
    reused, first = result_of(SlotCohort.begin(network, batch, kept, tokens_max=1 << 20))
    plain, second = result_of(SlotCohort.begin(network, batch, [], tokens_max=1 << 20))
    gaps = [float((first - second).abs().max())]
    for token in (5, 9, 11):
        one, two = reused.decode([token] * len(batch)), plain.decode([token] * len(batch))
        gaps.append(float((one - two).abs().max()))
    assert max(gaps) < 2e-5, "seen: 5e-6 on logits of size 5"


def test_a_wider_and_a_narrower_head_later(model: Any, alone: Any) -> None:
    for head in (HEAD, HEAD * 2, HEAD[:30], "other ", HEAD):
        rows = with_heads(head)
        for one, other in zip(run_rows(model, CLASSIFY, rows), run_rows(alone, CLASSIFY, rows), strict=True):
            check_same(CLASSIFY, one.result, other.result)


def test_the_first_batch_shares(model: Any, tokenizer: Any) -> None:
    read = counted(model)
    run_rows(model, GREEDY, with_heads(HEAD))
    (rows, head), *batches = read
    longest = max(len(tokenizer(row["prompt"])["input_ids"]) for row in with_heads(HEAD))
    assert (rows, head > 16) == (1, True)
    assert max(columns for _, columns in batches) == longest - head, "the head was read again"


def counted(model: Any) -> list[tuple[int, int]]:
    """The shapes of all passes from now on; those of decoding have one column."""
    shapes: list[tuple[int, int]] = []
    model._network._network.register_forward_pre_hook(
        lambda _module, _arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_a_second_job_finds_what_the_first_one_kept(model: Any) -> None:
    run_rows(model, CLASSIFY, with_heads(HEAD))
    kept_bytes = model.attachment_bytes
    assert 0 < kept_bytes < model.memory_bytes
    read = counted(model)
    run_rows(model, GREEDY, with_heads(HEAD)[:2])
    model.forget(CLASSIFY)
    model.forget(GREEDY)
    run_rows(model, SAMPLED, with_heads(HEAD)[:2])
    assert model.attachment_bytes == kept_bytes
    longest = max(prefix.length for prefix in model._prefixes._known)
    assert all(columns < longest for _, columns in read)


def test_what_no_job_needs_makes_room_first(model: Any) -> None:
    run_rows(model, CLASSIFY, with_heads(HEADS[0]))
    run_rows(model, GREEDY, with_heads(HEADS[1]))
    run_rows(model, CLASSIFY, with_heads(HEADS[0]))
    model.forget(CLASSIFY)
    model._prefixes._bytes_max = model.attachment_bytes
    run_rows(model, GREEDY, with_heads(HEADS[2]))
    kept = [prefix for prefix in model._prefixes._known if prefix.kept]
    assert len(kept) == 2
    assert all(prefix.operations == {GREEDY.id} for prefix in kept), "the newer one went, though a job needs it"
    assert model.attachment_bytes <= model._prefixes._bytes_max


def test_a_head_that_finds_no_room_is_not_kept(model: Any, alone: Any) -> None:
    model._prefixes._bytes_max = 20 * model._prefixes._token_bytes
    rows = with_heads(HEAD)
    for one, other in zip(run_rows(model, CLASSIFY, rows), run_rows(alone, CLASSIFY, rows), strict=True):
        check_same(CLASSIFY, one.result, other.result)
    assert model.attachment_bytes <= model._prefixes._bytes_max


def fail_passes(model: Any, too_large: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Let forward passes of such shapes run out of memory, as torch's allocator says it; the shapes that failed."""
    failed: list[tuple[int, int]] = []

    def refuse(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        rows, columns = named["input_ids"].shape
        if too_large(rows, columns):
            failed.append((rows, columns))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model._network._network.register_forward_pre_hook(refuse, with_kwargs=True)
    return failed


def test_attachments_go_before_the_budget_does(model: Any, alone: Any) -> None:
    run_rows(model, CLASSIFY, with_heads(*HEADS))
    budget, kept_bytes = model._budget._ceiling, model.attachment_bytes
    failed = fail_passes(model, lambda rows, columns: not failed and columns > 1)
    rows = with_heads("something else: ")
    for one, other in zip(run_rows(model, GREEDY, rows), run_rows(alone, GREEDY, rows), strict=True):
        check_same(GREEDY, one.result, other.result)
    assert model.attachment_bytes < kept_bytes
    assert model._budget._ceiling == budget
    failed.clear()
    model._prefixes.drop()
    run_rows(model, GREEDY, [{"prompt": claim} for claim in CLAIMS])
    assert failed
    assert model._budget._ceiling < budget


def test_a_row_that_does_not_fit_is_read_in_parts(model: Any, alone: Any) -> None:
    failed = fail_passes(model, lambda rows, columns: columns > 24)
    for operation in (CLASSIFY, GREEDY):
        rows = with_heads("", HEAD)
        for one, other in zip(run_rows(model, operation, rows), run_rows(alone, operation, rows), strict=True):
            check_same(operation, one.result, other.result)
    assert any(rows == 1 for rows, _ in failed)


def test_a_row_that_fits_nowhere_ends_the_replica(model: Any) -> None:
    fail_passes(model, lambda rows, columns: True)
    for operation in (CLASSIFY, GREEDY):
        model.add(operation, [Row(1, 0, {"prompt": HEAD})])
    check_that_memory_ends_it(model)


def test_a_row_that_outgrows_the_memory_alone_ends_the_replica(model: Any) -> None:
    model.add(GREEDY, [Row(1, 0, {"prompt": HEAD}), Row(2, 1, {"prompt": "hello"})])
    failed = fail_passes(model, lambda rows, columns: columns == 1)
    check_that_memory_ends_it(model)
    assert failed == [(2, 1), (1, 1)]


def check_that_memory_ends_it(model: Any) -> None:
    def run() -> None:
        while model.pending:
            assert model.step() == []

    with pytest.raises(MemoryError, match="Out of memory: a row of"):
        run()


def test_a_long_prompt_takes_several_steps(model: Any, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_step_s", 0.0)
    model._budget.tokens = model._budget._ceiling = 32
    read = counted(model)
    for operation in (CLASSIFY, GREEDY):
        model.add(operation, [Row(1, 0, {"prompt": HEAD * 8}), Row(2, 1, {"prompt": "hello"})])
        steps = [model.step() for _ in range(8)]
        assert steps[0] == steps[1] == []
        assert model.started >= 1
        outcomes = [outcome for done in steps for outcome in done]
        while model.pending:
            outcomes += model.step()
        expected = run_rows(alone, operation, [{"prompt": HEAD * 8}, {"prompt": "hello"}])
        for outcome in outcomes:
            check_same(operation, outcome.result, expected[outcome.ticket - 1].result)
    assert max(rows * columns for rows, columns in read) <= 32


def test_weights_that_went_to_the_host_and_back_are_the_same(model: Any) -> None:
    expected = [outcome.result for outcome in run_rows(model, GREEDY, with_heads(HEAD))]
    assert not model.can_sleep
    model.sleep()
    assert model.attachment_bytes == 0
    model.wake()
    assert [outcome.result for outcome in run_rows(model, GREEDY, with_heads(HEAD))] == expected


TEXTS = [head + claim for head in ("", *HEADS, HEADS[0] * 2) for claim in CLAIMS]


@pytest.fixture(scope="module")
def expected(alone: Any) -> dict[str, list[Any]]:
    """Results of `TEXTS` by operation."""
    rows = [{"prompt": text} for text in TEXTS]
    return {op.id: [outcome.result for outcome in run_rows(alone, op, rows)] for op in (CLASSIFY, GREEDY, SAMPLED)}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_results_are_those_without(model: Any, expected: dict[str, list[Any]], seed: int) -> None:
    """Jobs come and go and alternate, room shrinks, attachments are dropped, and some passes find no memory."""
    chances = random.Random(seed)
    fail_passes(model, lambda rows, columns: (rows > 1 or columns > 16) and chances.random() < 0.05)
    tickets: dict[int, tuple[Operation, int]] = {}
    answered = 0

    def step() -> None:
        nonlocal answered
        for outcome in model.step():
            op, index = tickets.pop(outcome.ticket)
            check_same(op, outcome.result, expected[op.id][index])
            answered += 1
        assert model.pending == len(tickets)
        assert model.attachment_bytes <= model._prefixes._bytes_max

    for _ in range(40):
        operation = chances.choice([CLASSIFY, GREEDY, SAMPLED])
        indices = [chances.randrange(len(TEXTS)) for _ in range(chances.randrange(8))]
        rows = [Row(answered + len(tickets) + at, index, {"prompt": TEXTS[index]}) for at, index in enumerate(indices)]
        tickets |= {row.ticket: (operation, row.index) for row in rows}
        model.add(operation, rows)
        if chances.random() < 0.5:
            step()
        if not model.pending:
            model.forget(operation)
        if chances.random() < 0.1:
            model._prefixes.let_go()
            model._prefixes._bytes_max = chances.randrange(200) * model._prefixes._token_bytes
    while model.pending:
        step()
    assert answered > 50
