"""The commands with the bundled model: classify, generate, batches, claims, the demo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pilotlight as pl
from pilotlight.factcheck import bundled

pytestmark = pytest.mark.model
LONG_S = 240


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTLIGHT_LOG_DIR", str(tmp_path / "logs"))


@pytest.fixture(scope="module")
def model() -> str:
    return str(bundled.model_folder())


def _command(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pilotlight", *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONG_S, check=False)


def _results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_classify_with_a_template(tmp_path: Path, model: str) -> None:
    claims = bundled.claims_file().read_text().splitlines()[:40]
    (tmp_path / "in.jsonl").write_text("\n".join(claims))
    template = "Evidence: {evidence}\nClaim: {claim}\nVerdict:"
    labels = "SUPPORTS,REFUTES,NOT ENOUGH INFO"
    argv = ["run", "in.jsonl", "-o", "out.jsonl", "--model", model, "--prompt-template", template, "--labels", labels]
    shown = _command(tmp_path, *argv, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "Verdict:" in shown.stdout
    assert "tokens)" in shown.stdout
    assert not (tmp_path / "out.jsonl").exists()
    told = _command(tmp_path, *argv)
    assert told.returncode == 0, told.stderr
    rows = _results(tmp_path / "out.jsonl")
    assert len(rows) == 40
    assert all(sum(row["result"]["probabilities"].values()) == pytest.approx(1) for row in rows)


def test_run_batch_answers_in_openais_form(tmp_path: Path, model: str) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "Claim: x"}], "max_tokens": 3, "temperature": 0}
    rows = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = _command(tmp_path, "run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", model, "--max-num-seqs", "8")
    assert told.returncode == 0, told.stderr
    assert "--max-num-seqs" in told.stderr
    answers = _results(tmp_path / "out.jsonl")
    assert [answer["custom_id"] for answer in answers] == ["r0", "r1", "r2"]
    assert all(answer["response"]["body"]["choices"][0]["message"]["content"] is not None for answer in answers)


def test_claims_are_verified_and_scored(tmp_path: Path, model: str) -> None:
    claims = bundled.claims_file().read_text().splitlines()[:60]
    claims.append('{"id": 99, "label": "REFUTES", "claim": "Nobody knows this.", "evidence": [[[1, 2, "Page", 0]]]}')
    claims.append('{"id": 100}')
    (tmp_path / "claims.jsonl").write_text("\n".join(claims))
    shown = _command(tmp_path, "factcheck", "verify", "claims.jsonl", "-o", "out.jsonl", "--model", model, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("Verdict:") == 3
    told = _command(tmp_path, "factcheck", "verify", "claims.jsonl", "-o", "out.jsonl", "--model", model)
    assert told.returncode == 3, told.stderr
    for word in ("accuracy", "macro-F1", "without evidence", "label given \\ verdict", "1 bad_row"):
        assert word in told.stdout
    rows = _results(tmp_path / "out.jsonl")
    assert rows[60]["custom_id"] == {"id": 99, "label": "REFUTES", "evidence": False}
    assert rows[60]["result"]["label"] in {"SUPPORTS", "REFUTES", "NOT ENOUGH INFO"}
    assert rows[61]["error"]["kind"] == "bad_row"
    assert list(tmp_path.glob(".*")) == []


def test_verdicts_are_scored_from_a_compressed_output_and_within_the_limit(tmp_path: Path, model: str) -> None:
    rows = [{"claim": "Nobody knows this.", "evidence": [[[1, 2, "Page", 0]]]}] * 5
    (tmp_path / "claims.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["factcheck", "verify", "claims.jsonl", "-o", "out.jsonl.gz", "--model", model, "--limit", "2"]
    told = _command(tmp_path, *argv, "--workers", "1")
    assert told.returncode == 0, told.stderr
    assert "all 2 claims came without" in told.stdout


def test_the_demo_loses_a_worker_and_nothing_else(tmp_path: Path) -> None:
    told = _command(tmp_path, "demo", "--passes", "1")
    assert told.returncode == 0, told.stderr
    assert "SIGKILL" in told.stderr
    for word in ("3,000 done", "accuracy", "1 worker lost", "pilotlight-demo.jsonl"):
        assert word in told.stdout
    assert [row["index"] for row in _results(tmp_path / "pilotlight-demo.jsonl")] == list(range(3000))


def test_from_python(model: str) -> None:
    with pl.Pool(1) as pool:
        llm = pl.LLM(model)
        labels = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
        verdicts = list(pool.classify(llm, ["Claim: x\nVerdict:"] * 5, labels=labels))
        assert [verdict.label for verdict in verdicts] == ["NOT ENOUGH INFO"] * 5
        outputs = list(pool.generate(llm, ["Claim: x\nVerdict:"], pl.SamplingParams(max_tokens=2, temperature=0)))
        assert outputs[0].error is None
        assert outputs[0].usage["completion_tokens"] <= 2
        squares = [result.value for result in pool.map(lambda row: row * row, range(10))]
        assert squares == [number * number for number in range(10)]
