"""Scratch folders beneath the cache: where sockets fit, locked while their worker lives, swept when it fell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotlight.worker import scratch

MAKE = "import sys, pathlib; from pilotlight.worker import scratch; a, b = map(pathlib.Path, sys.argv[1:])"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for sockets below it."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="p"))
    yield path
    shutil.rmtree(path)


def test_folders_of_workers_that_fell_are_swept_and_those_of_living_ones_are_not(short: Path) -> None:
    code = f"{MAKE}; print(scratch.make(a, b), flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(short), str(short / "other")]
    living = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    lives = Path(living.stdout.readline().strip())
    gone = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    fell = Path(gone.stdout.strip())
    assert lives.parent == fell.parent == short / "workers"
    assert lives.is_dir()
    assert fell.is_dir()
    scratch.sweep(short / "workers")
    assert lives.is_dir()
    assert not fell.exists()
    living.communicate("")
    scratch.sweep(short / "workers")
    assert not lives.exists()


def test_where_sockets_do_not_fit_or_work_it_is_the_pools_folder(short: Path) -> None:
    long, other = short / ("x" * 80), short / "other"
    assert scratch.make(long, other) == other
    assert other.is_dir()
    assert not long.exists()
    assert scratch.make(short, other, network=True) == other


def test_processes_keep_their_folders_beneath_it_and_a_users_own_choice_stands(short: Path) -> None:
    inherited = {"TMPDIR": "/elsewhere", "VLLM_CACHE_ROOT": "/mine", "HOME": "/home/ada", "OMP_WAIT_POLICY": "ACTIVE"}
    told = scratch.variables(inherited, short / "own", short / "compiled")
    assert told["TMPDIR"] == told["RAY_TMPDIR"] == str(short / "own")
    assert told["VLLM_CACHE_ROOT"] == "/mine"
    assert told["OMP_WAIT_POLICY"] == "ACTIVE"
    assert told["HOME"] == "/home/ada"
    beneath = {name for name, value in told.items() if value.startswith(str(short))}
    assert beneath == {*scratch.COMPILED, "TMPDIR", "RAY_TMPDIR"} - {"VLLM_CACHE_ROOT"}


def test_a_process_follows_it(short: Path) -> None:
    code = "import tempfile; print(tempfile.gettempdir())"
    own = short / "own"
    own.mkdir()
    told = scratch.variables(os.environ, own, short / "compiled")
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(own)
