"""The claims as prompts, the same for every way, and the comparison of what came out."""

from __future__ import annotations

import json
from pathlib import Path

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
LEAD_MIN = 1e-3
"""Log-likelihoods that are nearer than this tie: padding moves their last digits."""


def write_prompts(path: Path, passes: int) -> int:
    """The bundled claims, several times over; returns the number of rows."""
    from pilotlight.factcheck import bundled
    from pilotlight.factcheck.claims import render_prompt

    claims = [json.loads(line) for line in bundled.claims_file().read_text().splitlines()]
    lines = [json.dumps({"prompt": render_prompt(claim["claim"], claim["evidence"])}) + "\n" for claim in claims]
    with path.open("w") as file:
        for _ in range(passes):
            file.writelines(lines)
    return len(lines) * passes


def compare(one: dict[int, tuple[str, float]], other: dict[int, tuple[str, float]]) -> tuple[int, int, int]:
    """Of the rows in both: how many, how many labels differ, how many of these were ties (in either)."""
    both = one.keys() & other.keys()
    differ = [index for index in both if one[index][0] != other[index][0]]
    ties = sum(min(one[index][1], other[index][1]) < LEAD_MIN for index in differ)
    return len(both), len(differ), ties
