"""Weights in sealed memory: one copy for all agents of a machine, which outlives the one that made it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilotlight.files import filecopy
from pilotlight.files.locks import CopyError
from pilotlight.files.modelfiles import Source
from pilotlight.wire import Operation, Sampling
from pilotlight.worker.parking import Parking, digests_of
from tests.tiny import CPU, context_of, make_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfds are Linux's")
WEIGHTS = b"w" * 100_000


def digest(source: Source) -> str:
    return filecopy.digest_of(source, threading.Event())


def parking(tmp_path: Path, name: str = "one", free: Callable[[], int] = lambda: 1 << 40) -> Parking:
    return Parking(tmp_path / name, tmp_path / "notes", threading.Event(), free)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Parking]:
    made = parking(tmp_path)
    yield made
    made.close()


def test_what_is_parked_can_be_read_and_not_changed(here: Parking, model: Path) -> None:
    parked = here.park("v", model, digest)
    assert parked.bytes == len(WEIGHTS)
    weights = parked.path / "model.safetensors"
    (fd,) = parked.fds.values()
    assert os.readlink(weights) == f"/proc/{os.getpid()}/fd/{fd}"
    assert weights.read_bytes() == WEIGHTS
    assert (parked.path / "config.json").read_bytes() == b"{}"
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == (
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    )
    for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 20)):
        with pytest.raises(OSError, match=rf"\[Errno {errno.EPERM}\]"):
            change()
    (model / "model.safetensors").write_bytes(b"changed")
    assert weights.read_bytes() == WEIGHTS
    assert here.park("v", model, digest) is parked


def test_dropping_frees_the_memory_and_leaves_no_trace(here: Parking, model: Path, tmp_path: Path) -> None:
    parked = here.park("v", model, digest)
    (fd,) = parked.fds.values()
    here.drop("v")
    here.drop("v")
    with pytest.raises(OSError, match=rf"\[Errno {errno.EBADF}\]"):
        os.fstat(fd)
    assert here.find("v") is None
    assert not parked.path.exists()
    assert [path for path in (tmp_path / "notes").rglob("*") if path.suffix] == []


def test_equal_files_are_parked_once(here: Parking, model: Path) -> None:
    (model / "model-2.safetensors").write_bytes(WEIGHTS)
    parked = here.park("v", model, digest)
    assert len(parked.fds) == 1
    assert (parked.path / "model-2.safetensors").read_bytes() == WEIGHTS


def test_nothing_is_remembered_of_variants_that_are_gone(here: Parking, model: Path) -> None:
    turns: list[int] = []

    def busy(source: Source) -> str:
        turns.append(len(here._busy))
        return digest(source)

    for n in range(5):
        here.park(f"v{n}", model, busy)
        here.drop(f"v{n}")
        here.drop(f"never parked {n}")
    assert turns == [1] * 5
    assert not here._busy


def test_parking_says_why_it_can_t(tmp_path: Path, model: Path) -> None:
    full = parking(tmp_path, free=lambda: 1000)
    with pytest.raises(CopyError, match=r"it needs 0\.00 GB of host memory, and 0\.00 GB are free"):
        full.park("v", model, digest)
    assert full.find("v") is None
    (model / "model.safetensors").unlink()
    with pytest.raises(CopyError, match="no weights that could be parked"):
        parking(tmp_path).park("v", model, digest)
    with pytest.raises(CopyError, match="can't be read"):
        parking(tmp_path).park("v", tmp_path / "nowhere", digest)


def test_parking_is_refused_where_there_is_no_memfd(
    here: Parking, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CopyError, match="parking needs Linux"):
        here.park("v", model, digest)


def test_digests_that_are_known_are_not_asked_for(here: Parking, model: Path) -> None:
    def unknown(source: Source) -> str:
        raise AssertionError(source)

    parked = here.park("v", model, digests_of({"model.safetensors": "d" * 64}, unknown))
    assert list(parked.fds) == ["d" * 64]


# --- another agent

AGENT = """
import sys, threading, pathlib
from pilotlight.files import filecopy
from pilotlight.worker.parking import Parking

stop = threading.Event()
notes, scratch, model = map(pathlib.Path, sys.argv[1:])
parked = Parking(scratch, notes, stop, lambda: 1 << 40).park("v", model, lambda s: filecopy.digest_of(s, stop))
print(parked.path, flush=True)
sys.stdin.readline()
"""


def agent(tmp_path: Path, model: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", AGENT, str(tmp_path / "notes"), str(tmp_path / "other"), str(model)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_agents_share_one_copy_that_outlives_its_maker(here: Parking, model: Path, tmp_path: Path) -> None:
    process, theirs = agent(tmp_path, model)
    with process:
        (model / "model.safetensors").rename(tmp_path / "aside")
        (model / "model.safetensors").write_bytes(b"x" * len(WEIGHTS))  # to see that it is not read
        parked = here.park("v", model, lambda _: hashlib.sha256(WEIGHTS).hexdigest())
        ours = (parked.path / "model.safetensors").stat()
        its = (theirs / "model.safetensors").stat()
        assert (ours.st_dev, ours.st_ino) == (its.st_dev, its.st_ino), "the same memory"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (theirs / "model.safetensors").exists()
    assert (parked.path / "model.safetensors").read_bytes() == WEIGHTS
    third = parking(tmp_path, "third")
    again = third.park("v", model, lambda _: hashlib.sha256(WEIGHTS).hexdigest())
    assert (again.path / "model.safetensors").stat().st_ino == ours.st_ino, "the note of the dead one is passed over"
    third.close()


@pytest.mark.parametrize("what", ["another name", "no seals", "another size", "no memfd"])
def test_what_is_noted_is_not_believed_blindly(here: Parking, model: Path, tmp_path: Path, what: str) -> None:
    name = hashlib.sha256(WEIGHTS).hexdigest()
    if what == "no memfd":
        (tmp_path / "false").write_bytes(WEIGHTS[::-1])
        fd = os.open(tmp_path / "false", os.O_RDONLY)
    else:
        fd = os.memfd_create(
            "pilotlight-" + ("0" * 64 if what == "another name" else name), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
        os.write(fd, b"x" * (10 if what == "another size" else len(WEIGHTS)))
        if what != "no seals":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
    first = here.park("v", model, digest)
    (note,) = [path for path in (tmp_path / "notes").rglob("*") if path.name.startswith(name)]
    here.drop("v")
    false = note.with_name(f"{name}.{os.getpid()}.{fd}")
    false.touch()
    parked = here.park("v", model, digest)
    assert parked is not first
    assert (parked.path / "model.safetensors").read_bytes() == WEIGHTS
    assert not false.exists()
    os.close(fd)


def test_a_model_loads_from_its_parked_copy(here: Parking, tmp_path: Path) -> None:
    from pilotlight.runtimes.transformers import TransformersRuntime

    folder = make_model(tmp_path / "tiny")
    parked = here.park("v", folder, digest)
    answers: list[list[object]] = []
    operation = Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=4, min_tokens=0))
    for path in (folder, parked.path):
        from pilotlight.manager.sampling import effective
        from pilotlight.ports import Row

        model = TransformersRuntime().load(context_of(path), CPU)
        model.add(effective(str(folder), operation), [Row(0, 0, {"prompt": "hello"})])
        outcomes = []
        while model.pending:
            outcomes += model.step()
        answers.append([outcome.result for outcome in outcomes])
        model.close()
    assert answers[0] == answers[1]
