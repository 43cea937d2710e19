"""How commands end: signals, poison rows, a full disk, a second command, a frozen process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Playground
from tests.faults.test_kill import finish


def wait_for(condition: Callable[[], object], what: str, within_s: float = 30.0) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(0.02)


def writing(out: Path) -> Callable[[], bool]:
    """Whether results have reached the job's working folder."""

    def has_rows() -> bool:
        return any(path.stat().st_size for path in Path(f"{out}.pilotlight").glob("segment-*"))

    return has_rows


def heard(command: subprocess.Popen[str], word: str) -> None:
    """Read what a command says until a word comes."""
    assert command.stdout is not None
    assert any(word in line for line in command.stdout), f"it never said {word!r}"


def echo(ground: Playground, source: Path, *more: str) -> tuple[Path, list[str | Path]]:
    out = ground.folder / "out.jsonl"
    return out, ["run", source, "-o", out, "--runtime", "echo", "--workers", "2", *more]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_finishes_what_is_in_flight_and_says_how_to_go_on(
    ground: Playground, number: int, code: int
) -> None:
    out, command = echo(ground, ground.rows(3000, sleep_s=0.002))
    running = ground.start(*command)
    wait_for(writing(out), "the first results")
    running.send_signal(number)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == code, said
    assert "same command" in said
    assert not out.exists()
    finish(ground, command)
    assert len(out.read_text().splitlines()) == 3000
    ground.assert_clean()


def test_a_second_signal_ends_at_once(ground: Playground) -> None:
    out, command = echo(ground, ground.rows(20, sleep_s=8))
    running = ground.start(*command)
    heard(running, "holds")
    running.send_signal(signal.SIGINT)
    heard(running, "stopping")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert not writing(out)(), "it waited for a request of 8 s"
    assert not out.exists()
    ground.assert_clean()


def test_every_process_is_signalled_as_slurm_does(ground: Playground) -> None:
    out, command = echo(ground, ground.rows(3000, sleep_s=0.002))
    running = ground.start(*command)
    wait_for(writing(out), "the first results")
    for process in ground.processes():
        process.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 143, said
    finish(ground, command)
    assert len(out.read_text().splitlines()) == 3000
    ground.assert_clean()


def test_a_worker_that_is_told_to_leave_loses_nothing(ground: Playground) -> None:
    out, command = echo(ground, ground.rows(3000, sleep_s=0.002), "-v")
    running = ground.start(*command)
    wait_for(writing(out), "the first results")
    ground.kill("worker", random.Random(0), signal.SIGTERM)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert "drains (it got SIGTERM)" in said
    assert "was lost" not in said
    assert len(out.read_text().splitlines()) == 3000
    ground.assert_clean()


def test_poison_rows_become_error_rows_and_can_be_retried(ground: Playground) -> None:
    source = ground.rows(400, poison=frozenset({7, 250}))
    out, command = echo(ground, source)
    code, said = ground.run(*command)
    assert code == 3, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(400))
    errors = {row["index"]: row["error"] for row in rows if "error" in row}
    assert sorted(errors) == [7, 250]
    assert {error["kind"] for error in errors.values()} == {"killed_replica"}
    report = json.loads((ground.folder / "out.jsonl.report.json").read_text())
    assert report["errors"] == {"killed_replica": 2}
    code, said = ground.run(*command, "--retry-errors=killed_replica")
    assert code == 3, said
    assert "398" in said
    ground.assert_clean()


def test_malformed_rows_become_error_rows_with_their_line(ground: Playground) -> None:
    source = ground.folder / "odd.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"n":0}\r\n\r\n{"n":1\r\n[2]\n{"n":3,"custom_id":"c"}')
    out, command = echo(ground, source)
    code, said = ground.run(*command)
    assert code == 3, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert rows[3] == {"index": 3, "custom_id": "c", "result": {"n": 3, "custom_id": "c"}}
    assert "line 3" in rows[1]["error"]["message"]
    assert "line 4" in rows[2]["error"]["message"]
    ground.assert_clean()


def test_two_commands_on_one_output(ground: Playground) -> None:
    out, command = echo(ground, ground.rows(2000, sleep_s=0.008))
    first = ground.start(*command)
    wait_for(lambda: Path(f"{out}.pilotlight").exists(), "the first command's folder")
    wait_for(writing(out), "the first results")
    code, said = ground.run(*command)
    assert code == 2, said
    assert "out.jsonl" in said
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert len(out.read_text().splitlines()) == 2000
    ground.assert_clean()


