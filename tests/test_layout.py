"""The house rules that no linter knows. Which module may import which is import-linter's business (pyproject.toml)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pilotlight

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "pilotlight"
FILES = sorted(SRC.rglob("*.py"))

LINES_MAX = 500

PURE = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "types",
    "typing",
}
"""What core may import of the standard library: none of it knows the time, draws numbers or touches the world."""

IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint", "id", "hash"}
"""`id` and `hash` differ from process to process, and so would decisions that depend on them."""

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface_hub")


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_lives_in_it(path: Path) -> None:
    text = ast.get_docstring(tree_of(path))
    assert text, f"{name_of(path)} has no module docstring"
    assert text.splitlines()[0].rstrip().endswith((".", ":", ",")) or len(text.splitlines()) > 1


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long_to_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES_MAX, f"{name_of(path)} has {lines} lines: split by meaning"


def impurities(tree: ast.Module) -> list[str]:
    """What in a module of core reaches beyond its arguments."""
    found: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=module, level=0) if module is not None:
                imported = [module]
            case ast.ImportFrom():
                imported = ["a relative import"]
            case ast.Call(func=ast.Name(id=called)) if called in IMPURE_CALLS:
                found.append(f"line {node.lineno} calls {called}()")
                continue
            case ast.AsyncFunctionDef() | ast.Await() | ast.Global():
                found.append(f"line {node.lineno}: {type(node).__name__}")
                continue
            case _:
                continue
        found += [
            f"line {node.lineno} imports {name}"
            for name in imported
            if name.split(".")[0] not in PURE and not name.startswith("pilotlight.core")
        ]
    return found


@pytest.mark.parametrize("path", sorted((SRC / "core").rglob("*.py")), ids=name_of)
def test_core_is_pure(path: Path) -> None:
    assert impurities(tree_of(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from random import random",
        "import os.path",
        "from asyncio import sleep",
        "import msgspec",
        "from pilotlight import wire",
        "from datetime import datetime",
        "def f():\n    import socket",
        "open('x')",
        "print(1)",
        "async def f(): ...",
    ],
)
def test_impurities_are_seen(text: str) -> None:
    assert impurities(ast.parse(text)) != []


def imported_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after `code`."""
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.rsplit("loaded:", 1)[1].split()) & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import pilotlight",
        "import pilotlight; pilotlight.LLM, pilotlight.Pool",
        "import pilotlight.manager.__main__",
        "import pilotlight.worker.__main__",
        "from pilotlight.cli.main import main; main(['--help'])",
        "from pilotlight.cli.main import main; main(['run', '--help'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    assert imported_by(code) == set()


def test_every_public_name_is_there() -> None:
    assert dir(pilotlight) == sorted(pilotlight.__all__)
    for name in pilotlight.__all__:
        assert getattr(pilotlight, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = pilotlight.nonsense


def test_the_diagrams_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/draw_transitions.py", "--check"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_carries_the_bundled_model(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("pilotlight/")}
    assets = SRC / "factcheck" / "assets"
    wanted = {f"pilotlight/{name_of(path)}" for path in assets.rglob("*") if path.is_file()}
    assert wanted
    assert wanted <= packed
    assert "pilotlight/py.typed" in packed
    assert not [name for name in packed if name.endswith(".pyc")]
