"""Pickling a user's functions so that a worker can run them, wherever they were defined.

A worker has the same Python and the same installed packages, but neither this process's `__main__`, nor a notebook's
cells, nor modules beside the user's script or on its PYTHONPATH. What comes from there is pickled by value; what is
installed, by reference.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import cloudpickle

from pilotlight.client.sources import is_local, is_users
from pilotlight.core.errors import ConfigError

CACHED: type[Any] = type(functools.lru_cache(len))
"""What `functools.lru_cache` and `functools.cache` make of a function."""


def dumps(value: Any, what: str) -> bytes:
    """Pickle by value whatever workers can't import. Raises `ConfigError` that calls the value `what`."""
    try:
        with _local_modules_by_value():
            buffer = io.BytesIO()
            _Pickler(buffer).dump(value)
            return buffer.getvalue()
    except Exception as error:
        raise ConfigError(f"{what} can't be sent to workers: {type(error).__name__}: {error}") from error


def is_found(function: Any) -> bool:
    """Whether workers can import this cached function by its name."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return not is_users(function) and getattr(module, function.__qualname__, None) is function


def cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """A function with an empty cache; pickles call this."""
    return functools.lru_cache(**parameters)(function)


_Base: Any = cloudpickle.Pickler


class _Pickler(_Base):
    def reducer_override(self, obj: Any) -> Any:
        """A cached function would go by its name alone."""
        if isinstance(obj, CACHED) and not is_found(obj):
            made: Any = obj
            return cached, (made.__wrapped__, made.cache_parameters())
        return _Base.reducer_override(self, obj)


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
