"""Write the demo's bundled claims: about 3,000 labelled rows on real facts, in one JSON object a line.

    python training/make_claims.py --out src/pilotlight/factcheck/assets/claims.jsonl --seed 0

Evidence states true facts; training never saw a true pair, so no row's answer can be remembered. Most claims
are worded as in training, some as paraphrases that it never read, and a few dozen come without evidence.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from random import Random

from corpus import LABELS, NOT_ENOUGH_INFO, Row, real_rows, rows_without_evidence

ROWS_PER_LABEL = 1000
WITHOUT_EVIDENCE = 48
PARAPHRASE_SHARE = 0.15


def demo_rows(random: Random) -> list[Row]:
    """Distinct rows, as many of each label, in a random order."""
    chosen: dict[tuple[str, str], Row] = {}
    wanted = Counter(dict.fromkeys(LABELS, ROWS_PER_LABEL))
    for row in random.sample(rows_without_evidence(random), WITHOUT_EVIDENCE):
        chosen["", row.claim] = Row("", row.claim, row.label)
    wanted[NOT_ENOUGH_INFO] -= WITHOUT_EVIDENCE
    while wanted.total():
        rows = real_rows(random, "paraphrases" if random.random() < PARAPHRASE_SHARE else "claims")
        for row in random.sample(rows, len(rows)):
            identity = (row.evidence or "", row.claim)
            if wanted[row.label] and identity not in chosen:
                chosen[identity] = row
                wanted[row.label] -= 1
    return random.sample(list(chosen.values()), len(chosen))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Write the demo's bundled claims.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with arguments.out.open("w") as file:
        for number, row in enumerate(demo_rows(Random(f"{arguments.seed}-claims")), start=1):
            fields = {"id": number, "label": row.label, "claim": row.claim, "evidence": row.evidence}
            file.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    main()
