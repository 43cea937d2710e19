"""A worker finds out what it runs on, and is told by a real manager that this will not do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pilotlight.client import launch
from pilotlight.client.session import Session
from pilotlight.core.errors import JobCancelled
from pilotlight.messages import Hello, Shutdown
from pilotlight.poolfile import socket_path, write_spec
from pilotlight.views import WorkerView
from pilotlight.wire import Environment, PoolSpec
from tests.worker import machines

PASCAL = ("NVIDIA GeForce GTX 1080 Ti", (6, 1))
VOLTA = ("Tesla V100-SXM2-16GB", (7, 0))
HOPPER = ("NVIDIA H100 80GB HBM3", (9, 0))
OVER = JobCancelled("the test is over")
FIND = """
import sys, pathlib, msgspec
from pilotlight.worker import devices, environment
sys.stdout.buffer.write(msgspec.json.encode(environment.find(devices.find(), pathlib.Path(sys.argv[1]))))
assert "torch" not in sys.modules
"""


def environ(fakes: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    source = str(Path(__file__).parent.parent.parent / "src")
    return {**kept, "PYTHONPATH": f"{fakes}:{source}"}


def found(fakes: Path, cache: Path) -> Environment:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FIND, str(cache)], env=environ(fakes), stdout=subprocess.PIPE, check=True
    )
    return msgspec.json.decode(done.stdout, type=Environment)


def test_what_is_found_and_that_torch_is_imported_once_elsewhere(tmp_path: Path) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    machines.make(fakes, gpus=[VOLTA, HOPPER])
    here = found(fakes, tmp_path / "cache")
    assert here.packages["torch"] == "2.11.0+cu128"
    assert (here.cuda, here.arches[0], here.arches[-1]) == ("12.8", "sm_75", "sm_120")
    assert (here.driver, here.driver_cuda) == ("580.82.07", "13.0")
    assert here.capabilities == {"GPU-0": "sm_70", "GPU-1": "sm_90"}
    assert here.python == ".".join(map(str, sys.version_info[:3]))
    assert found(fakes, tmp_path / "cache") == here
    assert machines.imports(fakes) == 1


def test_where_cuda_does_not_work_torch_is_asked_what_it_was_built_for(tmp_path: Path) -> None:
    machines.make(tmp_path, gpus=[HOPPER], works=False)
    assert found(tmp_path, tmp_path / "cache").arches[0] == "sm_75"


def test_a_build_for_cpus_says_so_and_a_torch_that_can_not_be_imported_says_nothing(tmp_path: Path) -> None:
    machines.make(tmp_path, gpus=[HOPPER], torch="2.11.0+cpu", cuda=None)
    assert found(tmp_path, tmp_path / "cache").cuda == "none"
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12')")
    assert found(tmp_path, tmp_path / "another").cuda == ""


def test_without_gpus_torch_is_not_imported_at_all(tmp_path: Path) -> None:
    machines.make(tmp_path, gpus=[])
    assert found(tmp_path, tmp_path / "cache").packages["torch"] == "2.11.0+cu128"
    assert machines.imports(tmp_path) == 0


# --- before a real manager


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    """A pool that starts no workers itself."""
    folder = tmp_path / "pool"
    folder.mkdir()
    short = tempfile.mkdtemp(dir="/tmp", prefix="pl")  # sockets' paths must be short
    spec = PoolSpec(workers=0, log_dir=str(tmp_path), name="p", lasting=True, socket_dir=short, python=sys.executable)
    write_spec(folder, spec)
    process = launch.start_manager(folder, spec)
    yield folder
    session = opened(folder, spec)
    session.close(Shutdown(), grace_s=10.0, error=OVER)
    process.wait(20)
    shutil.rmtree(spec.socket_dir, ignore_errors=True)


def opened(folder: Path, spec: PoolSpec) -> Session:
    session = Session([])
    session.open(socket_path(folder, spec, "client.sock"), Hello())
    return session


def dial(pool: Path, fakes: Path, name: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-P", "-m", "pilotlight.worker", "--pool", str(pool), "--name", name]
    cache = ["--cache", str(pool.parent / "cache")]
    return subprocess.Popen([*argv, *cache], env=environ(fakes), stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("gpu", "driver_cuda", "sentence"),
    [
        (PASCAL, 13000, "NVIDIA GeForce GTX 1080 Ti is sm_61, and torch 2.11.0+cu128 has code for sm_75 to sm_120"),
        (VOLTA, 13000, "Tesla V100-SXM2-16GB is sm_70, and torch 2.11.0+cu128 has code for sm_75 to sm_120"),
        (HOPPER, 11040, "NVIDIA's driver 580.82.07 there serves CUDA 11.4 at most"),
    ],
)
def test_a_worker_of_no_use_says_why_and_ends_and_the_manager_notes_it_once(
    pool: Path, tmp_path: Path, gpu: tuple[str, tuple[int, int]], driver_cuda: int, sentence: str
) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    machines.make(fakes, gpus=[gpu], driver_cuda=driver_cuda)
    for name in ("guest-1", "guest-2"):
        worker = dial(pool, fakes, name)
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 2, said
        assert f"pilotlight worker: {name} on " in said
        assert sentence in said
    noted = (tmp_path / "manager.log").read_text()
    assert noted.count(sentence) == 1


def test_a_worker_that_can_do_something_is_here_with_its_troubles(pool: Path, tmp_path: Path) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    machines.make(fakes, gpus=[PASCAL, HOPPER])
    worker = dial(pool, fakes, "guest-1")
    spec = msgspec.json.decode((pool / "pool.json").read_bytes(), type=PoolSpec)
    session = opened(pool, spec)
    try:
        view = here(session, worker)
    finally:
        session.close(grace_s=0.0, error=OVER)
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
    assert view.devices == [PASCAL[0], HOPPER[0]]
    assert any(text.startswith("it can't use GPU-0: NVIDIA GeForce GTX 1080 Ti is sm_61") for text in view.troubles)
    assert view.cache is not None
    assert (view.cache.path, view.cache.chosen_by) == (str(tmp_path / "cache"), "--cache")
    assert view.environment is not None
    assert view.environment.capabilities == {"GPU-0": "sm_61", "GPU-1": "sm_90"}


def here(session: Session, worker: subprocess.Popen[str]) -> WorkerView:
    for _ in range(600):
        if views := session.workers():
            return views[0]
        assert worker.poll() is None
        time.sleep(0.05)
    raise AssertionError("it never joined")
