"""The figures against ones worked out by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pilotlight.factcheck.score import Score, describe, matrix, read_verdicts

S, R, N = "SUPPORTS", "REFUTES", "NOT ENOUGH INFO"


def _score(*pairs: tuple[str | None, str | None], evidence: bool = True) -> Score:
    score = Score()
    for label, verdict in pairs:
        score.add(label, verdict, evidence=evidence)
    return score


def test_accuracy_and_macro_f1() -> None:
    score = _score((S, S), (S, R), (R, R), (N, N), (None, S), (S, None))
    assert score.accuracy == 0.75
    assert (score.unlabelled, score.errors) == (1, 1)
    # SUPPORTS: precision 1, recall 1/2; REFUTES: 1/2 and 1; NOT ENOUGH INFO: 1 and 1.
    assert score.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_nothing_to_judge_is_said() -> None:
    score = _score((None, S))
    assert (score.accuracy, score.macro_f1) == (None, None)
    assert "unknown" in describe(score)[0][1]


def test_missing_evidence_is_never_hidden() -> None:
    score = _score((S, S), (N, R), evidence=False)
    told = dict(describe(score))
    assert "all 2 claims came without the text of their evidence" in told["without evidence"]
    assert "near chance" in told["without evidence"]
    score.add(R, R, evidence=True)
    assert "2 of 3 claims came without" in dict(describe(score))["without evidence"]
    assert score.accuracy_where(evidence=False) == 0.5


def test_missing_evidence_counts_without_labels_too() -> None:
    told = dict(describe(_score((None, S), (None, R), evidence=False)))
    assert "unknown" in told["accuracy"]
    assert "all 2 claims came without" in told["without evidence"]
    score = _score((None, S), evidence=False)
    score.add(S, S, evidence=True)
    assert "1 of 2 claims came without" in dict(describe(score))["without evidence"]
    assert "all" not in dict(describe(score))["without evidence"]


def test_the_matrix_has_labels_down_and_verdicts_across() -> None:
    lines = matrix(_score((S, R), (S, R), (N, S)).pairs.items()).splitlines()
    assert [line.split()[-3:] for line in lines[1:]] == [["0", "2", "0"], ["0", "0", "0"], ["1", "0", "0"]]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_an_output_file_is_read_with_its_error_rows(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    with gzip.open(output, "wt") if name.endswith(".gz") else output.open("w") as file:
        file.write(
            '{"index":0,"custom_id":{"id":1,"label":"REFUTES","evidence":false},"result":{"label":"REFUTES","probabilities":{}}}\n'
            '{"index":1,"error":{"kind":"bad_row","message":"x"}}\n'
            '{"index":2,"custom_id":{"evidence":true},"result":{"label":"SUPPORTS"}}\n'
        )
    score = read_verdicts(output)
    assert (score.accuracy, score.errors, score.unlabelled) == (1.0, 1, 1)
    assert score.judged[False] == 1
