"""The worker's composition root: which links and runtimes exist, by name.

What only an agent needs is imported when it asks: clients look here too, to see which runtimes can be had.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pilotlight.core.errors import ConfigError, MissingExtra
from pilotlight.engines.direct import DirectWorkerLink
from pilotlight.gate.invitation import path_of
from pilotlight.poolfile import socket_path
from pilotlight.ports import Runtime, WorkerLink
from pilotlight.wire import DeviceSpec, PoolSpec

if TYPE_CHECKING:
    from pilotlight.files.place import Place
    from pilotlight.worker.copies import Copies
    from pilotlight.worker.scratch import Surroundings


def _echo() -> Runtime:
    from pilotlight.runtimes.echo import EchoRuntime

    return EchoRuntime()


def _python() -> Runtime:
    from pilotlight.runtimes.python import PythonRuntime

    return PythonRuntime()


def _transformers() -> Runtime:
    from pilotlight.runtimes.transformers import TransformersRuntime

    return TransformersRuntime()


RUNTIMES: dict[str, Callable[[], Runtime]] = {"echo": _echo, "python": _python, "transformers": _transformers}
"""Each imports its library when called, not before: an agent imports none of them."""


REQUIRES = {"transformers": ("torch", "transformers")}
"""What must be importable for a runtime, beside what this package itself needs."""


def missing(name: str) -> list[str]:
    """What a runtime requires that can't be found. Imports none of it."""
    return [module for module in REQUIRES.get(name, ()) if importlib.util.find_spec(module) is None]


def require(name: str) -> None:
    """Raise `MissingExtra` where a runtime's libraries are not installed. Imports none of them."""
    if names := missing(name):
        raise MissingExtra(f"{' and '.join(names)} can't be found: pip install 'pilotlight[{name}]'")


def runtime(name: str) -> Runtime:
    """The runtime of that name. Raises `ConfigError` for an unknown one. Its methods may raise `MissingExtra`."""
    if name not in RUNTIMES:
        raise ConfigError(f"there is no runtime {name!r}; choose one of {', '.join(sorted(RUNTIMES))}")
    return RUNTIMES[name]()


def worker_link(pool: Path, spec: PoolSpec, name: str) -> WorkerLink:
    """The link to the manager of the pool in that folder; should that come back on another machine, to the pool's
    gate."""
    file = path_of(pool, "worker") if spec.listen else None
    return DirectWorkerLink(socket_path(pool, spec, "worker.sock"), file, name)


def dialling_link(file: Path, name: str) -> WorkerLink:
    """The link to the manager of the pool of that pool file."""
    return DirectWorkerLink(file=file, name=name)


def copies(root: Path, limit_bytes: int, scratch: Path, port: int | None) -> Copies:
    """What stages and parks files for one worker. root: of the machine's cache, of at most so many bytes (0: what the
    disk allows; half of the free memory where the cache is in memory). scratch: its own folder. port: where workers of
    other machines fetch what it has (0: any; None: nowhere)."""
    from pilotlight.files import place
    from pilotlight.files.beside import FileService
    from pilotlight.files.cache import Cache
    from pilotlight.worker import devices
    from pilotlight.worker.copies import Copies
    from pilotlight.worker.parking import Parking

    limit_bytes = limit_bytes or place.limit_bytes(root, devices.memory_free_bytes())
    cache = Cache(root, limit_bytes)
    service = FileService(root, port=port) if port is not None else None
    parking = Parking(scratch, cache.root / "parked", cache.stop, devices.memory_free_bytes)
    return Copies(cache, parking, service)


def surroundings(cache: Place, scratch: Path, devices: list[DeviceSpec]) -> Surroundings:
    """What one worker is to know of where it is. Blocks while that is found out."""
    from pilotlight.files import place
    from pilotlight.worker import environment
    from pilotlight.worker.scratch import Surroundings, variables

    def of_runtime(runtime: str) -> dict[str, str]:
        return variables(os.environ, scratch, cache.path / "compiled" / runtime)

    return Surroundings(environment.find(devices, cache.path), lambda: place.look(cache), of_runtime)
