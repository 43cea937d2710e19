"""kill -9 around the bundled model: every claim gets the verdict of an undisturbed run."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, Playground, playground
from tests.faults.test_kill import finish

ASSETS = ROOT / "src/pilotlight/factcheck/assets"
ROWS = 1200
LOGPROB_ERROR_MAX = 2e-3
"""Batches of other rows add up in another order; measured differences are below 1e-5."""


def rows_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def calm() -> tuple[bytes, list[dict[str, object]]]:
    """An input, and the output of an undisturbed run of it."""
    claims = (ASSETS / "claims.jsonl").read_bytes().splitlines(keepends=True)[:ROWS]
    source = b"".join(claims)
    with playground() as ground:
        (ground.folder / "claims.jsonl").write_bytes(source)
        code, said = ground.run(*command(ground))
        assert code == 0, said
        return source, rows_of(ground.folder / "out.jsonl")


def command(ground: Playground) -> list[str | Path]:
    return [
        "run", ground.folder / "claims.jsonl", "--model", ASSETS / "tiny-verifier", "--workers", "2",
        "--labels", "SUPPORTS,REFUTES,NOT ENOUGH INFO",
        "--prompt-template", "Evidence: {evidence}\nClaim: {claim}\nVerdict:",
        "-o", ground.folder / "out.jsonl",
    ]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("seed", range(3))
def test_verdicts_survive_kills(ground: Playground, seed: int, calm: tuple[bytes, list[dict[str, object]]]) -> None:
    source, expected = calm
    (ground.folder / "claims.jsonl").write_bytes(source)
    choice = random.Random(seed)
    running = ground.start(*command(ground))
    while "replica" not in ground.by_role() and running.poll() is None:
        time.sleep(0.05)
    for _ in range(3):
        time.sleep(choice.uniform(0.1, 1.2))
        ground.kill(choice.choice(["manager", "worker", "replica", "replica"]), choice)
    running.communicate(timeout=120)
    if running.returncode != 0:
        finish(ground, command(ground))
    stormy = rows_of(ground.folder / "out.jsonl")
    assert [row["index"] for row in stormy] == list(range(ROWS))
    for one, other in zip(expected, stormy, strict=True):
        first, second = one["result"], other["result"]
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        assert first["label"] == second["label"]
        for label, score in first["logprobs"].items():
            assert abs(score - second["logprobs"][label]) < LOGPROB_ERROR_MAX
    ground.assert_clean()
