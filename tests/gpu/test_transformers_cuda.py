"""The transformers runtime on a CUDA device: the same answers as on the CPU, and memory that runs out for real."""

# ruff: noqa: E402  (what is imported needs what `importorskip` looks for)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.testing.runtimes import RuntimeCase, check, run_rows
from pilotlight.wire import DeviceSpec, Operation, Sampling
from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

CUDA = DeviceSpec(id="cuda", kind="cuda", type="cuda", memory_bytes=4 << 30, visible="0", threads=2)
CLASSIFY = Operation(kind="classify", labels=["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"])
GENERATE = Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=16, ignore_eos=True))
HEAD = "Answer yes or no. The quick brown fox jumps over the lazy dog. "
ROWS = [{"prompt": HEAD + text} for text in ("Is water wet?", "hello", "x", "Marie Curie was born in Paris.", "0 1")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(folder: Path) -> Iterator[Any]:
    live = TransformersRuntime().load(tiny.context_of(folder), CUDA)
    yield live
    live.close()


def test_scores_and_texts_are_those_of_the_cpu(model: Any, folder: Path) -> None:
    cpu = TransformersRuntime().load(tiny.context_of(folder), tiny.CPU)
    for one, two in zip(run_rows(model, CLASSIFY, ROWS), run_rows(cpu, CLASSIFY, ROWS), strict=True):
        assert one.result["logprobs"] == pytest.approx(two.result["logprobs"], abs=5e-3)
        assert one.result["label"] == two.result["label"]
    for one, two in zip(run_rows(model, GENERATE, ROWS), run_rows(cpu, GENERATE, ROWS), strict=True):
        assert one.result["text"] == two.result["text"]


def test_conforms(folder: Path) -> None:
    def same(one: Any, other: Any) -> bool:
        if "logprobs" not in one:
            return bool(one == other)
        return bool(one["logprobs"] == pytest.approx(other["logprobs"], abs=5e-3))

    jobs = [(CLASSIFY, ROWS), (GENERATE, ROWS)]
    check(
        RuntimeCase(TransformersRuntime, tiny.context_of(folder), jobs, bad=[({}, "bad_row")], device=CUDA, same=same)
    )


def test_half_precision_follows_the_chip(tmp_path: Path) -> None:
    folder = tiny.make_model(tmp_path / "model", config=tiny.make_config(dtype="bfloat16"))
    expected = torch.bfloat16 if torch.cuda.get_device_capability(0)[0] >= 8 else torch.float16
    live = TransformersRuntime().load(tiny.context_of(folder, dtype="auto"), CUDA)
    assert live._network.dtype in (expected, torch.float32)
    assert all(outcome.error_kind is None for outcome in run_rows(live, GENERATE, ROWS))


@pytest.mark.parametrize("operation", [CLASSIFY, GENERATE], ids=["classify", "generate"])
def test_out_of_memory_halves_the_budget(tmp_path: Path, operation: Operation) -> None:
    config = tiny.make_config(max_position_embeddings=8192, intermediate_size=4096)
    live = TransformersRuntime().load(tiny.context_of(tiny.make_model(tmp_path / "model", config=config)), CUDA)
    live._budget.tokens = live._budget._ceiling = 1 << 22
    live._decoder.rows_max = live._decoder._ceiling = 1 << 12
    used = torch.cuda.memory_reserved() + (512 << 20)
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(0).total_memory)
    try:
        rows = [{"prompt": [5 + (row + place) % 50 for place in range(400)]} for row in range(400)]
        outcomes = run_rows(live, operation, rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {outcome.error_kind for outcome in outcomes} == {None}
    assert live._budget._ceiling < 1 << 22


def test_sleep_gives_the_memory_back(model: Any) -> None:
    expected = [outcome.result for outcome in run_rows(model, GENERATE, ROWS)]
    awake_bytes, before = model.memory_bytes, torch.cuda.memory_allocated()
    assert model.can_sleep
    model.sleep()
    assert torch.cuda.memory_allocated() < before
    assert model.memory_bytes < awake_bytes
    model.wake()
    assert [outcome.result for outcome in run_rows(model, GENERATE, ROWS)] == expected


def test_a_shared_head_changes_nothing(model: Any, folder: Path) -> None:
    alone = TransformersRuntime(share_prefixes=False).load(tiny.context_of(folder), CUDA)
    model._budget._pass_s = 0.0  # passes cost it nothing, so that what pays does not depend on the machine
    for one, two in zip(run_rows(model, CLASSIFY, ROWS), run_rows(alone, CLASSIFY, ROWS), strict=True):
        assert one.result["logprobs"] == pytest.approx(two.result["logprobs"], abs=5e-3)
    assert model.attachment_bytes > 0
