"""Equal contexts have equal ids in every process, whatever the order of sets and the sharing of texts."""

from __future__ import annotations

import collections
import functools
import importlib
import os
import pickle
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pilotlight as pl
from pilotlight.client import pickling
from pilotlight.client.contexts import warn_if_unstable
from pilotlight.client.digest import Node, digest_of
from pilotlight.client.identity import identify

MODULE = """
import dataclasses, enum, functools, pathlib, sys
import pilotlight as pl
from helper import clean
import package, spaces.one

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

@functools.lru_cache
def remembered(x):
    return x + "remembered"

def late(x):
    import inside
    return inside.answer(x)

def twice(x):
    package.build(remembered(x)), spaces.one.build(), late(x)
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
FILES = {
    "user.py": MODULE,
    "helper.py": "def clean(x):\n    return x.strip()\n",
    "package/__init__.py": "from package.core import build\nimport threading\n",
    "package/core.py": "from package import deep\ndef build(x):\n    return deep.below(x)\n",
    "package/deep.py": "LEVEL = 1\ndef below(x):\n    return x, LEVEL\n",
    "spaces/one.py": "def build():\n    return 'spaces'\n",
    "inside.py": "from further import answer\n",
    "further.py": "def answer(x):\n    return 'further'\n",
}
SCRIPT = "import user; c = user.build(); print(c.id, c.unstable)"


def _told(folder: Path, seed: int, before: str = "pass", script: str = SCRIPT) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # Python itself misses an edit of equal size within a second
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {before}; {script}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
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
        ("user.py", '"remembered"', '"forgotten"'),
        ("user.py", "lru_cache", "lru_cache(maxsize=3)"),
        ("package/core.py", "below(x)", "below(x * 2)"),
        ("package/deep.py", "LEVEL = 1", "LEVEL = 2"),
        ("spaces/one.py", "'spaces'", "'other'"),
        ("further.py", "'further'", "'nearer'"),
    ],
)
def test_what_changes_the_state_changes_the_id(folder: Path, name: str, old: str, new: str) -> None:
    before = _told(folder, 1)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    assert _told(folder, 1) != before


def test_modules_that_pythonpath_leads_to_are_the_users(folder: Path) -> None:
    code = """
import user, helper
from pilotlight.client import pickling
print(user.build().id, pickling.dumps((helper.clean, user.package, user.spaces, user.remembered), "it").hex())
"""

    def told() -> list[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    before, sent = told()
    clean, package, spaces, remembered = pickle.loads(bytes.fromhex(sent))
    assert (clean(" x "), package.build(1), spaces.one.build()) == ("x", (1, 1), "spaces")
    assert remembered("r") == "rremembered"
    (folder / "helper.py").write_text(FILES["helper.py"].replace("strip", "lstrip"))
    assert told()[0] != before


def test_a_module_counts_as_it_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "loaded_here.py").write_text("def build():\n    return 1\n")
    module: Any = importlib.import_module("loaded_here")
    request.addfinalizer(lambda: sys.modules.pop("loaded_here", None))
    before = identify(module)
    (tmp_path / "loaded_here.py").write_text("def build():\n    return 2\n")
    assert identify(module) == before
    module.build = lambda: 2
    assert identify(module) != before


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


def _mutual(count: int) -> Callable[[], Any]:
    """Functions that each name all of them."""
    names = [f"f{number}" for number in range(count)]
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("\n".join(f"def {name}(): return {number}, {', '.join(names)}" for number, name in enumerate(names)), scope)
    return scope["f0"]


def test_functions_that_name_one_another_are_read_once_each() -> None:
    assert identify(_mutual(60)) == identify(_mutual(60)) != identify(_mutual(61))


def test_deep_values_are_read() -> None:
    def nested(deep: int, value: Any) -> Any:
        for _ in range(deep):
            value = [value]
        return value

    assert identify(nested(20_000, 1)) == identify(nested(20_000, 1)) != identify(nested(20_000, 2))
    assert identify(nested(20_000, 1)) != identify(nested(20_001, 1))


def test_rings_differ_by_any_of_their_members() -> None:
    def ring(labels: str) -> bytes:
        return digest_of([Node(label.encode(), [(at + 1) % len(labels)]) for at, label in enumerate(labels)], 0)

    assert ring("abcde") == ring("abcdeabcde") != ring("abcdx")
    assert len({ring(labels) for labels in ("aaaab", "aaabb", "aabab", "aaaaab", "baaaa")}) == 5


def test_the_order_of_what_is_in_a_dict_counts() -> None:
    assert identify({"a": 1, "b": 2}) != identify({"b": 2, "a": 1})
    first: dict[str, int] = collections.OrderedDict(a=1, b=2)
    second: dict[str, int] = collections.OrderedDict(b=2, a=1)
    assert identify(first) != identify(second)
    made = pl.context(dict[str, int])
    assert made(a=1, b=2).id == made(b=2, a=1).id


def test_where_exceptions_are_caught_counts() -> None:
    def raises(x: int) -> int:
        try:
            return 1 // x
        except ZeroDivisionError:
            return 0

    code = raises.__code__.replace(co_exceptiontable=b"")
    assert identify(types.FunctionType(code, globals())) != identify(types.FunctionType(raises.__code__, globals()))


def test_functions_of_one_name_in_two_modules_differ() -> None:
    import cmath
    import math

    assert identify(math.sqrt) != identify(cmath.sqrt)


def test_what_is_registered_with_pickling_is_taken_apart_as_that_says() -> None:
    assert identify(re.compile("a")).unstable == identify(int | str).unstable == []
    assert identify(re.compile("a")) == identify(re.compile("a")) != identify(re.compile("b"))
    assert identify(int | str) != identify(int | bytes)


def test_a_function_with_a_cache_is_sent_with_its_code(tmp_path: Path) -> None:
    script = """
import functools, sys
from pilotlight.client import pickling
@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
sys.stdout.buffer.write(pickling.dumps(fib, "fib"))
"""
    (tmp_path / "script.py").write_text(script)
    sent = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, check=True).stdout
    arrived = pickle.loads(sent)
    assert arrived(30) == 832040
    assert arrived.cache_parameters()["maxsize"] == 7
    assert pickle.loads(pickling.dumps(functools.lru_cache(len), "it"))("abc") == 3


def test_a_context_that_each_process_sees_otherwise_is_said() -> None:
    class Odd:
        def __reduce_ex__(self, protocol: object) -> str:
            raise TypeError("not this way")

    identity = identify(Odd())
    assert len(identity.unstable) == 1
    made: pl.Context[Any] = pl.Context(pl.context(name="n")(lambda: 1)().wire, unstable=identity.unstable)
    with pytest.warns(UserWarning, match=r"context n holds .*Odd, which may look different in every process"):
        warn_if_unstable(made)
