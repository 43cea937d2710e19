"""kill -9 of any process at any moment: the same command again ends with the output of an undisturbed run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from pilotlight.client.folders import STALE_S_MIN
from tests.faults.harness import Playground

ROUNDS = 50
ROLES = [
    "manager",
    "manager",
    "worker",
    "worker",
    "worker",
    "replica",
    "replica",
    "replica",
    "server",
    "client",
    "guardian",
]


def finish(ground: Playground, command: list[str | Path], tries: int = 4) -> str:
    """The same command, until it says that all is done."""
    said = ""
    for _ in range(tries):
        code, said = ground.run(*command)
        if code in {0, 3}:
            return said
    raise AssertionError(f"{command} did not end well:\n{said}\n{ground.logs()}")


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_kills(ground: Playground, seed: int) -> None:
    choice = random.Random(seed)
    rows = choice.choice([300, 3000, 20_000])
    source = ground.rows(rows, sleep_s={300: 0.004, 3000: 0.0004, 20_000: 0.0}[rows])
    out = ground.folder / "out.jsonl"
    command: list[str | Path] = [
        "run",
        source,
        "-o",
        out,
        "--runtime",
        "echo",
        "--workers",
        str(choice.choice([1, 2, 3])),
    ]
    running = ground.start(*command)
    for _ in range(choice.choice([1, 2, 3])):
        time.sleep(choice.uniform(0.0, 1.0))
        ground.kill(choice.choice(ROLES), choice)
    said, _ = running.communicate(timeout=60)
    if running.returncode != 0:
        finish(ground, command)
    lines = out.read_text().splitlines()
    expected = source.read_text().splitlines()
    assert len(lines) == rows, f"{said}\n{ground.logs()}"
    for index, (line, row) in enumerate(zip(lines, expected, strict=True)):
        assert line == f'{{"index":{index},"result":{row.replace(": ", ":").replace(", ", ",")}}}'
    assert not (ground.folder / "out.jsonl.pilotlight").exists()
    ground.assert_clean()


def test_everything_is_killed_at_once(ground: Playground) -> None:
    source = ground.rows(2000, sleep_s=0.002)
    out = ground.folder / "out.jsonl"
    command: list[str | Path] = ["run", source, "-o", out, "--runtime", "echo", "--workers", "2"]
    running = ground.start(*command)
    while "replica" not in ground.by_role():
        time.sleep(0.02)
    time.sleep(0.5)
    for process in ground.processes():
        process.kill()
    running.communicate(timeout=20)
    assert (ground.folder / "out.jsonl.pilotlight").exists()
    time.sleep(STALE_S_MIN)  # the next command sweeps what is older
    finish(ground, command)
    assert len(out.read_text().splitlines()) == 2000
    ground.assert_clean()
