"""A fixed number of random worlds, and that a seed is the same world everywhere."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from pilotlight.sim import __main__ as command
from pilotlight.sim.hunt import Failure, digest, failure, run
from pilotlight.sim.plan import Plan, plan
from pilotlight.sim.shorten import shorten, story

SEEDS = range(1_000_000, 1_000_160)
PART = 8
DIGESTS = {16: "b54ca62ad4ab41e0", 72: "ce2b1f90230149c0", 101: "8b3d24c75097ead1"}
"""What happens in the worlds of some seeds, whose rows all take the same time: `exp` and `cos` are the platform's."""


@pytest.mark.parametrize("first", SEEDS[::PART])
def test_nothing_breaks_and_every_job_ends(first: int) -> None:
    for seed in range(first, first + PART):
        found = failure(plan(seed))
        assert found is None, f"seed {seed}: {found}"


def test_a_seed_is_one_plan_and_one_world() -> None:
    assert plan(5) == plan(5)
    assert plan(5) != plan(6)
    code = f"from pilotlight.sim.hunt import digest; print({{seed: digest(seed) for seed in {list(DIGESTS)}}})"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("0", "271828")
    }
    assert answers == {str({seed: digest(seed) for seed in DIGESTS})}


def test_a_seed_is_the_same_world_on_every_python() -> None:
    now = {seed: digest(seed) for seed in DIGESTS}
    assert now == DIGESTS, f"if the core, or a world, is meant to do something else now, write down {now}"


def breaks(what: Plan) -> bool:
    """A stand-in for a bug: two crashes of the manager while a job of many rows is there."""
    crashes = sum(fault.action == "crash manager" for fault in what.faults)
    return crashes > 1 and any(work.rows > 20 for work in what.works)


def test_what_fails_is_shortened_to_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotlight.sim.shorten.failure", lambda what: Failure("it", "it") if breaks(what) else None)
    seed = next(seed for seed in range(1000) if breaks(plan(seed)))
    short = shorten(plan(seed), "it")
    assert [fault.action for fault in short.faults] == ["crash manager"] * 2
    assert short.workers == ()
    assert len(short.works) == 1
    assert 20 < short.works[0].rows <= 41


def test_a_story_is_of_what_the_failure_names() -> None:
    told = story(plan(29), "worker-2 did something to job-1")
    assert told
    assert all("worker-2" in line or "job-1" in line for line in told)


def test_the_command_tells_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sim", "29", "30"])
    assert command.main() == 0
    assert "2 seeds, 0 failed" in capsys.readouterr().out

    def refuse(what: Plan, _watch: object = None) -> None:
        raise AssertionError(f"job-1 of {len(what.faults)} faults")

    monkeypatch.setattr("pilotlight.sim.hunt.run", refuse)
    monkeypatch.setattr(sys, "argv", ["sim", "29"])
    assert command.main() == 1
    out = capsys.readouterr().out
    assert "seed 29 at commit" in out
    assert "make sim SEED=29" in out


def test_a_quiet_world_charges_and_loses_nothing() -> None:
    seed = next(seed for seed in range(1000) if not plan(seed).faults)
    quiet = plan(seed)
    works = tuple(dataclasses.replace(work, poison=frozenset(), hangs=frozenset(), outgrows={}) for work in quiet.works)
    world = run(dataclasses.replace(quiet, works=works))
    assert world.meter.rows_lost == 0
    assert all(not output.attempts and not output.errors for output in world.outputs.values())