def test_a_frozen_worker_holds_nobody_up_for_long(ground: Playground) -> None:
    out, command = echo(ground, ground.rows(2000, sleep_s=0.002))
    running = ground.start(*command)
    wait_for(writing(out), "the first results")
    pid = ground.kill("worker", random.Random(1), signal.SIGSTOP)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert len(out.read_text().splitlines()) == 2000
    assert pid is not None
    ground.assert_clean()


def test_a_frozen_worker_that_was_the_only_one_is_replaced(ground: Playground) -> None:
    source, out = ground.rows(1500, sleep_s=0.002), ground.folder / "out.jsonl"
    running = ground.start("run", source, "-o", out, "--runtime", "echo", "--workers", "1")
    wait_for(writing(out), "the first results")
    assert ground.kill("worker", random.Random(1), signal.SIGSTOP) is not None
    said, _ = running.communicate(timeout=90)
    assert running.returncode == 0, said
    assert len(out.read_text().splitlines()) == 1500
    ground.assert_clean()


def test_a_frozen_manager_is_replaced_and_does_no_harm_when_it_wakes(ground: Playground) -> None:
    out, command = echo(ground, ground.rows(3000, sleep_s=0.002))
    first = ground.start(*command)
    wait_for(writing(out), "the first results")
    managers = ground.by_role()["manager"]
    os.kill(managers[0], signal.SIGSTOP)
    code, said = ground.run(*command)
    assert code == 2, said
    deadline = time.monotonic() + 60
    while code == 2 and time.monotonic() < deadline:
        time.sleep(2)
        code, said = ground.run(*command)
    assert code == 0, said
    expected = out.read_bytes()
    os.kill(managers[0], signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode not in {0, 2}
    assert out.read_bytes() == expected
    assert len(expected.splitlines()) == 3000
    assert not Path(f"{out}.pilotlight").exists()
    ground.assert_clean()


def test_a_full_disk_suspends_the_job(ground: Playground) -> None:
    disk = ground.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here: needs root")
    try:
        source, out = ground.rows(20_000), disk / "out.jsonl"
        command: list[str | Path] = ["run", source, "-o", out, "--runtime", "echo", "--workers", "2"]
        code, said = ground.run(*command)
        assert code == 1, said
        assert "No space left" in said or "full" in said
        assert not out.exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        finish(ground, command)
        lines = out.read_text().splitlines()
        assert [json.loads(line)["index"] for line in lines] == list(range(20_000))
    finally:
        subprocess.run(["umount", disk], check=False)
    ground.assert_clean()


def test_a_finished_output_answers_its_own_input_only(ground: Playground) -> None:
    source = ground.rows(5000)
    out, command = echo(ground, source)
    assert ground.run(*command)[0] == 0
    code, said = ground.run(*command)
    assert code == 0
    assert "nothing is left to do" in said
    code, said = ground.run(*command, "--limit", "10")
    assert code == 2, said
    assert "it has 10 rows now, and had 5,000" in said
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(lines) + lines[0])
    code, said = ground.run(*command)
    assert code == 2, said
    assert "5,001 rows now" in said
    source.write_text("".join(lines[:-1]) + lines[0])
    code, said = ground.run(*command)
    assert code == 2, said
    assert "rows 4097 to 5000 differ" in said
    assert len(out.read_text().splitlines()) == 5000


def test_a_changed_input_is_refused(ground: Playground) -> None:
    source = ground.rows(6000, sleep_s=0.001)
    out, command = echo(ground, source)
    running = ground.start(*command)
    wait_for(writing(out), "the first results")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    lines = source.read_text().splitlines(keepends=True)
    lines[0] = '{"n": "another"}\n'
    source.write_text("".join(lines))
    code, said = ground.run(*command)
    assert code == 2, said
    assert "rows 1 to" in said
    code, said = ground.run(*command, "--overwrite")
    assert code == 0, said
    assert len(out.read_text().splitlines()) == 6000
    ground.assert_clean()


@pytest.mark.parametrize("how", ["2>&1 | head -1", "2>&-", ">/dev/full 2>&1", ">&- 2>&-"])
def test_a_reader_that_goes_away_costs_no_row(ground: Playground, how: str) -> None:
    source = ground.rows(2000, sleep_s=0.001)
    run = f"{sys.executable} -m pilotlight run {source} -o out.jsonl --runtime echo --workers 1 -v {how}"
    subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {run}"], cwd=ground.folder, env=ground.environment, check=True
    )
    assert len((ground.folder / "out.jsonl").read_text().splitlines()) == 2000
    ground.assert_clean()
