"""The commands against the real manager and workers: files in, files out, exit codes, signals, going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LONG_S = 120


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; whatever the commands left of themselves would be in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setenv("PILOTLIGHT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("PILOTLIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "t").mkdir()
    yield tmp_path
    assert [path for path in (tmp_path / "t").iterdir() if path.name.startswith("pilotlight")] == []


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _command(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pilotlight", *line.split()]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=LONG_S, check=False)


def _start(folder: Path, line: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "pilotlight", *line.split()]
    return subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_rows_comes_back_in_order(folder: Path) -> None:
    _write(folder / "in.jsonl", [{"prompt": f"row {index}"} for index in range(500)])
    told = _command(folder, "run in.jsonl -o out.jsonl --runtime echo --workers 2")
    assert told.returncode == 0, told.stderr
    rows = _results(folder / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(500))
    assert [row["result"]["prompt"] for row in rows] == [f"row {index}" for index in range(500)]
    for word in ("requests", "500 done", "contexts loaded", "work lost", "out.jsonl.report.json"):
        assert word in told.stdout
    assert len(list((folder / "logs").glob("*/manager.log"))) == 1
    assert "logs" not in told.stderr
    again = _command(folder, "run in.jsonl -o out.jsonl --runtime echo --workers 2")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do" in again.stderr


def test_limit_quiet_and_several_inputs(folder: Path) -> None:
    _write(folder / "a.jsonl", [{"prompt": "a"}] * 3)
    _write(folder / "b.jsonl", [{"prompt": "b"}] * 3)
    told = _command(folder, "run a.jsonl b.jsonl -o out.jsonl --runtime echo --limit 5 -q")
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
    assert [row["result"]["prompt"] for row in _results(folder / "out.jsonl")] == ["a"] * 3 + ["b"] * 2


def test_a_dry_run_tells_what_would_become_of_an_output(folder: Path) -> None:
    _write(folder / "in.jsonl", [{"prompt": "a"}] * 5)
    line = "run in.jsonl -o out.jsonl --runtime echo"
    assert _command(folder, "run in.jsonl --runtime echo --dry-run").stdout.count("--- row") == 3
    assert "--output is needed" in _command(folder, "run in.jsonl --runtime echo").stderr
    told = _command(folder, f"{line} --dry-run --limit 2")
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("--- row") == 2
    assert "would start" in told.stdout
    assert _command(folder, line).returncode == 0
    assert "nothing would be left to do" in _command(folder, f"{line} --dry-run").stdout
    other = _command(folder, f"{line} --dry-run --prompt-template {{prompt}}").stdout
    assert "made by another request: would be refused" in other
    assert "would start afresh" in _command(folder, f"{line} --dry-run --overwrite").stdout


def test_error_rows_end_with_3_and_are_done_again_on_demand(folder: Path) -> None:
    (folder / "in.jsonl").write_text('{"prompt": "fine"}\n{broken\n{"prompt": "x", "fail": "no"}\n')
    told = _command(folder, "run in.jsonl -o out.jsonl --runtime echo")
    assert told.returncode == 3, told.stderr
    assert "1 bad_row" in told.stdout
    kinds = [row.get("error", {}).get("kind") for row in _results(folder / "out.jsonl")]
    assert kinds == [None, "bad_row", "echo_error"]
    assert "line 2" in _results(folder / "out.jsonl")[1]["error"]["message"]
    again = _command(folder, "run in.jsonl -o out.jsonl --runtime echo --retry-errors=echo_error")
    assert again.returncode == 3, again.stderr
    assert len(_results(folder / "out.jsonl")) == 3
    refused = _command(folder, "run in.jsonl -o out.jsonl --runtime echo --retry-errors=nonsense")
    assert refused.returncode == 2
    assert "no error rows of kind nonsense to do again; it has" in refused.stderr
    assert "1 bad_row" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_rows_finish_and_the_same_command_goes_on(folder: Path, number: signal.Signals) -> None:
    # More rows than a replica holds at once: those it holds are finished first.
    _write(folder / "in.jsonl", [{"prompt": str(index), "sleep_s": 0.0005} for index in range(16_000)])
    line = "run in.jsonl -o out.jsonl --runtime echo --workers 1 -v"
    process = _start(folder, line)
    _wait_for_rows(folder / "out.jsonl.pilotlight")
    process.send_signal(number)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 128 + number, err
    assert "the same command goes on" in err
    assert not (folder / "out.jsonl").exists()
    told = _command(folder, line)
    assert told.returncode == 0, told.stderr
    assert "going on after" in told.stderr
    rows = _results(folder / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(16_000))
    assert [row["result"]["prompt"] for row in rows] == [str(index) for index in range(16_000)]


def test_the_second_signal_ends_at_once(folder: Path) -> None:
    _write(folder / "in.jsonl", [{"prompt": "x", "sleep_s": 600}])
    process = _start(folder, "run in.jsonl -o out.jsonl --runtime echo --workers 1 -v")
    assert process.stderr is not None
    for line in process.stderr:
        if "live on" in line:
            break
    process.send_signal(signal.SIGTERM)
    for line in process.stderr:
        if "stopping" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped at once" in err


def test_a_killed_command_leaves_nothing_and_goes_on(folder: Path) -> None:
    _write(folder / "in.jsonl", [{"prompt": str(index), "sleep_s": 0.02} for index in range(300)])
    line = "run in.jsonl -o out.jsonl --runtime echo --workers 1"
    process = _start(folder, line)
    _wait_for_rows(folder / "out.jsonl.pilotlight")
    process.kill()
    process.communicate(timeout=LONG_S)
    deadline = time.monotonic() + 30
    while list((folder / "t").glob("pilotlight-*/*.sock")) and time.monotonic() < deadline:
        time.sleep(0.1)
    told = _command(folder, line)
    for _ in range(100):
        if told.returncode != 2:
            break
        time.sleep(0.2)
        told = _command(folder, line)
    assert told.returncode == 0, told.stderr
    assert [row["index"] for row in _results(folder / "out.jsonl")] == list(range(300))
    for left in (folder / "t").glob("pilotlight-*"):
        os.utime(left, (0, 0))
    _command(folder, line)


def _wait_for_rows(work: Path) -> None:
    """Until something is in the working folder's segments."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(path.is_file() and b'"index"' in path.read_bytes() for path in work.rglob("*")):
            return
        time.sleep(0.05)
    pytest.fail("no row was written")
