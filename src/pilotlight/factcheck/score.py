"""How right the verdicts are: accuracy, confusion matrix, macro-F1. Pure, but for `read_verdicts`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pilotlight.factcheck.claims import LABELS
from pilotlight.io.jsonl import JsonlSource

READ_ROWS = 65_536


class _Carried(msgspec.Struct):
    label: str | None = None
    evidence: bool = True


class _Verdict(msgspec.Struct):
    label: str | None = None


class _Line(msgspec.Struct):
    custom_id: _Carried | None = None
    result: _Verdict | None = None


@dataclass
class Score:
    """Counts of (label given, verdict) pairs, apart for claims with evidence and without.

    verdicts: claims with a verdict, labelled or not; judged and right: of those, the labelled ones. By evidence.
    """

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    right: Counter[bool] = field(default_factory=Counter[bool])
    verdicts: Counter[bool] = field(default_factory=Counter[bool])
    judged: Counter[bool] = field(default_factory=Counter[bool])
    unlabelled: int = 0
    errors: int = 0

    def add(self, label: str | None, verdict: str | None, *, evidence: bool) -> None:
        """Count a claim; `verdict` None: an error row."""
        if verdict is None:
            self.errors += 1
            return
        self.verdicts[evidence] += 1
        if label is None:
            self.unlabelled += 1
        else:
            self.pairs[label, verdict] += 1
            self.judged[evidence] += 1
            self.right[evidence] += label == verdict

    @property
    def accuracy(self) -> float | None:
        """Share of right verdicts among claims with a label and a verdict; None without any."""
        return self.right.total() / self.judged.total() if self.judged.total() else None

    def accuracy_where(self, *, evidence: bool) -> float | None:
        """The same among claims with evidence, or without."""
        return self.right[evidence] / self.judged[evidence] if self.judged[evidence] else None

    @property
    def macro_f1(self) -> float | None:
        """Mean over the labels (those that occur as label or verdict) of the harmonic mean of precision and recall."""
        scores: list[float] = []
        for label in LABELS:
            given = sum(count for (truth, _), count in self.pairs.items() if truth == label)
            said = sum(count for (_, verdict), count in self.pairs.items() if verdict == label)
            if given + said:
                scores.append(2 * self.pairs[label, label] / (given + said))
        return sum(scores) / len(scores) if scores else None


def read_verdicts(output: Path) -> Score:
    """Score an output file of `factcheck verify`."""
    decode = msgspec.json.Decoder(_Line).decode
    score = Score()
    with contextlib.closing(JsonlSource([str(output)])) as source:
        while chunks := source.read(READ_ROWS):
            for line in (line for chunk in chunks for line in chunk.blob.split(b"\n")):
                row = decode(line)
                carried = row.custom_id or _Carried()
                score.add(carried.label, row.result.label if row.result else None, evidence=carried.evidence)
    return score


def describe(score: Score) -> list[tuple[str, str]]:
    """Lines for a summary; evidence that was not there is never passed over."""
    lines: list[tuple[str, str]] = []
    if score.accuracy is None:
        lines.append(("accuracy", "unknown: no claim has both a label and a verdict"))
    else:
        right, judged = score.right.total(), score.judged.total()
        lines.append(("accuracy", f"{100 * score.accuracy:.1f} % ({right:,} of {judged:,} labelled claims)"))
        lines.append(("macro-F1", f"{score.macro_f1:.3f}"))
    if score.verdicts[False]:
        lines.append(("without evidence", _without_evidence(score)))
    if score.unlabelled and score.accuracy is not None:
        lines.append(("without label", f"{score.unlabelled:,} claims, not counted above"))
    return lines


def _without_evidence(score: Score) -> str:
    count = score.verdicts[False]
    if count == score.verdicts.total():
        return (
            f"all {count:,} claims came without the text of their evidence: a model can then only know or guess, "
            f"and a tiny one guesses (near chance, 33 %, is expected)"
        )
    said = f"{count:,} of {score.verdicts.total():,} claims came without the text of their evidence"
    without, known = score.accuracy_where(evidence=False), score.accuracy_where(evidence=True)
    rates = [] if without is None else [f"{100 * without:.1f} % right"]
    rates += [] if known is None else [f"with evidence: {100 * known:.1f} %"]
    return f"{said} ({'; '.join(rates)})" if rates else said


def matrix(pairs: Iterable[tuple[tuple[str, str], int]]) -> str:
    """The confusion matrix as text: a line per label given, a column per verdict."""
    counts = dict(pairs)
    cells = [["label given \\ verdict", *LABELS]]
    cells += [[truth, *(f"{counts.get((truth, verdict), 0):,}" for verdict in LABELS)] for truth in LABELS]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )
