"""Work for the tests: real FEVER claims where they are, else made ones; what must come of them, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

FEVER = Path(__file__).parents[3] / "shared/data/fever/paper_dev.jsonl"
"""FEVER 1.0's development set, beside a checkout; a user's clone has none."""


def write(path: Path, rows: int, *, sleep_s: float) -> Path:
    """An input for the echo runtime: so many claims, each taking so long."""
    claims = [f"Claim {number} is made up." for number in range(rows)]
    if FEVER.exists():
        with FEVER.open() as file:
            claims = [json.loads(line)["claim"] for line, _ in zip(file, range(rows), strict=False)]
    lines = [json.dumps({"n": n, "claim": claim, "sleep_s": sleep_s}) for n, claim in enumerate(claims)]
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_exact(source: Path, out: Path) -> None:
    """Each row was answered once, in order."""
    lines = out.read_text().splitlines()
    rows = source.read_text().splitlines()
    assert len(lines) == len(rows)
    for index, (line, row) in enumerate(zip(lines, rows, strict=True)):
        assert json.loads(line) == {"index": index, "result": json.loads(row)}
