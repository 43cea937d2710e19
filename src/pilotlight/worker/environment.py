"""What this worker's Python and devices are, as facts for the manager to judge. Imports none of what it asks about."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import platform
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pilotlight import __version__
from pilotlight.wire import DeviceSpec, Environment
from pilotlight.worker import build, devices, log

PACKAGES = ("torch", "transformers", "vllm", "cloudpickle")
PROBE_S_MAX = 180.0
"""Importing torch over a busy network file system takes a minute."""


class Build(msgspec.Struct, frozen=True):
    """What `torch_probe` prints."""

    cuda: str = ""
    arches: list[str] = []


def find(own: Sequence[DeviceSpec], cache: Path) -> Environment:
    """The facts. Blocks; on a machine with GPUs, once for each torch, for as long as importing that takes. cache: where
    what was found is kept."""
    packages = {name: version for name in PACKAGES if (version := _version(name))}
    missing = {runtime: names for runtime in build.REQUIRES if (names := build.missing(runtime))}
    gpus = [device.id for device in own if device.type == "cuda"]
    driver = devices.driver() if gpus else devices.Driver()
    torch = _torch_build(packages["torch"], cache) if gpus and "torch" in packages else Build()
    return Environment(
        python=platform.python_version(),
        release=__version__,
        platform=f"{sys.platform}-{platform.machine()}",
        packages=packages,
        missing=missing,
        cuda=torch.cuda,
        arches=torch.arches,
        driver=driver.version,
        driver_cuda=driver.cuda,
        capabilities={uuid: found for uuid in gpus if (found := driver.capabilities.get(uuid))},
    )


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _torch_build(version: str, cache: Path) -> Build:
    """What torch was built for; empty where it can't be told, which is held against nobody."""
    spec = importlib.util.find_spec("torch")
    place = f"{sys.executable}:{spec.origin if spec is not None else ''}:{version}"
    kept = cache / "probes" / f"torch-{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(kept.read_bytes(), type=Build)
    command = [sys.executable, "-P", "-m", "pilotlight.worker.torch_probe"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S_MAX, check=True)
        found = msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Build)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError, IndexError) as error:
        log.say(f"what torch {version} was built for can't be told: {error}")
        return Build()
    with contextlib.suppress(OSError):  # the next worker asks again
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = kept.with_suffix(f".{secrets.token_hex(4)}")
        part.write_bytes(msgspec.json.encode(found))
        part.replace(kept)
    return found
