"""Equal contexts have equal ids in every process, whatever the order of sets and the sharing of texts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pilotlight as pl
from pilotlight.client.contexts import warn_if_unstable
from pilotlight.client.identity import identify

MODULE = """
import dataclasses, enum, functools, pathlib, sys
import pilotlight as pl
from helper import clean

FACTOR = 3

class Kind(enum.Enum):
    A = 1

@dataclasses.dataclass
class Settings:
    name: str
    tags: set

class Scaler:
    def __init__(self, by): self.by = by
    def scale(self, x): return x * self.by * FACTOR

def twice(x):
    return clean(x) * 2

@pl.context
def load(path, settings, *rest, **options):
    words = {"one", "two", "three", "four"}
    return [twice(word) for word in words if word in {"one", "two"}], Scaler(FACTOR)

def build():
    text = "".join(["a", "b"])
    tags = {str(i) for i in range(50)}
    return load(
        pathlib.Path("/data"), Settings(text, tags), Scaler, twice, lambda x: x + FACTOR, functools.partial(max, 3),
        Kind.A, (1, 2.5, None, b"x"), kind={"b": 1, "a": "ab"}, deep=[frozenset(tags)],
    )
"""
HELPER = "def clean(x):\n    return x.strip()\n"
SCRIPT = "import user; c = user.build(); print(c.id, c.unstable)"


def _told(folder: Path, seed: int, before: str = "pass", script: str = SCRIPT) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {before}; {script}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "user.py").write_text(MODULE)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def test_two_processes_agree(folder: Path) -> None:
    first = _told(folder, 1)
    assert first.endswith(" []")
    assert _told(folder, 2, before="text = 'ab'; import json, decimal") == first


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("user.py", "FACTOR = 3", "FACTOR = 4"),
        ("user.py", "clean(x) * 2", "clean(x) * 3"),
        ("user.py", "x * self.by", "x + self.by"),
        ("user.py", '"/data"', '"/other"'),
        ("user.py", 'b"x"', 'b"y"'),
        ("user.py", "max, 3", "min, 3"),
        ("helper.py", "x.strip()", "x.lstrip()"),
    ],
)
def test_what_changes_the_state_changes_the_id(folder: Path, name: str, old: str, new: str) -> None:
    before = _told(folder, 1)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    assert _told(folder, 1) != before


def test_comments_and_lines_change_nothing(folder: Path) -> None:
    before = _told(folder, 1)
    (folder / "user.py").write_text("# a comment\n\n" + MODULE)
    assert _told(folder, 1) == before


def test_cycles_and_what_has_no_meaning_elsewhere() -> None:
    ring: list[object] = []
    ring.append(ring)
    other: list[object] = []
    other.append(other)
    assert identify(ring) == identify(other)
    assert identify([1, 2]) != identify((1, 2)) != identify({1, 2})
    assert identify(1) != identify(True) != identify("1")
    assert identify(threading.Lock()).unstable == ["_thread.lock"]


def test_a_context_that_each_process_sees_otherwise_is_said() -> None:
    class Odd:
        def __reduce_ex__(self, protocol: object) -> str:
            raise TypeError("not this way")

    identity = identify(Odd())
    assert len(identity.unstable) == 1
    made = pl.Context(pl.context(name="n")(lambda: 1)().wire, unstable=identity.unstable)
    with pytest.warns(UserWarning, match=r"context n holds .*Odd, which may look different in every process"):
        warn_if_unstable(made)
