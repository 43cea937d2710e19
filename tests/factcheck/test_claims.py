"""Claims in both forms become the rows that a model reads, line for line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pilotlight.core.errors import ConfigError, OutputBusy
from pilotlight.factcheck.claims import evidence_text, prepare, render_prompt, row_for_model

FEVER_EVIDENCE = [[[289914, 283015, "Soul_Food_-LRB-film-RRB-", 0]], [[291259, 284217, "Soul_Food", 0]]]


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ("A  sentence.\n", "A sentence."),
        (["One.", "Two."], "One. Two."),
        ("", None),
        ([], None),
        (None, None),
        (FEVER_EVIDENCE, None),
        ([[[108548, None, None, None]]], None),
    ],
)
def test_evidence_is_text_or_none(evidence: Any, text: str | None) -> None:
    assert evidence_text(evidence) == text


def test_prompts_are_those_of_the_training() -> None:
    assert render_prompt("It rains.", "Wet.") == "Evidence: Wet.\nClaim: It rains.\nVerdict:"
    assert render_prompt("It rains.", None) == "Claim: It rains.\nVerdict:"


def test_what_the_output_must_name_is_carried() -> None:
    row = {"id": 7, "verifiable": "VERIFIABLE", "label": "SUPPORTS", "claim": "x", "evidence": FEVER_EVIDENCE}
    carried = row_for_model(row, "here")["custom_id"]
    assert carried == {"id": 7, "label": "SUPPORTS", "evidence": False}
    assert row_for_model({"claim": "x", "evidence": "y"}, "here")["custom_id"] == {"evidence": True}
    named = row_for_model({"claim": "x", "custom_id": "mine"}, "here")["custom_id"]
    assert named == {"custom_id": "mine", "evidence": False}
    assert "prompt" not in row_for_model({"id": 1}, "here")


def test_a_label_that_is_not_fevers() -> None:
    with pytest.raises(ConfigError, match="here has the label 'SUPPORTED'; labels are SUPPORTS"):
        row_for_model({"claim": "x", "label": "SUPPORTED"}, "here")


def test_lines_stay_on_their_lines_and_broken_ones_stay_broken(tmp_path: Path) -> None:
    lines = ['{"id": 1, "claim": "a", "evidence": "e"}', "", "{broken", '{"id": 2, "claim": "b", "label": "REFUTES"}']
    claims = tmp_path / "claims.jsonl.gz"
    claims.write_bytes(gzip.compress("\r\n".join(lines).encode()))
    prepared = prepare(claims, tmp_path / "out.jsonl")
    (path,) = prepared.paths
    assert path.name == "claims.jsonl"
    written = path.read_text().split("\n")
    assert json.loads(written[0])["prompt"].startswith("Evidence: e")
    assert written[1:3] == ["", "{broken"]
    assert json.loads(written[3])["custom_id"] == {"id": 2, "label": "REFUTES", "evidence": False}
    assert (prepared.claims, prepared.with_evidence, prepared.labelled) == (3, 1, 1)
    first = path.read_bytes()
    with pytest.raises(OutputBusy):
        prepare(claims, tmp_path / "out.jsonl")
    assert path.read_bytes() == first
    prepared.remove()
    assert not prepared.folder.exists()
    for passes in (1, 3):
        again = prepare(claims, tmp_path / "out.jsonl", passes=passes)
        assert again.paths[0].read_bytes() == first * passes
        assert again.claims == 3 * passes
        again.remove()
