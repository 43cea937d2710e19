"""Which modules are a user's own (workers can't import them, or not these very ones), and the sources of such modules.

What is installed is the same in every process. All else is the user's: files beside a script, a notebook's cells, and
what PYTHONPATH leads to, since a pool that stays has the PYTHONPATH of whoever brought it up.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_OURS = __name__.partition(".")[0]


def is_local(name: str, module: object) -> bool:
    """Whether this is Python code outside of what is installed."""
    if not isinstance(module, ModuleType) or name != module.__name__ or name.partition(".")[0] in {"__main__", _OURS}:
        return False
    # Extension modules and frozen ones can't be pickled by value at all.
    file = getattr(module, "__file__", None)
    if not file:
        return any(not is_installed(path) for path in getattr(module, "__path__", ()))
    return file.endswith(".py") and not is_installed(file)


def is_users(named: Any) -> bool:
    """Whether workers get this function or class by value."""
    module = sys.modules.get(getattr(named, "__module__", None) or "")
    name = getattr(named, "__qualname__", "")
    if module is None or module.__name__ == "__main__" or "<locals>" in name or "<lambda>" in name:
        return True
    return is_local(module.__name__, module)


def is_installed(path: str) -> bool:
    """Whether a file is where a fresh interpreter imports from, without our environment. An editable install is not,
    which is safe: by value works for it too."""
    real = os.path.realpath(path)
    return any(real.startswith(folder) for folder in _installed_folders(tuple(sys.path)))


@functools.lru_cache(maxsize=1)
def _installed_folders(paths: tuple[str, ...]) -> list[str]:
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {entry for entry in paths if Path(entry).name in {"site-packages", "dist-packages"}}
    return [os.path.join(os.path.realpath(folder), "") for folder in folders]


def sources(name: str) -> dict[str, bytes]:
    """The user's own files that `import name` would read, by module: its package and what that imports in turn.

    Empty for what is installed, or can't be found."""
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    waiting = [name.partition(".")[0]]
    while waiting:
        top = waiting.pop()
        if top in seen or top in sys.stdlib_module_names or top == _OURS:
            continue
        seen.add(top)
        for path, label in _files(top):
            try:
                text = path.read_bytes()
            except OSError:
                continue
            found[label] = text
            waiting += _imports(text)
    return found


def _files(top: str) -> Iterator[tuple[Path, str]]:
    spec = PathFinder.find_spec(top)
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        if not is_installed(folder):
            for path in sorted(Path(folder).rglob("*.py")):
                yield path, f"{top}/{path.relative_to(folder)}"
    if not spec.submodule_search_locations and spec.origin and not is_installed(spec.origin):
        yield Path(spec.origin), top


def _imports(text: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
