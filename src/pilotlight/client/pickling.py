"""Pickling a user's functions so that a worker can run them, wherever they were defined.

A worker has the same Python and the same installed packages, but neither this process's `__main__`, nor a notebook's
cells, nor modules beside the user's script. What comes from there is pickled by value; what is installed, by
reference.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from pilotlight.core.errors import ConfigError


def dumps(value: Any, what: str) -> bytes:
    """Pickle by value whatever workers can't import. Raises `ConfigError` that calls the value `what`."""
    try:
        with _local_modules_by_value():
            pickler: Any = cloudpickle
            return pickler.dumps(value)
    except Exception as error:
        raise ConfigError(f"{what} can't be sent to workers: {type(error).__name__}: {error}") from error


@contextmanager
def _local_modules_by_value() -> Generator[None]:
    """The registry is the user's too, so it is left as it was found."""
    pickler: Any = cloudpickle
    already: set[str] = pickler.list_registry_pickle_by_value()
    registered = [module for module in _local_modules(len(sys.modules)) if module.__name__ not in already]
    for module in registered:
        pickler.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            pickler.unregister_pickle_by_value(module)


@functools.lru_cache(maxsize=1)
def _local_modules(_modules_count: int) -> list[ModuleType]:
    """Looked for anew whenever modules were imported: a job pickles many rows."""
    return [module for name, module in list(sys.modules.items()) if is_local(name, module)]


def is_local(name: str, module: object) -> bool:
    """Whether a worker could not import this module: it is Python code outside of what is installed."""
    if not isinstance(module, ModuleType) or name != module.__name__:
        return False
    if name == "__main__" or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    file = getattr(module, "__file__", None)
    # Extension modules and frozen ones can't be pickled by value at all.
    if not file or not file.endswith(".py"):
        return False
    path = os.path.realpath(file)
    return not any(path.startswith(folder) for folder in _installed_folders())


def _installed_folders() -> list[str]:
    """Folders from which a fresh interpreter with our environment imports; an editable install is not among them,
    which is safe: by value works for it too."""
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}}
    folders |= {entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    return [os.path.join(os.path.realpath(folder), "") for folder in folders]
