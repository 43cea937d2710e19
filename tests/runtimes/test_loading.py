"""Loading from parked weights: links into sealed memory of another process, mapped and not copied."""

# ruff: noqa: E402  (what is imported needs what `importorskip` looks for)

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pilotlight.core.errors import LoadError
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.testing.runtimes import run_rows
from pilotlight.wire import Context, Operation, Sampling
from tests import tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="parking needs Linux")

GREEDY = Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=8))
ROWS = [{"prompt": "Is water wet?"}, {"prompt": "hello"}]

PROGRAM = """
import json, sys
from pathlib import Path
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.testing.runtimes import run_rows
from pilotlight.wire import Operation, Sampling
from tests import tiny

def kib(name):
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

runtime = TransformersRuntime()
warm = runtime.load(tiny.context_of(Path(sys.argv[1])), tiny.CPU)
before = kib("Anonymous")
model = runtime.load(tiny.context_of(Path(sys.argv[2])), tiny.CPU)
operation = Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=8))
texts = [o.result["text"] for o in run_rows(model, operation, [{"prompt": "Is water wet?"}, {"prompt": "hello"}])]
grown = kib("Anonymous") - before
weight = next(iter(model._network._network.parameters()))
weight.data += 1.0
print(json.dumps({"texts": texts, "grown_kib": grown, "held_kib": model.memory_bytes >> 10}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 44 MB, so that a copy of them would show."""
    config = tiny.make_config(hidden_size=512, intermediate_size=2048, num_hidden_layers=3, vocab_size=384)
    return tiny.make_model(tmp_path_factory.mktemp("large") / "model", config=config)


@pytest.fixture
def parked(large: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder as a worker's agent makes it: small files, and links into sealed memory of this process."""
    folder = tmp_path / "parked"
    folder.mkdir()
    fds: list[int] = []
    for file in large.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        fd = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, file.read_bytes())
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        (folder / file.name).symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
        fds.append(fd)
    yield folder
    for fd in fds:
        os.close(fd)


def test_parked_weights_are_mapped_and_not_copied(folder: Path, large: Path, parked: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(parked)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    weights_kib = (large / "model.safetensors").stat().st_size >> 10
    assert found["held_kib"] >= weights_kib * 0.95
    assert found["grown_kib"] < weights_kib / 4, "the weights were copied"
    model = TransformersRuntime().load(tiny.context_of(large), tiny.CPU)
    assert found["texts"] == [outcome.result["text"] for outcome in run_rows(model, GREEDY, ROWS)]


def test_errors_name_the_model_and_not_the_folder_of_the_day(parked: Path) -> None:
    context = Context(runtime="transformers", name="org/model", identity="1", model_path=str(parked))
    (parked / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="org/model") as caught:
        TransformersRuntime().load(context, tiny.CPU)
    assert str(parked) not in str(caught.value)
    gone: Any = Context(runtime="transformers", name="org/model", identity="1", model_path=str(parked / "x"))
    with pytest.raises(LoadError, match=r"folder of org/model is not there") as caught:
        TransformersRuntime().load(gone, tiny.CPU)
    assert str(parked) not in str(caught.value)


def test_the_first_request_finds_everything_made(model: Any) -> None:
    assert (model.pending, model.started) == (0, 0)
    assert model.attachment_bytes == 0
    assert model._jobs == {}
