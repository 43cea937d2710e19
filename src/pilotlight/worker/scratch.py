"""A worker's scratch folder beneath the machine's cache, and what its processes are told of folders.

A folder is locked by its worker while that lives, and removed by its guardian; what nobody locks was left by a machine
that fell, or by a guardian that was killed, and goes when the next worker of the machine begins.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pilotlight.files.locks import take, try_take
from pilotlight.views import CacheView
from pilotlight.wire import Environment

PATH_BYTES_MAX = 64
"""Of a scratch folder: libraries put Unix sockets below TMPDIR (Ray, ZeroMQ, multiprocessing), whose whole path may
have 107 bytes (unix(7))."""
TRIES = 8

COMPILED = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "VLLM_CACHE_ROOT": "vllm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
}
"""Where libraries keep what they compiled; each would take a folder of the user's home."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker knows of where it is. environment: what its Python can run. look: tells of the cache's place as it
    is now. of_runtime: the environment variables of a runtime's processes."""

    environment: Environment | None
    look: Callable[[], CacheView | None]
    of_runtime: Callable[[str], Mapping[str, str]]


def make(cache: Path, otherwise: Path, *, network: bool = False) -> Path:
    """A new folder for this process, locked until it ends. otherwise: the folder to use where the cache can't have it:
    its path is too long, or it lies on a file system over the network, on which sockets don't work."""
    base = cache / "workers"
    if not network and len(os.fsencode(base)) + 9 <= PATH_BYTES_MAX:
        with contextlib.suppress(OSError):
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(base)
            for _ in range(TRIES):
                folder = base / secrets.token_hex(4)
                folder.mkdir(mode=0o700)
                with contextlib.suppress(FileNotFoundError):  # swept before it was locked
                    take(folder, threading.Event())  # for as long as this process lives
                    return folder
    otherwise.mkdir(mode=0o700, exist_ok=True)
    return otherwise


def sweep(base: Path) -> None:
    """Remove the folders of workers that are gone."""
    for folder in base.iterdir():
        with contextlib.suppress(OSError):
            lock = try_take(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def variables(inherited: Mapping[str, str], scratch: Path, compiled: Path) -> dict[str, str]:
    """What a runtime's processes find in their environment. compiled: where what is worth keeping after this worker is
    compiled to; a user's own choice of such a folder stands."""
    kept = {name: str(compiled / folder) for name, folder in COMPILED.items()}
    return {
        # OpenMP's threads spin while they wait; where cores are shared, that made small models ten times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        **kept,
        **inherited,
        "TMPDIR": str(scratch),
        "RAY_TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
