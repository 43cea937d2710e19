"""Out of memory for real: a child process whose address space is limited, and a model that then needs more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("resource")

from pilotlight.runtimes.transformers.budget import PASS_S, TOKENS_EFFICIENT, TokenBudget, is_out_of_memory
from tests import tiny

PROGRAM = """
import json, resource, sys
from pathlib import Path
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.testing.runtimes import run_rows
from pilotlight.wire import Operation, Sampling
from tests import tiny

folder, kind, tokens, rows, spare_mib = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = TransformersRuntime().load(tiny.context_of(Path(folder)), tiny.CPU)
operation = (
    Operation(kind="classify", labels=["SUPPORTS", "REFUTES"])
    if kind == "classify"
    else Operation(kind="generate", sampling=Sampling(max_tokens=4, temperature=0.0, ignore_eos=True))
)
payloads = [{"prompt": [5 + (row + place) % 50 for place in range(tokens)]} for row in range(rows)]
expected = [o.result for o in run_rows(model, operation, payloads[:4])] if rows > 4 else []
model._budget.tokens = model._budget._ceiling = 1 << 20
model._decoder.rows_max = model._decoder._ceiling = 1 << 10
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (spare_mib << 20), resource.RLIM_INFINITY))
outcomes = run_rows(model, operation, payloads)
same = [one.result == other or one.error_kind for one, other in zip(outcomes, expected)]
print(json.dumps({
    "kinds": sorted({str(o.error_kind) for o in outcomes}), "same": same, "tokens": model._budget._ceiling,
    "rows_max": model._decoder.rows_max,
}))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose passes need memory: long inputs, wide layers."""
    config = tiny.make_config(max_position_embeddings=8192, intermediate_size=2048)
    return tiny.make_model(tmp_path_factory.mktemp("wide") / "model", config=config)


def run(wide: Path, kind: str, *, tokens: int, rows: int, spare_mib: int) -> dict[str, Any]:
    arguments = [str(wide), kind, str(tokens), str(rows), str(spare_mib)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_the_budget_halves_until_all_rows_fit(wide: Path, kind: str) -> None:
    found = run(wide, kind, tokens=200, rows=60, spare_mib=150)
    assert found["kinds"] == ["None"]
    assert found["tokens"] < 1 << 20
    assert len(found["same"]) == 4


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_a_row_that_does_not_fit_at_once_is_read_in_parts(wide: Path, kind: str) -> None:
    assert run(wide, kind, tokens=8000, rows=2, spare_mib=40)["kinds"] == ["None"]


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_a_row_that_never_fits_ends_the_replica(tmp_path: Path, kind: str) -> None:
    config = tiny.make_config(max_position_embeddings=8192, head_dim=128, num_key_value_heads=4)
    heavy = tiny.make_model(tmp_path / "model", config=config)
    with pytest.raises(AssertionError, match="Out of memory: a row of 80"):
        run(heavy, kind, tokens=8000, rows=2, spare_mib=30)


def test_a_failed_size_is_never_tried_again() -> None:
    budget = TokenBudget(1024, 1 << 20)
    budget.halve(1000)
    assert budget.tokens == 500
    for _ in range(10):
        budget.observe(budget.tokens, 0.001)
    assert budget.tokens == 500


def test_the_budget_follows_speed() -> None:
    budget = TokenBudget(1024, 1 << 20)
    for _ in range(20):
        budget.observe(budget.tokens, budget.tokens / 10_000)
    assert 0.8 * PASS_S <= budget.tokens / 10_000 <= 1.2 * PASS_S


def test_slow_devices_get_passes_that_pay() -> None:
    for tokens_per_s, tokens in ((1000, TOKENS_EFFICIENT), (100, 100)):
        budget = TokenBudget(64, 1 << 20)
        for _ in range(20):
            budget.observe(budget.tokens, budget.tokens / tokens_per_s)
        assert budget.tokens == tokens


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
